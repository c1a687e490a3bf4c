//! A file read from its beginning to its end through a buffer of bounded size.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::StorageError;

const READ_BYTES: usize = 1 << 20;

/// What was read of the file, and more where that is asked for.
#[derive(Debug)]
pub(crate) struct Window {
    path: PathBuf,
    file: File,
    bytes: u64,
    buffer: Vec<u8>,
    /// The part of the file that is in the buffer.
    begin: u64,
    filled: usize,
}

impl Window {
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        let file = File::open(path).map_err(StorageError::io("open", path))?;
        let bytes = file.metadata().map_err(StorageError::io("ask for the size of", path))?.len();
        Ok(Self { path: path.to_owned(), file, bytes, buffer: Vec::new(), begin: 0, filled: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes from `at` on; fewer at the file's end.
    pub(crate) fn read(&mut self, at: u64, bytes: usize) -> Result<&[u8], StorageError> {
        if at >= self.bytes {
            return Ok(&[]);
        }
        let bytes = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(bytes);
        let held = at.checked_sub(self.begin).is_some_and(|skipped| skipped + bytes as u64 <= self.filled as u64);
        if !held {
            self.fill(at, bytes)?;
        }
        let from = (at - self.begin) as usize;
        Ok(&self.buffer[from..from + bytes])
    }

    fn fill(&mut self, at: u64, bytes: usize) -> Result<(), StorageError> {
        let rest = usize::try_from(self.bytes - at).unwrap_or(usize::MAX);
        let wanted = bytes.max(READ_BYTES).min(rest);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        self.filled = 0;
        self.file.read_exact_at(&mut self.buffer[..wanted], at).map_err(StorageError::io("read", &self.path))?;
        (self.begin, self.filled) = (at, wanted);
        Ok(())
    }

    /// The end of the last byte from `from` on that isn't zero; `None` if all are.
    pub(crate) fn written_end(&mut self, from: u64) -> Result<Option<u64>, StorageError> {
        let mut end = None;
        let mut at = from;
        while at < self.bytes {
            let chunk = self.read(at, READ_BYTES)?;
            // A plain fold is done many bytes at a time; looking for the place is not.
            if chunk.iter().fold(0, |all, byte| all | byte) != 0 {
                end = chunk.iter().rposition(|byte| *byte != 0).map(|last| at + last as u64 + 1);
            }
            at += chunk.len() as u64;
        }
        Ok(end)
    }
}
