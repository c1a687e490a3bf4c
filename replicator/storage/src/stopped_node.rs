//! A stopped node's folder, opened to look at: nothing in it is mended, cut off or written, whatever is found.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use replicator_types::ModuleHash;

use crate::{
    Meta, SnapshotEntry, SnapshotManifest, SnapshotReader, StoppedLog, StorageError, disk_log,
    lock::DirLock,
    meta::{self, FoundMeta},
    module_store, snapshot,
};

/// The folder of a node that doesn't run. No node can start in it while this is held; others who only look may come too.
#[derive(Debug)]
pub struct StoppedNode {
    path: PathBuf,
    meta: Meta,
    _lock: Option<DirLock>,
}

impl StoppedNode {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if a node runs there; [`StorageError::NoNode`] if it is no node's; [`StorageError::Recovering`] if a recovery
    /// was interrupted; [`StorageError::Damaged`] if both meta files are.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        let lock = DirLock::observe(&path)?;
        let Some(FoundMeta { meta, .. }) = meta::read(&path)? else { return Err(StorageError::NoNode { path }) };
        if meta.recovery.is_some() {
            return Err(StorageError::Recovering { path });
        }
        Ok(Self { path, meta, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is, and what it remembers.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The log called `name`, every byte of it checked.
    ///
    /// # Errors
    /// [`StorageError::NotOurs`] if the folder never had such a log; [`StorageError::Damaged`] if anything in it that was durable isn't as it was
    /// written.
    pub fn log(&self, name: &str) -> Result<StoppedLog, StorageError> {
        let Some(tag) = self.meta.logs.get(name) else {
            let what =
                format!("it has no log {name:?}: this node never took part in a cluster, or has another part in it");
            return Err(StorageError::NotOurs { path: self.path.clone(), what });
        };
        let dir = self.path.join(name);
        if !disk_log::is_log(&dir) {
            return Err(StorageError::damaged(dir, None, "the log's folder is missing"));
        }
        StoppedLog::read_in(&dir, *tag)
    }

    /// The images in the folder, the oldest first; their data files aren't looked at.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn images(&self) -> Result<Vec<SnapshotEntry>, StorageError> {
        let folder = self.path.join(snapshot::FOLDER);
        if folder.is_dir() { snapshot::entries(&folder) } else { Ok(Vec::new()) }
    }

    /// Opens an image, to be read from its beginning.
    ///
    /// # Errors
    /// [`StorageError::DamagedSnapshot`] or [`StorageError::Version`] if it can't be begun.
    pub fn image(&self, manifest: SnapshotManifest) -> Result<SnapshotReader, StorageError> {
        SnapshotReader::open(&self.path.join(snapshot::FOLDER), manifest)
    }

    /// A module's bytes, checked; `None` if it isn't in the folder.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the file's bytes are others.
    pub fn module(&self, hash: ModuleHash) -> Result<Option<Bytes>, StorageError> {
        module_store::get_in(&self.path, hash)
    }
}
