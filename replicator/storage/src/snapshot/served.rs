//! Gives a snapshot's data file to another node, in pieces.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::fs::OFlags;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{SnapshotManifest, reader::open_image};
use crate::{
    StorageError,
    disk_log::block_file::{BLOCK_BYTES, BlockBuffer},
};

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
    /// The same, past the system's cache, where the file system takes that: images are written past it too.
    direct: Option<File>,
    buffers: Buffers,
}

/// Memory of pieces that have gone out, for the next ones: the system would clear new memory page by page.
type Buffers = Arc<Mutex<Vec<BlockBuffer>>>;
/// So many are kept.
const BUFFERS_MAX: usize = 4;

/// The bytes of a piece.
struct Lent {
    /// None once it is given back.
    buffer: Option<BlockBuffer>,
    bytes: Range<usize>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.bytes.clone()])
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.extend(self.buffer.take());
        }
    }
}

impl SnapshotData {
    pub(crate) fn open(dir: &Path, manifest: SnapshotManifest) -> Result<Self, StorageError> {
        let path = dir.join(manifest.image_name());
        let file = open_image(&path, &manifest)?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(&path).ok();
        Ok(Self { direct, ..Self::within(&path, file, 0, manifest) })
    }

    /// The data file that `file` holds from its byte `base` on.
    pub(crate) fn within(path: &Path, file: File, base: u64, manifest: SnapshotManifest) -> Self {
        Self { manifest, path: path.to_owned(), file, base, direct: None, buffers: Buffers::default() }
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
        let bytes = usize::try_from(rest).unwrap_or(usize::MAX).min(bytes_max);
        if bytes == 0 {
            return Ok(SnapshotPiece::new(offset, Bytes::new()));
        }
        // Whole blocks, as they lie in the file.
        let from = (self.base + offset) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let skipped = (self.base + offset - from) as usize;
        let mut buffer = self.buffer((skipped + bytes).next_multiple_of(BLOCK_BYTES));
        self.read_blocks(&mut buffer, from, skipped + bytes).map_err(StorageError::io("read", &self.path))?;
        let lent = Lent { buffer: Some(buffer), bytes: skipped..skipped + bytes, buffers: self.buffers.clone() };
        Ok(SnapshotPiece::new(offset, Bytes::from_owner(lent)))
    }

    fn buffer(&self, bytes: usize) -> BlockBuffer {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let found = buffers.iter().position(|buffer| buffer.len() >= bytes);
        found.map_or_else(|| BlockBuffer::new(bytes), |found| buffers.swap_remove(found))
    }

    /// Reads what is at `from`, at least so many bytes of it.
    fn read_blocks(&self, buffer: &mut BlockBuffer, from: u64, least: usize) -> io::Result<()> {
        let mut read = 0;
        while let Some(direct) = self.direct.as_ref().filter(|_| read < least) {
            match direct.read_at(&mut buffer[read..], from + read as u64) {
                // The file's end, or what no direct read can go on from.
                Ok(more) if more % BLOCK_BYTES != 0 || more == 0 => {
                    read += more;
                    break;
                }
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::InvalidInput => break,
                Err(error) => return Err(error),
            }
        }
        if read < least {
            self.file.read_exact_at(&mut buffer[read..least], from + read as u64)?;
        }
        Ok(())
    }
}
