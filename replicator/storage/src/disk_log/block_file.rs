//! Whole blocks, written past the operating system's cache where the file system takes that.
//!
//! A file that was written to its full size before needs no change of its metadata when it is overwritten: with `O_DIRECT` and
//! `O_DSYNC`, a flush is one command to the disk and one wait. Where a file system refuses (`EINVAL`), the same blocks are written
//! through the cache and `fdatasync`ed.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    ops::{Deref, DerefMut},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::StorageError;

/// What is written at once and aligned to: no disk or file system in use asks for more, and most pages are as large.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Memory that begins at a multiple of the block's size, as direct writes want it.
pub(crate) struct BlockBuffer {
    memory: Vec<u8>,
    begin: usize,
    bytes: usize,
}

impl BlockBuffer {
    /// So many zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + BLOCK_BYTES];
        let begin = memory.as_ptr().align_offset(BLOCK_BYTES);
        assert!(begin < BLOCK_BYTES, "bytes can be aligned to anything");
        Self { memory, begin, bytes }
    }
}

impl Deref for BlockBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.bytes]
    }
}

impl DerefMut for BlockBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.bytes]
    }
}

impl std::fmt::Debug for BlockBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockBuffer({})", self.bytes)
    }
}

/// When what was written is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    /// When the write returns.
    EachWrite,
    /// After [`BlockFile::sync`].
    OnceSynced,
}

/// A file of whole blocks that is open for writing.
#[derive(Debug)]
pub(crate) struct BlockFile {
    path: PathBuf,
    file: File,
    direct: bool,
    durable: Durable,
}

impl BlockFile {
    /// Opens a file that exists; `direct` says whether to try to go past the cache.
    pub(crate) fn open(path: &Path, direct: bool, durable: Durable) -> Result<Self, StorageError> {
        Self::open_with(OpenOptions::new().write(true), path, direct, durable)
    }

    /// Makes an empty file, private to its owner, or empties the one that is there.
    pub(crate) fn create(path: &Path, direct: bool, durable: Durable) -> Result<Self, StorageError> {
        Self::open_with(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600), path, direct, durable)
    }

    fn open_with(options: &mut OpenOptions, path: &Path, direct: bool, durable: Durable) -> Result<Self, StorageError> {
        let flags = OFlags::DIRECT | if durable == Durable::EachWrite { OFlags::DSYNC } else { OFlags::empty() };
        let opened = match direct.then(|| options.clone().custom_flags(flags.bits().cast_signed()).open(path)) {
            Some(Err(error)) if is_refusal(&error) => None,
            opened => opened,
        };
        let direct = opened.is_some();
        let file = opened.unwrap_or_else(|| options.open(path)).map_err(StorageError::io("open", path))?;
        Ok(Self { path: path.to_owned(), file, direct, durable })
    }

    /// Writes whole blocks from a [`BlockBuffer`] at a multiple of the block's size.
    pub(crate) fn write(&mut self, blocks: &[u8], at: u64) -> Result<(), StorageError> {
        assert_eq!(blocks.len() % BLOCK_BYTES, 0, "whole blocks are written");
        let mut written = self.file.write_all_at(blocks, at);
        if self.direct && written.as_ref().is_err_and(is_refusal) {
            self.file =
                OpenOptions::new().write(true).open(&self.path).map_err(StorageError::io("open", &self.path))?;
            self.direct = false;
            written = self.file.write_all_at(blocks, at);
        }
        if !self.direct && self.durable == Durable::EachWrite {
            written = written.and_then(|()| self.file.sync_data());
        }
        written.map_err(StorageError::io("write", &self.path))
    }

    /// Makes everything written, and the file's size, durable.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(StorageError::io("fsync", &self.path))
    }

    /// Asks for the room that the file will take. A file system that can't say so lets it be written as far as it goes.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), StorageError> {
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            reserved => reserved.map_err(|error| StorageError::io("reserve room for", &self.path)(error.into())),
        }
    }
}

/// Whether the file system doesn't take direct writes, or not such ones.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == ErrorKind::InvalidInput
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_written_where_they_belong_directly_or_not() {
        let scratch = tempfile::tempdir().unwrap();
        for (direct, durable) in [true, false]
            .into_iter()
            .flat_map(|direct| [Durable::EachWrite, Durable::OnceSynced].map(|durable| (direct, durable)))
        {
            let path = scratch.path().join(format!("{direct}-{durable:?}"));
            let mut buffer = BlockBuffer::new(2 * BLOCK_BYTES);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            let mut file = BlockFile::create(&path, direct, durable).unwrap();
            file.reserve(4 * BLOCK_BYTES as u64).unwrap();
            file.write(&buffer, BLOCK_BYTES as u64).unwrap();
            file.sync().unwrap();
            let found = std::fs::read(&path).unwrap();
            let expected: Vec<_> = [0, 7, 7, 0].into_iter().flat_map(|byte| [byte; BLOCK_BYTES]).collect();
            assert!(found == expected, "direct: {direct}, {durable:?}");
        }
    }

    #[test]
    fn a_direct_write_that_is_refused_goes_through_the_cache() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("refused");
        let mut file = BlockFile::create(&path, true, Durable::EachWrite).unwrap();
        let buffer = BlockBuffer::new(2 * BLOCK_BYTES);
        // Memory that isn't aligned: what a disk with larger blocks would refuse as well.
        let askew = vec![3; BLOCK_BYTES + 1];
        let begin = usize::from(askew.as_ptr().align_offset(512) == 0);
        file.write(&askew[begin..begin + BLOCK_BYTES], 0).unwrap();
        file.write(&buffer, BLOCK_BYTES as u64).unwrap();
        let found = std::fs::read(&path).unwrap();
        assert_eq!((found.len(), found[0], found[BLOCK_BYTES - 1], found[BLOCK_BYTES]), (3 * BLOCK_BYTES, 3, 3, 0));
    }
}
