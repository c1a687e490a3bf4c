//! Room kept for what must be written on a full disk: a file that is given up for it.
//!
//! A vote, a promise or a start must be durable before it is answered, and a disk that others have filled to the last byte is no reason for a
//! node to fall: there is room for `meta` as long as this file can be given up.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::{StorageError, disk_room};

/// The file's name in the node's folder.
pub(crate) const SPARE_FILE: &str = "spare";
/// Its size, several times that of any `meta`.
pub(crate) const SPARE_BYTES: u64 = 256 << 10;

/// Writes something small to the folder; if there is no room for it, gives the spare file up and writes it again.
///
/// # Errors
/// [`StorageError::Full`] if there is no such room any more; `write`'s others.
pub(crate) fn with_room(dir: &Path, mut write: impl FnMut() -> Result<(), StorageError>) -> Result<(), StorageError> {
    let written = match write() {
        Err(error) if is_full(&error) && fs::remove_file(dir.join(SPARE_FILE)).is_ok() => {
            tracing::warn!(dir = %dir.display(), "the disk is full: the room that was kept for this node's promises is given up");
            write()
        }
        written => written,
    };
    written.map_err(|error| disk_room::full_or(error, dir, SPARE_BYTES))
}

fn is_full(error: &StorageError) -> bool {
    match error {
        StorageError::Full { .. } => true,
        StorageError::Io { source, .. } => disk_room::is_full(source),
        _ => false,
    }
}

/// Makes the file, if it isn't there or isn't whole, and the disk has many times its size. Written, so that its room is its own; not fsynced:
/// after a power loss it is made again.
///
/// # Errors
/// If it can't be, though the disk has room.
pub(crate) fn keep(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(SPARE_FILE);
    if fs::metadata(&path).is_ok_and(|file| file.len() == SPARE_BYTES) {
        return Ok(());
    }
    if disk_room::require(dir, 16 * SPARE_BYTES).is_err() {
        return Ok(());
    }
    let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    // Bytes that differ: some file systems give zeros, or repeated blocks, no room of their own.
    let fill = |mut file: File| {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let words = (0..SPARE_BYTES / 8).flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        });
        file.write_all(&words.collect::<Vec<u8>>())
    };
    match made.and_then(fill) {
        Err(error) if !disk_room::is_full(&error) => Err(StorageError::io("write", &path)(error)),
        Err(_) => match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StorageError::io("remove", &path)(error)),
            _ => Ok(()),
        },
        Ok(()) => Ok(()),
    }
}
