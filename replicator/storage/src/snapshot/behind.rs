//! Writes a new file behind the thread that makes its bytes.
//!
//! One thread hashes the bytes, and another one writes them past the system's cache, one piece after the other, each on the disk before the next: the
//! log's flushes wait behind one piece at most, and at the end there is nothing left but one short fsync. Through the cache, the disk would get
//! the image in bursts, and the log's flushes would wait behind those.

use std::{
    fs::OpenOptions,
    mem,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

use crate::{
    StorageError,
    disk_log::block_file::{BLOCK_BYTES, BlockBuffer, BlockFile, Durable},
};

/// What is written at once.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces that may wait to be written.
const PIECES_MAX: usize = 4;

/// A piece, and how much of it is filled.
type Piece = (BlockBuffer, usize);

/// A file that is being written.
pub(super) struct BehindFile {
    path: PathBuf,
    filling: Piece,
    /// None once it is told to end.
    full: Option<SyncSender<Piece>>,
    /// What was written, to be filled again.
    empty: Receiver<BlockBuffer>,
    thread: Option<JoinHandle<Result<Written, StorageError>>>,
}

/// A whole file, durable.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
}

impl BehindFile {
    /// Makes the file, empty and private to its owner, in the place of an older one. The thread gets the priority of the one that calls.
    pub(super) fn create(path: &Path) -> Result<Self, StorageError> {
        let file = BlockFile::create(path, true, Durable::OnceSynced)?;
        let (full, fulls) = mpsc::sync_channel(PIECES_MAX);
        let (emptied, empty) = mpsc::channel();
        for _ in 0..PIECES_MAX {
            let _ = emptied.send(BlockBuffer::new(PIECE_BYTES)); // the other end is here
        }
        let own = path.to_owned();
        let write = move || hash_and_write(&own, file, fulls, emptied);
        let thread = thread::Builder::new().name("snapshot-write".into()).spawn(write);
        let thread = thread.map_err(StorageError::io("start the thread that writes", path))?;
        let filling = (BlockBuffer::new(PIECE_BYTES), 0);
        Ok(Self { path: path.to_owned(), filling, full: Some(full), empty, thread: Some(thread) })
    }

    /// Takes the next bytes. They are on the disk sometime.
    ///
    /// # Errors
    /// The first error of what was written before; after it, every call fails.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            let (piece, filled) = &mut self.filling;
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - *filled));
            piece[*filled..][..now.len()].copy_from_slice(now);
            *filled += now.len();
            bytes = later;
            if *filled == PIECE_BYTES {
                // Both ends stay until the thread has failed.
                let Ok(next) = self.empty.recv() else { return Err(self.failure()) };
                let piece = mem::replace(&mut self.filling, (next, 0));
                if self.full.as_ref().is_none_or(|full| full.send(piece).is_err()) {
                    return Err(self.failure());
                }
            }
        }
        Ok(())
    }

    /// Writes the rest; all of it is durable on return.
    ///
    /// # Errors
    /// The first error of all.
    pub(super) fn finish(mut self) -> Result<Written, StorageError> {
        let rest = mem::replace(&mut self.filling, (BlockBuffer::new(0), 0));
        if self.full.take().is_none_or(|full| rest.1 > 0 && full.send(rest).is_err()) {
            return Err(self.failure());
        }
        self.end().unwrap_or_else(|| Err(self.failed_before()))
    }

    fn failure(&mut self) -> StorageError {
        self.full = None;
        match self.end() {
            Some(Err(error)) => error,
            _ => self.failed_before(),
        }
    }

    fn failed_before(&self) -> StorageError {
        StorageError::failed(format!("{} couldn't be written before", self.path.display()))
    }

    /// What the thread came to; nothing if that was asked before.
    fn end(&mut self) -> Option<Result<Written, StorageError>> {
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or_else(|_| {
            Err(StorageError::failed(format!("the thread that wrote {} panicked", self.path.display())))
        }))
    }
}

impl Drop for BehindFile {
    fn drop(&mut self) {
        self.full = None;
        let _ = self.end(); // so that whoever removes the file then removes all of it
    }
}

impl std::fmt::Debug for BehindFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BehindFile({})", self.path.display())
    }
}

fn hash_and_write(
    path: &Path,
    file: BlockFile,
    fulls: Receiver<Piece>,
    emptied: mpsc::Sender<BlockBuffer>,
) -> Result<Written, StorageError> {
    let (hashed, to_write) = mpsc::sync_channel(PIECES_MAX);
    thread::scope(|scope| {
        let hasher = scope.spawn(move || {
            let mut sha256 = Sha256::new();
            while let Ok((piece, filled)) = fulls.recv() {
                sha256.update(&piece[..filled]);
                if hashed.send((piece, filled)).is_err() {
                    break; // writing has failed, and says why
                }
            }
            <[u8; 32]>::from(sha256.finalize())
        });
        // Both channels end here, so that who fills pieces, and the hasher, wait for nobody if writing fails.
        let bytes = write_all(path, file, to_write, emptied)?;
        let sha256 = hasher.join().map_err(|_| StorageError::failed("the thread that hashes an image panicked"))?;
        Ok(Written { bytes, sha256 })
    })
}

/// Returns how many bytes there were.
fn write_all(
    path: &Path,
    mut file: BlockFile,
    pieces: Receiver<Piece>,
    emptied: mpsc::Sender<BlockBuffer>,
) -> Result<u64, StorageError> {
    let mut bytes = 0;
    while let Ok((mut piece, filled)) = pieces.recv() {
        let blocks = filled.next_multiple_of(BLOCK_BYTES);
        piece[filled..blocks].fill(0);
        file.write(&piece[..blocks], bytes)?;
        bytes += filled as u64;
        let _ = emptied.send(piece); // nobody fills it any more: the end
    }
    // The last block was filled up.
    let shortened = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes));
    shortened.map_err(StorageError::io("shorten", path))?;
    file.sync()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_what_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let lengths = [0, 1, BLOCK_BYTES, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 77, 9 * PIECE_BYTES];
        for length in lengths {
            let bytes: Vec<u8> = (0..length).map(|at| ((at * 31) >> 3) as u8).collect();
            let mut file = BehindFile::create(&path).unwrap();
            bytes.chunks(100_003).for_each(|part| file.write(part).unwrap());
            let written = file.finish().unwrap();
            assert_eq!(written.bytes, length as u64);
            assert_eq!(written.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
            assert!(std::fs::read(&path).unwrap() == bytes, "{length} bytes");
        }
    }

    #[test]
    fn an_error_comes_back_as_it_is_and_then_all_fails() {
        // What can't be written to: a file that is open for reading only stands for a disk that fails.
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        std::fs::write(&path, b"").unwrap();
        let mut file = BehindFile::create(&path).unwrap();
        let (full, _) = mpsc::sync_channel(1);
        file.full = Some(full); // the thread ends, and what it would be given nobody takes
        let error = file.write(&vec![1; 2 * PIECE_BYTES]).unwrap_err().to_string();
        assert!(error.contains("couldn't be written before"), "{error}");
        assert!(file.write(&vec![1; PIECE_BYTES]).is_err());
        assert!(file.finish().is_err());
    }
}
