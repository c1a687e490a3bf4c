//! Reads a saved snapshot back, and checks all of it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{SavedHead, head::START_BYTES};
use crate::{SnapshotData, SnapshotReader, StorageError, module_store};

/// A saved snapshot. Opening reads its head and compares its length; [`Self::verify`] reads the rest.
#[derive(Debug)]
pub struct SavedSnapshot {
    path: PathBuf,
    file: File,
    head: SavedHead,
    seal: [u8; 32],
    /// Where the modules begin.
    modules_at: u64,
}

impl SavedSnapshot {
    /// Opens the file.
    ///
    /// # Errors
    /// [`StorageError::DamagedSave`] if it is none, is cut off or goes on after its end, or its head isn't as it was written;
    /// [`StorageError::Version`] if it is of another version.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        let file = File::open(&path).map_err(StorageError::io("open", &path))?;
        let meta = file.metadata().map_err(StorageError::io("ask for the size of", &path))?;
        if !meta.is_file() {
            return Err(StorageError::damaged_save(&path, None, "it is no file"));
        }
        let bytes = meta.len();
        let mut start = [0; START_BYTES];
        let cut = |what: &str| StorageError::damaged_save(&path, bytes, format!("the file ends here, {what}"));
        if bytes < START_BYTES as u64 {
            return Err(cut("before its head does"));
        }
        read_exact(&path, &file, &mut start, 0)?;
        let size = SavedHead::size(&path, &start)?;
        if bytes < size as u64 {
            return Err(cut("before its head does"));
        }
        let mut head = vec![0; size];
        read_exact(&path, &file, &mut head, 0)?;
        let (head, seal) = SavedHead::from_bytes(&path, &head)?;
        let modules_at = size as u64;
        let whole = head.following().and_then(|following| following.checked_add(modules_at));
        match whole {
            Some(whole) if whole == bytes => Ok(Self { path, file, head, seal, modules_at }),
            Some(whole) if whole < bytes => {
                Err(StorageError::damaged_save(path, whole, format!("it goes on after its end, up to byte {bytes}")))
            }
            _ => Err(cut("before what its head names does")),
        }
    }

    /// What is in it.
    #[must_use]
    pub const fn head(&self) -> &SavedHead {
        &self.head
    }

    /// The SHA-256 of the head, which holds those of all else: it stands for the whole file.
    #[must_use]
    pub const fn seal(&self) -> [u8; 32] {
        self.seal
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.data_at() + self.head.manifest.data_bytes
    }

    fn data_at(&self) -> u64 {
        self.modules_at + self.head.modules.iter().map(|module| module.bytes).sum::<u64>()
    }

    /// The modules, checked, in the order of [`SavedHead::modules`].
    ///
    /// # Errors
    /// [`StorageError::DamagedSave`] if one's bytes are others.
    pub fn modules(&self) -> Result<Vec<Bytes>, StorageError> {
        let mut at = self.modules_at;
        let mut modules = Vec::with_capacity(self.head.modules.len());
        for module in &self.head.modules {
            let len = usize::try_from(module.bytes).expect("a file that was opened has them");
            let mut bytes = vec![0; len];
            read_exact(&self.path, &self.file, &mut bytes, at)?;
            let found = module_store::hash_of(&bytes);
            if found != module.hash {
                let what = format!("the module {} isn't as it was written: its SHA-256 is {found}", module.hash);
                return Err(StorageError::damaged_save(&self.path, at, what));
            }
            modules.push(bytes.into());
            at += module.bytes;
        }
        Ok(modules)
    }

    /// The image, to be read from its beginning.
    ///
    /// # Errors
    /// [`StorageError::DamagedSnapshot`] or [`StorageError::Version`] if it can't be begun.
    pub fn image(&self) -> Result<SnapshotReader, StorageError> {
        SnapshotReader::within(&self.path, self.clone_file()?, self.data_at(), self.head.manifest.clone())
    }

    /// The data file in it, as [`crate::SnapshotStore::receive`] takes it.
    ///
    /// # Errors
    /// If the file can't be opened once more.
    pub fn data_file(&self) -> Result<SnapshotData, StorageError> {
        let manifest = self.head.manifest.clone();
        Ok(SnapshotData::within(&self.path, self.clone_file()?, self.data_at(), manifest))
    }

    /// Reads all of it, and checks every byte.
    ///
    /// # Errors
    /// [`StorageError::DamagedSave`] with the place of the first byte or chunk that isn't as it was written.
    pub fn verify(&self) -> Result<(), StorageError> {
        self.modules()?;
        let read = self.image().and_then(SnapshotReader::read_to_end_checked);
        read.map_err(|error| match error {
            StorageError::DamagedSnapshot { path, offset, what } => {
                StorageError::DamagedSave { path, offset: offset.or(Some(self.data_at())), what }
            }
            other => other,
        })
    }

    fn clone_file(&self) -> Result<File, StorageError> {
        self.file.try_clone().map_err(StorageError::io("open", &self.path))
    }
}

fn read_exact(path: &Path, file: &File, into: &mut [u8], at: u64) -> Result<(), StorageError> {
    file.read_exact_at(into, at).map_err(StorageError::io("read", path))
}
