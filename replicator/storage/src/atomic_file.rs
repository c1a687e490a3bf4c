//! Files that are whole or absent: written under another name, fsynced, renamed, and the folder fsynced.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::StorageError;

/// The ending of a file that is still being written. Such a file holds nothing that was promised.
pub(crate) const TEMPORARY: &str = "new";

/// Replaces `path` by `bytes`; durable on return. A crash leaves the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    replace_all(&[path.to_owned()], bytes)
}

/// Replaces each of these files, which are in one folder, by `bytes`; durable on return. A crash leaves each of them old or new.
pub(crate) fn replace_all(paths: &[PathBuf], bytes: &[u8]) -> Result<(), StorageError> {
    for path in paths {
        let temporary = temporary_name(path);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(StorageError::io("create", &temporary))?;
        file.write_all(bytes).map_err(StorageError::io("write", &temporary))?;
        file.sync_all().map_err(StorageError::io("fsync", &temporary))?;
    }
    for path in paths {
        fs::rename(temporary_name(path), path).map_err(StorageError::io("rename the new", path))?;
    }
    paths.first().map_or(Ok(()), |path| sync_dir(path.parent().expect("a file in a node's folder has a parent")))
}

/// The name under which a file is written.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    name.into()
}

/// Reads a whole file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StorageError::Io { path: path.to_owned(), action: "read", source }),
    }
}

/// Makes the names in `dir` durable: files made, renamed and removed.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StorageError::io("fsync", dir))
}

/// Makes `dir` and its parents, private to their owner, durable on return. Leaves a folder that exists as it is.
pub(crate) fn create_dir(dir: &Path) -> Result<(), StorageError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !dir.is_dir() => {
            return Err(StorageError::io("create", dir)(error));
        }
        _ => {}
    }
    sync_dir(parent_of(dir))
}

/// The parent, where the current folder's name is empty.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The names in `dir`, sorted; none if there is no such folder.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StorageError::Io { path: dir.to_owned(), action: "list", source }),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StorageError::io("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
