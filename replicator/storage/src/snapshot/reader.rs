//! Reads an image back, and checks what it reads.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    SnapshotManifest,
    chunk::{ChunkHeader, FileHeader, HEADER_BYTES},
    writer::into_io,
};
use crate::StorageError;

/// Gives the bytes of an image. Each chunk is checked before any of it is given; that the whole file is as it was written is known only
/// when a read returns 0, so nothing may be installed before that. An error holds a [`StorageError`].
#[derive(Debug)]
pub struct SnapshotReader {
    manifest: SnapshotManifest,
    data: DataFile,
    /// Of the bytes of the file so far; none if reading began amid it.
    sha256: Option<Sha256>,
    /// The chunk that is given, and how much of it was.
    chunk: Vec<u8>,
    given: usize,
    stored: Vec<u8>,
    ended: bool,
}

/// A data file that is read from one chunk to the next.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
    /// Where it begins in `file`: another one may hold it.
    base: u64,
    pub(super) bytes: u64,
    pub(super) header: FileHeader,
    /// The byte of the file and of the image at which the next chunk begins.
    pub(super) at: u64,
    image_at: u64,
}

impl DataFile {
    /// Opens the file, of whatever size; what is after the header isn't looked at yet.
    pub(super) fn open(path: &Path, file: File) -> Result<Self, StorageError> {
        let bytes = file.metadata().map_err(StorageError::io("ask for the size of", path))?.len();
        Self::within(path, file, 0, bytes)
    }

    /// The `bytes` bytes from `base` on of a file, which has so many.
    pub(super) fn within(path: &Path, file: File, base: u64, bytes: u64) -> Result<Self, StorageError> {
        let damaged = |what: &str| StorageError::damaged_snapshot(path, base, what);
        let header = read_header(path, &file, base, base + bytes)?.ok_or_else(|| damaged("its header is cut"))?;
        let header = FileHeader::decode(&header)
            .map_err(|source| StorageError::Version { path: path.to_owned(), source })?
            .ok_or_else(|| damaged("its header isn't as it was written"))?;
        Ok(Self { path: path.to_owned(), file, base, bytes, header, at: HEADER_BYTES as u64, image_at: 0 })
    }

    /// Damage of the chunk that is next.
    fn damaged(&self, what: impl Into<String>) -> StorageError {
        StorageError::damaged_snapshot(&self.path, self.base + self.at, what)
    }

    /// The header of the next chunk, or the end mark.
    pub(super) fn next_header(&self) -> Result<([u8; HEADER_BYTES], ChunkHeader), StorageError> {
        let damaged = |what: &str| self.damaged(what);
        let bytes = read_header(&self.path, &self.file, self.base + self.at, self.base + self.bytes)?;
        let bytes = bytes.ok_or_else(|| damaged("the file ends amid the image"))?;
        let header = ChunkHeader::decode(&bytes, self.header, self.image_at);
        Ok((bytes, header.ok_or_else(|| damaged("the header of a chunk isn't as it was written"))?))
    }

    /// The bytes that the chunk stores, checked.
    pub(super) fn payload(&self, header: &ChunkHeader, stored: &mut Vec<u8>) -> Result<(), StorageError> {
        let damaged = |what: &str| self.damaged(what);
        let from = self.at + HEADER_BYTES as u64;
        if from + header.stored_bytes as u64 > self.bytes {
            return Err(damaged("the file ends amid a chunk"));
        }
        stored.resize(header.stored_bytes, 0);
        self.file.read_exact_at(stored, self.base + from).map_err(StorageError::io("read", &self.path))?;
        if header.matches(stored, self.header.tag) { Ok(()) } else { Err(damaged("a chunk isn't as it was written")) }
    }

    /// Goes on to what follows this chunk, or the end mark.
    pub(super) fn pass(&mut self, header: &ChunkHeader) {
        self.at += (HEADER_BYTES + header.stored_bytes) as u64;
        self.image_at += header.image_bytes as u64;
    }
}

/// A header's bytes at `at`; `None` if it goes beyond `end`.
fn read_header(path: &Path, file: &File, at: u64, end: u64) -> Result<Option<[u8; HEADER_BYTES]>, StorageError> {
    let mut header = [0; HEADER_BYTES];
    if at + HEADER_BYTES as u64 > end {
        return Ok(None);
    }
    file.read_exact_at(&mut header, at).map_err(StorageError::io("read", path))?;
    Ok(Some(header))
}

