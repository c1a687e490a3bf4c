//! A file that grows by bytes as they come, written past the system's cache.
//!
//! Only whole blocks can be, so the bytes after the last one wait in memory, until there are enough of them or the file is closed. What comes
//! is with the disk before the next: the log's flushes wait behind little, and the last fsync is short. Through the cache,
//! the disk would get the file in bursts, and the log's flushes would wait behind those.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    StorageError,
    disk_log::block_file::{BLOCK_BYTES, BlockBuffer, BlockFile, Durable},
};

/// What is written at once, at most.
const PIECE_BYTES: usize = 512 << 10;

/// The file. Dropped, it keeps all bytes that it was given, but for an error, which nobody is told of: who goes on with the file checks it.
#[derive(Debug)]
pub(super) struct GrowingFile {
    path: PathBuf,
    file: BlockFile,
    /// Where `filling` belongs: after so many bytes, whole blocks.
    written: u64,
    filling: BlockBuffer,
    filled: usize,
    /// Whether `filling` holds bytes that the file doesn't.
    waiting: bool,
}

impl GrowingFile {
    /// Goes on behind the first `bytes` bytes of a file, which has no more.
    pub(super) fn open(path: &Path, bytes: u64) -> Result<Self, StorageError> {
        let file = BlockFile::open(path, true, Durable::OnceSynced)?;
        let filled = (bytes % BLOCK_BYTES as u64) as usize;
        let written = bytes - filled as u64;
        let mut filling = BlockBuffer::new(PIECE_BYTES);
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut filling[..filled], written));
        read.map_err(StorageError::io("read", path))?;
        Ok(Self { path: path.to_owned(), file, written, filling, filled, waiting: false })
    }

    /// How many bytes it has.
    pub(super) const fn bytes(&self) -> u64 {
        self.written + self.filled as u64
    }

    /// Takes the next bytes. They are durable after [`Self::finish`].
    ///
    /// # Errors
    /// If they can't be written; then the file isn't to be written to any more.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.filled));
            self.filling[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            self.write_blocks()?;
        }
        Ok(())
    }

    /// Writes all that is whole blocks. The rest waits.
    fn write_blocks(&mut self) -> Result<(), StorageError> {
        self.waiting = false; // not again when it is dropped, if it fails
        let blocks = self.filled / BLOCK_BYTES * BLOCK_BYTES;
        if blocks > 0 {
            self.file.write(&self.filling[..blocks], self.written)?;
            self.filling.copy_within(blocks..self.filled, 0);
            self.written += blocks as u64;
            self.filled -= blocks;
        }
        self.waiting = self.filled > 0;
        Ok(())
    }

    /// Writes what waits; all of it is durable on return.
    ///
    /// # Errors
    /// If it can't be.
    pub(super) fn finish(mut self) -> Result<(), StorageError> {
        self.write_rest()?;
        self.file.sync()
    }

    /// The last block is filled up with zeros, which are cut off.
    fn write_rest(&mut self) -> Result<(), StorageError> {
        if !self.waiting {
            return Ok(());
        }
        self.waiting = false;
        let blocks = self.filled.next_multiple_of(BLOCK_BYTES);
        self.filling[self.filled..blocks].fill(0);
        self.file.write(&self.filling[..blocks], self.written)?;
        let shortened = OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(self.bytes()));
        shortened.map_err(StorageError::io("shorten", &self.path))
    }
}

impl Drop for GrowingFile {
    fn drop(&mut self) {
        let _ = self.write_rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_closed_and_gone_on_with_anywhere_has_all_its_bytes() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let whole: Vec<u8> = (0..3 * PIECE_BYTES + 77).map(|at| ((at * 31) >> 3) as u8).collect();
        for ends in [
            vec![0, whole.len()],
            vec![1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, PIECE_BYTES - 1, 2 * PIECE_BYTES + 5, whole.len()],
            vec![PIECE_BYTES, PIECE_BYTES, 3 * PIECE_BYTES, whole.len()],
        ] {
            std::fs::write(&path, b"").unwrap();
            let mut begin = 0;
            for &end in &ends {
                let mut file = GrowingFile::open(&path, begin as u64).unwrap();
                whole[begin..end].chunks(100_003).for_each(|bytes| file.append(bytes).unwrap());
                assert_eq!(file.bytes(), end as u64);
                if end == whole.len() {
                    file.finish().unwrap()
                } else {
                    drop(file)
                }
                assert!(std::fs::read(&path).unwrap() == whole[..end], "{ends:?}, up to {end}");
                begin = end;
            }
        }
    }
}
