//! Modules by the SHA-256 of their bytes: `modules/<sha256>.wasm`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use replicator_types::ModuleHash;
use sha2::{Digest, Sha256};

use crate::{NodeDir, StorageError, atomic_file, disk_room};

const FOLDER: &str = "modules";
const ENDING: &str = ".wasm";

/// The modules that a node has. Clones share it.
#[derive(Debug, Clone)]
pub struct ModuleStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Keeps the folder's lock.
    dir: NodeDir,
}

impl ModuleStore {
    pub(crate) fn open(dir: NodeDir) -> Result<Self, StorageError> {
        let path = dir.path().join(FOLDER);
        let changing = dir.changing_modules();
        atomic_file::create_dir(&path)?;
        for name in atomic_file::names(&path)?.iter().filter(|name| name.ends_with(atomic_file::TEMPORARY)) {
            let leftover = path.join(name); // of a put that never returned
            fs::remove_file(&leftover).map_err(StorageError::io("remove", &leftover))?;
        }
        drop(changing);
        Ok(Self { shared: Arc::new(Shared { path, dir }) })
    }

    /// Stores a module under its hash; durable on return. One that is there already is left, unless it is damaged: then it is
    /// replaced by these bytes, which are its own.
    ///
    /// # Errors
    /// If it can't be written; [`StorageError::Full`] if the disk hasn't room for it.
    pub fn put(&self, bytes: &[u8]) -> Result<ModuleHash, StorageError> {
        let hash = hash_of(bytes);
        let path = self.path_of(hash);
        let _changing = self.shared.dir.changing_modules();
        // Not only its name is checked but its content too, and a name seen may still be another crash's unsynced one.
        if atomic_file::read(&path)?.is_some_and(|found| found == bytes) {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(StorageError::io("fsync", &path))?;
            atomic_file::sync_dir(&self.shared.path)?;
        } else {
            self.replace(&path, bytes)?;
        }
        Ok(hash)
    }

    /// A full disk gets back what a part of the module took.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
        let needed = bytes.len() as u64;
        disk_room::require(&self.shared.path, needed)?;
        atomic_file::replace(path, bytes).map_err(|error| {
            let error = disk_room::full_or(error, &self.shared.path, needed);
            if matches!(error, StorageError::Full { .. }) {
                let _ = fs::remove_file(atomic_file::temporary_name(path)); // Else the next start removes it.
            }
            error
        })
    }

    /// The module's bytes, checked against its hash; `None` if it isn't here.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the file's bytes are others. [`Self::put`] the right ones, from a peer, to repair it.
    pub fn get(&self, hash: ModuleHash) -> Result<Option<Bytes>, StorageError> {
        read(&self.path_of(hash), hash)
    }

    /// The length of a module's file; `None` if it isn't here. Its bytes are not checked.
    ///
    /// # Errors
    /// If the file system can't tell.
    pub fn bytes(&self, hash: ModuleHash) -> Result<Option<u64>, StorageError> {
        let path = self.path_of(hash);
        match fs::metadata(&path) {
            Ok(file) => Ok(Some(file.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("look at", path)(error)),
        }
    }

    /// The hashes of all modules here, sorted. Their bytes are not checked.
    ///
    /// # Errors
    /// If the folder can't be read, or holds a file with another kind of name.
    pub fn list(&self) -> Result<Vec<ModuleHash>, StorageError> {
        list(&self.shared.path)?.into_iter().collect()
    }

    /// Removes a module; durable on return. The caller knows that no log entry and no snapshot needs it.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn remove(&self, hash: ModuleHash) -> Result<(), StorageError> {
        let path = self.path_of(hash);
        let _changing = self.shared.dir.changing_modules();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
            _ => atomic_file::sync_dir(&self.shared.path),
        }
    }

    fn path_of(&self, hash: ModuleHash) -> PathBuf {
        path_in(&self.shared.path, hash)
    }
}

/// Reads every module in the node's folder `dir`, and changes nothing: each one's hash, or its damage.
pub(crate) fn check(dir: &Path) -> Result<Vec<Result<ModuleHash, StorageError>>, StorageError> {
    let dir = dir.join(FOLDER);
    let checked = list(&dir)?.into_iter().map(|name| {
        let hash = name?;
        read(&path_in(&dir, hash), hash)?;
        Ok(hash)
    });
    Ok(checked.collect())
}

/// A module's bytes in the node's folder `dir`, checked; `None` if it isn't there.
pub(crate) fn get_in(dir: &Path, hash: ModuleHash) -> Result<Option<Bytes>, StorageError> {
    read(&path_in(&dir.join(FOLDER), hash), hash)
}

/// The hashes that the names in the folder of modules say, sorted; an error for each name that says none.
fn list(dir: &Path) -> Result<Vec<Result<ModuleHash, StorageError>>, StorageError> {
    let names = atomic_file::names(dir)?;
    let hashes = names.iter().filter(|name| !name.ends_with(atomic_file::TEMPORARY)).map(|name| {
        let hash = name.strip_suffix(ENDING).and_then(|hash| hash.parse().ok());
        let foreign = || StorageError::damaged(dir.join(name), None, "its name is not of a module");
        hash.filter(|hash| path_in(dir, *hash).ends_with(name)).ok_or_else(foreign)
    });
    Ok(hashes.collect())
}

fn read(path: &Path, hash: ModuleHash) -> Result<Option<Bytes>, StorageError> {
    let Some(bytes) = atomic_file::read(path)? else { return Ok(None) };
    let found = hash_of(&bytes);
    if found != hash {
        return Err(StorageError::damaged(path, None, format!("its SHA-256 is {found}")));
    }
    Ok(Some(bytes.into()))
}

fn path_in(dir: &Path, hash: ModuleHash) -> PathBuf {
    dir.join(format!("{hash}{ENDING}"))
}

pub(crate) fn hash_of(bytes: &[u8]) -> ModuleHash {
    ModuleHash(Sha256::digest(bytes).into())
}