impl SnapshotReader {
    /// Opens the data file of `manifest` in `dir`.
    pub(crate) fn open(dir: &Path, manifest: SnapshotManifest) -> Result<Self, StorageError> {
        let path = dir.join(manifest.image_name());
        let file = open_image(&path, &manifest)?;
        Self::within(&path, file, 0, manifest)
    }

    /// Opens the data file of `manifest`, all of which is in `file`, from its byte `base` on.
    pub(crate) fn within(path: &Path, file: File, base: u64, manifest: SnapshotManifest) -> Result<Self, StorageError> {
        let data = DataFile::within(path, file, base, manifest.data_bytes)?;
        let mut sha256 = Sha256::new();
        sha256.update(data.header.encode());
        let (chunk, stored) = (Vec::new(), Vec::new());
        Ok(Self { manifest, data, sha256: Some(sha256), chunk, given: 0, stored, ended: false })
    }

    /// What is read.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// Leaves out the image's bytes before `offset`; all of them if there are no more. It is called before the first read, and reads only the
    /// headers of the chunks before it. From then on chunks are checked and the whole file is not.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), StorageError> {
        self.sha256 = None;
        loop {
            let (_, header) = self.data.next_header()?;
            let end = header.image_offset + header.image_bytes as u64;
            if !header.is_end() && end <= offset {
                self.data.pass(&header);
                continue;
            }
            let begin = header.image_offset;
            self.next_chunk()?;
            self.given = offset.saturating_sub(begin).min(self.chunk.len() as u64) as usize;
            return Ok(());
        }
    }

    /// Reads everything that is left.
    pub(crate) fn read_to_end_checked(mut self) -> Result<(), StorageError> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }

    /// Reads the next chunk, or finds the end of the file and that all of it was right.
    fn next_chunk(&mut self) -> Result<(), StorageError> {
        let (bytes, header) = self.data.next_header()?;
        if header.is_end() {
            let SnapshotManifest { image_bytes, data_bytes, .. } = self.manifest;
            if header.image_offset != image_bytes || self.data.at + HEADER_BYTES as u64 != data_bytes {
                let found = header.image_offset;
                return Err(self.data.damaged(format!("the image ends here, after {found} bytes of {image_bytes}")));
            }
        }
        self.data.payload(&header, &mut self.stored)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
            sha256.update(&self.stored);
        }
        if header.is_end() {
            let found = self.sha256.take().map(|sha256| <[u8; 32]>::from(sha256.finalize()));
            if found.is_some_and(|found| found != self.manifest.data_sha256) {
                return Err(StorageError::damaged_snapshot(&self.data.path, None, "its SHA-256 is not its manifest's"));
            }
            self.ended = true;
        }
        self.chunk.resize(header.image_bytes, 0);
        self.given = 0;
        if header.stored_bytes == header.image_bytes {
            self.chunk.copy_from_slice(&self.stored);
        } else if lz4_flex::block::decompress_into(&self.stored, &mut self.chunk).ok() != Some(header.image_bytes) {
            return Err(self.data.damaged("a chunk can't be decompressed"));
        }
        self.data.pass(&header);
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.chunk.len() && !self.ended && !into.is_empty() {
            self.next_chunk().map_err(into_io)?;
        }
        let rest = &self.chunk[self.given..];
        let taken = rest.len().min(into.len());
        into[..taken].copy_from_slice(&rest[..taken]);
        self.given += taken;
        Ok(taken)
    }
}

/// Opens the data file of a manifest, which must be there and have its size.
pub(super) fn open_image(path: &Path, manifest: &SnapshotManifest) -> Result<File, StorageError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StorageError::damaged_snapshot(path, None, "the file is missing, and its manifest is there"));
        }
        opened => opened.map_err(StorageError::io("open", path))?,
    };
    let bytes = file.metadata().map_err(StorageError::io("ask for the size of", path))?.len();
    if bytes != manifest.data_bytes {
        let at = bytes.min(manifest.data_bytes);
        let what = format!("the file has {bytes} bytes, and was written with {}", manifest.data_bytes);
        return Err(StorageError::damaged_snapshot(path, at, what));
    }
    Ok(file)
}
