//! Gives a snapshot's data file to another node, in pieces.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{SnapshotManifest, reader::open_image};
use crate::StorageError;

/// A part of a data file on its way between two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPiece {
    /// Where in the file it begins.
    pub offset: u64,
    /// The file's bytes there.
    pub bytes: Bytes,
    /// The xxh3-64 of the bytes, seeded with the offset.
    pub checksum: u64,
}

impl SnapshotPiece {
    /// These bytes, with their checksum.
    #[must_use]
    pub fn new(offset: u64, bytes: Bytes) -> Self {
        let checksum = xxh3_64_with_seed(&bytes, offset);
        Self { offset, bytes, checksum }
    }

    /// Whether the bytes and the offset are those that the checksum was made of.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        xxh3_64_with_seed(&self.bytes, self.offset) == self.checksum
    }
}

/// An open data file. It can be read to its end while it is held, also when the snapshot was removed meanwhile.
#[derive(Debug)]
pub struct SnapshotData {
    manifest: SnapshotManifest,
    path: PathBuf,
    file: File,
    /// Where it begins in `file`: another one may hold it.
    base: u64,
}

impl SnapshotData {
    pub(crate) fn open(dir: &Path, manifest: SnapshotManifest) -> Result<Self, StorageError> {
        let path = dir.join(manifest.image_name());
        let file = open_image(&path, &manifest)?;
        Ok(Self { manifest, path, file, base: 0 })
    }

    /// The data file that `file` holds from its byte `base` on.
    pub(crate) fn within(path: &Path, file: File, base: u64, manifest: SnapshotManifest) -> Self {
        Self { manifest, path: path.to_owned(), file, base }
    }

    /// What is served.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// Reads up to `bytes_max` bytes of the file from `offset` on; fewer at its end, and none beyond it. They are given as the disk has
    /// them: the receiver checks them all.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn read_at(&self, offset: u64, bytes_max: usize) -> Result<SnapshotPiece, StorageError> {
        let rest = self.manifest.data_bytes.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(bytes_max)];
        self.file.read_exact_at(&mut bytes, self.base + offset).map_err(StorageError::io("read", &self.path))?;
        Ok(SnapshotPiece::new(offset, bytes.into()))
    }
}
