//! Writes an image, compressed chunk by chunk.

use std::{
    fs,
    io::{self, Write},
    mem,
    path::PathBuf,
};

use super::{
    Claim, Shared, SnapshotInfo, SnapshotManifest,
    behind::BehindFile,
    chunk::{self, CHUNK_BYTES_MAX, ChunkHeader, FileHeader, HEADER_BYTES},
    manifest,
};
use crate::{StorageError, disk_room, node_dir};

/// Takes the bytes of an image. Dropped before [`Self::finish`], it leaves nothing.
///
/// Nothing is durable before `finish` returns. After the first error every later write fails, and so does `finish`.
#[derive(Debug)]
pub struct SnapshotWriter {
    store: std::sync::Arc<Shared>,
    info: SnapshotInfo,
    path: PathBuf,
    /// None once it is finished.
    file: Option<BehindFile>,
    header: FileHeader,
    /// What of the image waits for its chunk to be full.
    filling: Vec<u8>,
    /// A chunk's header and its stored bytes.
    stored: Vec<u8>,
    image_bytes: u64,
    data_bytes: u64,
    failed: bool,
    finished: bool,
    _claim: Claim,
}

impl SnapshotWriter {
    pub(super) fn begin(
        store: std::sync::Arc<Shared>,
        info: SnapshotInfo,
        image_bytes_estimate: u64,
        claim: Claim,
    ) -> Result<Self, StorageError> {
        disk_room::require(&store.path, image_bytes_estimate.saturating_add(store.options.spare_bytes))?;
        let path = store.path.join(manifest::unfinished_name(info.position));
        let file = Some(BehindFile::create(&path)?);
        let chunk_bytes = store.options.chunk_bytes.clamp(1, CHUNK_BYTES_MAX);
        let header = FileHeader { tag: node_dir::random(&path)?, chunk_bytes };
        let mut writer = Self {
            store,
            info,
            path,
            file,
            header,
            filling: Vec::with_capacity(chunk_bytes),
            stored: Vec::new(),
            image_bytes: 0,
            data_bytes: 0,
            failed: false,
            finished: false,
            _claim: claim,
        };
        writer.store_bytes(&header.encode())?;
        Ok(writer)
    }

    /// Installs the snapshot: whole, or not at all. Durable on return, and then the log may be purged through its position. It takes
    /// the place of another one at the same position.
    ///
    /// # Errors
    /// If anything can't be written or fsynced; [`StorageError::Full`] if for want of room. Then nothing of it stays.
    pub fn finish(mut self) -> Result<SnapshotManifest, StorageError> {
        if self.failed {
            let what = format!("the snapshot {} couldn't be written, and so can't be finished", self.path.display());
            return Err(StorageError::failed(what));
        }
        let finished = self.finish_file();
        let manifest = finished.map_err(|error| self.full_or(error))?;
        self.store.install(&self.path, &manifest).map_err(|error| self.full_or(error))?;
        self.finished = true;
        Ok(manifest)
    }

    /// Bytes of the image so far.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes + self.filling.len() as u64
    }

    fn finish_file(&mut self) -> Result<SnapshotManifest, StorageError> {
        let rest = mem::take(&mut self.filling);
        if !rest.is_empty() {
            self.write_chunk(&rest)?;
        }
        let end = ChunkHeader::end(self.header.tag, self.image_bytes).encode(self.header.tag);
        self.store_bytes(&end)?;
        let written = self.file.take().expect("it is finished once").finish()?;
        assert_eq!(written.bytes, self.data_bytes, "all of the file was written");
        Ok(SnapshotManifest {
            info: self.info.clone(),
            data_version: chunk::VERSION,
            image_bytes: self.image_bytes,
            data_bytes: self.data_bytes,
            data_sha256: written.sha256,
        })
    }

    /// Compresses a chunk and writes it; as it is, if it doesn't get smaller.
    fn write_chunk(&mut self, image: &[u8]) -> Result<(), StorageError> {
        let mut stored = mem::take(&mut self.stored);
        // It keeps the size of the largest chunk: bytes that are overwritten anyway need no zeros first.
        let room = HEADER_BYTES + lz4_flex::block::get_maximum_output_size(image.len());
        stored.resize(room.max(stored.len()), 0);
        let mut bytes = lz4_flex::block::compress_into(image, &mut stored[HEADER_BYTES..])
            .expect("there is room for the largest output");
        if bytes >= image.len() {
            bytes = image.len();
            stored[HEADER_BYTES..HEADER_BYTES + bytes].copy_from_slice(image);
        }
        let (tag, whole) = (self.header.tag, &mut stored[..HEADER_BYTES + bytes]);
        let header = ChunkHeader::of(tag, &whole[HEADER_BYTES..], image.len(), self.image_bytes);
        whole[..HEADER_BYTES].copy_from_slice(&header.encode(tag));
        self.store_bytes(whole)?;
        self.stored = stored;
        self.image_bytes += image.len() as u64;
        Ok(())
    }

    fn store_bytes(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.data_bytes += bytes.len() as u64;
        let written = self.file.as_mut().expect("it isn't finished").write(bytes);
        written.map_err(|error| self.full_or(error))
    }

    fn full_or(&self, error: StorageError) -> StorageError {
        disk_room::full_or(error, &self.store.path, self.data_bytes)
    }
}

impl Write for SnapshotWriter {
    /// Takes bytes of the image. An error holds a [`StorageError`].
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("the snapshot couldn't be written; begin it again"));
        }
        let taken = bytes.len();
        while !bytes.is_empty() {
            let room = self.header.chunk_bytes - self.filling.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let written = if self.filling.is_empty() && now.len() == room {
                self.write_chunk(now)
            } else {
                self.filling.extend_from_slice(now);
                let mut filled = mem::take(&mut self.filling);
                if filled.len() < self.header.chunk_bytes {
                    self.filling = filled;
                    Ok(())
                } else {
                    let written = self.write_chunk(&filled);
                    filled.clear();
                    self.filling = filled;
                    written
                }
            };
            if let Err(error) = written {
                self.failed = true;
                return Err(into_io(error));
            }
            bytes = later;
        }
        Ok(taken)
    }

    /// Does nothing: a chunk that isn't full waits, and what is durable only `finish` says.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        drop(self.file.take()); // what still writes it, ends first
        if !self.finished
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "can't remove an unfinished snapshot; the next start does");
        }
    }
}

/// The error in the form that a stream has, with its kind where it came from the system.
pub(super) fn into_io(error: StorageError) -> io::Error {
    let kind = match &error {
        StorageError::Io { source, .. } => source.kind(),
        StorageError::Full { .. } => io::ErrorKind::StorageFull,
        StorageError::DamagedSnapshot { .. } => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
