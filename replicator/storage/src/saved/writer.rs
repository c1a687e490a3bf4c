//! Writes a saved snapshot: beside its place, then into it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{SavedHead, SavedSnapshot};
use crate::{SnapshotPiece, StorageError, atomic_file, disk_room, snapshot::Flusher};

/// Takes the bytes of a saved snapshot, piece after piece. Dropped before [`Self::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SavedWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    written: u64,
    replace: bool,
    flusher: Flusher,
    finished: bool,
}

impl SavedWriter {
    /// Begins the file at `path`, in a folder that exists. A file that is there is taken the place of at the end, if it may be (`replace`).
    ///
    /// # Errors
    /// [`StorageError::Exists`] if there is a file that may not be replaced, or if nothing can be written there.
    pub fn begin(path: impl Into<PathBuf>, replace: bool) -> Result<Self, StorageError> {
        let path = path.into();
        if !replace && exists(&path) {
            return Err(StorageError::Exists { path });
        }
        let mut name = path.as_os_str().to_owned();
        // Two who write the same file each have one of their own.
        name.push(format!(".{}.{}", std::process::id(), atomic_file::TEMPORARY));
        let temporary = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&temporary).map_err(StorageError::io("create", &temporary))?;
        let flusher = Flusher::start(&file).map_err(StorageError::io("start the thread that flushes", &temporary))?;
        Ok(Self { path, temporary, file, written: 0, replace, flusher, finished: false })
    }

    /// The byte that is wanted next.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next piece. It isn't durable on return.
    ///
    /// # Errors
    /// [`StorageError::PieceOutOfOrder`] if it begins elsewhere, [`StorageError::PieceDamaged`] if its checksum is wrong, [`StorageError::Full`] or
    /// another one if it can't be written.
    pub fn take(&mut self, piece: &SnapshotPiece) -> Result<(), StorageError> {
        let SnapshotPiece { offset, bytes, .. } = piece;
        if *offset != self.written {
            return Err(StorageError::PieceOutOfOrder { offset: *offset, wanted: self.written });
        }
        if !piece.is_whole() {
            return Err(StorageError::PieceDamaged { offset: *offset });
        }
        self.file.write_all(bytes).map_err(|error| self.full_or("write", error))?;
        self.written += bytes.len() as u64;
        self.flusher.wrote(bytes.len());
        Ok(())
    }

    /// Reads back what was written, checks all of it, and gives it its place. Durable on return.
    ///
    /// # Errors
    /// [`StorageError::DamagedSave`] if what came is no whole saved snapshot; [`StorageError::Exists`] if somebody else has made such a file
    /// meanwhile; others if it can't be fsynced or renamed. Then nothing of it stays.
    pub fn finish(mut self) -> Result<SavedHead, StorageError> {
        let flushed = self.flusher.finish().and_then(|()| self.file.sync_all());
        flushed.map_err(|error| self.full_or("fsync", error))?;
        let saved = SavedSnapshot::open(&self.temporary)?;
        saved.verify()?;
        match self.take_place() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StorageError::Exists { path: self.path.clone() });
            }
            renamed => renamed.map_err(StorageError::io("rename the new", &self.path))?,
        }
        self.finished = true;
        atomic_file::sync_dir(atomic_file::parent_of(&self.path))?;
        Ok(saved.head().clone())
    }

    fn take_place(&self) -> io::Result<()> {
        if self.replace {
            return fs::rename(&self.temporary, &self.path);
        }
        match renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A file system that can't do both at once.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !exists(&self.path) => {
                fs::rename(&self.temporary, &self.path)
            }
            renamed => Ok(renamed?),
        }
    }

    fn full_or(&self, action: &'static str, error: io::Error) -> StorageError {
        let folder = atomic_file::parent_of(&self.temporary);
        disk_room::full_or(StorageError::io(action, &self.temporary)(error), folder, self.written)
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

impl Drop for SavedWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.temporary); // It isn't taken for a saved one, whatever it holds.
        }
    }
}
