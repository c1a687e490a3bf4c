//! What a disk has room for.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use crate::StorageError;

/// Bytes that are free for this process on the disk of `path`, which must exist.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, StorageError> {
    let stat =
        rustix::fs::statvfs(path).map_err(|error| StorageError::io("ask for the free space of", path)(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses what needs so many bytes, in the folder `dir`, if the file system says that it has fewer.
pub(crate) fn require(dir: &Path, needed: u64) -> Result<(), StorageError> {
    let free = free_bytes(dir)?;
    if free < needed {
        return Err(StorageError::Full { path: dir.to_owned(), needed, free });
    }
    Ok(())
}

/// Whether the operating system refused because there is no room: a full disk, a quota, or a limit on the size of files.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// The error of a file operation in `dir`, which needed so many bytes: [`StorageError::Full`] if it failed for want of them.
pub(crate) fn full_or(error: StorageError, dir: &Path, needed: u64) -> StorageError {
    match &error {
        StorageError::Io { source, .. } if is_full(source) => {
            StorageError::Full { path: dir.to_owned(), needed, free: free_bytes(dir).unwrap_or(0) }
        }
        _ => error,
    }
}
