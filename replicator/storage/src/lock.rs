//! The lock that keeps a second process out of a node's folder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::StorageError;

/// The lock's file name. It holds the process id of who holds the lock, for error messages only.
pub(crate) const LOCK_FILE: &str = "lock";

/// An exclusive `flock` on the folder's lock file. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of `dir`, which must exist.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // the holder's process id is in there
            .mode(0o600)
            .open(&path)
            .map_err(StorageError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::Locked { path: dir.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StorageError::Io { path, action: "lock", source });
            }
        }
        let named = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        named.map_err(StorageError::io("write", &path))?;
        Ok(Self { _file: file })
    }

    /// Keeps nodes out of `dir` and lets others in who only look. Changes nothing: `None` if no node ever had the folder, as in a copy.
    pub(crate) fn observe(dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = dir.join(LOCK_FILE);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(StorageError::io("open", &path))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: dir.to_owned(), pid: holder(&mut file) }),
            Err(TryLockError::Error(source)) => Err(StorageError::Io { path, action: "lock", source }),
        }
    }
}

/// The process that the lock's holder left the number of.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
