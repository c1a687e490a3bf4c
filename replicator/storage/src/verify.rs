//! Looks at a stopped node's folder: all of its files, and every damage. Changes nothing.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use replicator_types::{LogIndex, ModuleHash};

use crate::{
    LogDump, LogReport, Meta, NodeDir, SnapshotEntry, StorageError, atomic_file, disk_log,
    lock::{DirLock, LOCK_FILE},
    meta::{self, FoundMeta},
    module_store, repairs, snapshot,
};

/// What is in a node's folder.
#[derive(Debug)]
pub struct NodeReport {
    /// The folder.
    pub path: PathBuf,
    /// Who the disk is, or why that can't be read.
    pub meta: Result<Meta, StorageError>,
    /// What is wrong with one of its two files, while the other one makes up for it.
    pub meta_damages: Vec<StorageError>,
    /// What was mended here before, the oldest first: seconds since 1970, and what it was.
    pub repairs: Vec<String>,
    /// Its logs, by name.
    pub logs: Vec<LogReport>,
    /// Its modules.
    pub modules: ModulesReport,
    /// Its folders of snapshots, by name.
    pub snapshots: Vec<SnapshotsReport>,
    /// Folders that couldn't be read at all.
    pub unreadable: Vec<StorageError>,
}

/// What is in the folder of modules.
#[derive(Debug, Default)]
pub struct ModulesReport {
    /// Those that are whole, sorted.
    pub whole: Vec<ModuleHash>,
    /// The others.
    pub damages: Vec<StorageError>,
}

/// What is in a folder of snapshots.
#[derive(Debug)]
pub struct SnapshotsReport {
    /// The folder.
    pub path: PathBuf,
    /// Its snapshots, the oldest first. An error is a damage of the manifest or of the data file.
    pub snapshots: Vec<SnapshotEntry>,
    /// Files that aren't of snapshots. They harm nothing.
    pub foreign: Vec<PathBuf>,
}

impl NodeReport {
    /// Every damage that was found.
    pub fn damages(&self) -> impl Iterator<Item = &StorageError> {
        let logs = self.logs.iter().flat_map(|log| &log.damages);
        let entries = self.snapshots.iter().flat_map(|folder| &folder.snapshots);
        let snapshots = entries.filter_map(|entry| entry.manifest.as_ref().err());
        let others = self.modules.damages.iter().chain(&self.unreadable);
        self.meta.as_ref().err().into_iter().chain(&self.meta_damages).chain(logs).chain(others).chain(snapshots)
    }

    /// Whether there is none. A torn tail is none: nobody was told of it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages().next().is_none()
    }
}

impl NodeDir {
    /// Reads every byte of a stopped node's folder and checks it. Changes nothing; no node can start there meanwhile.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if a node runs there, or if the folder can't be read. Damage is in the report.
    pub fn verify(path: impl AsRef<Path>) -> Result<NodeReport, StorageError> {
        let path = path.as_ref();
        let _lock = DirLock::observe(path)?;
        let folders = folders(path)?;
        let (meta, meta_damages) = match read_meta(path) {
            Ok(found) => (Ok(found.meta), found.damages),
            Err(error @ StorageError::NoNode { .. }) => return Err(error),
            Err(error) => (Err(error), Vec::new()),
        };
        let repairs = repairs::read(path);
        let tag = |name: &str| meta.as_ref().ok().and_then(|meta| meta.logs.get(name).copied());
        let found = folders.iter().filter(|name| disk_log::is_log(&path.join(name)));
        let known = meta.iter().flat_map(|meta| meta.logs.keys());
        let logs: BTreeSet<_> = found.chain(known).cloned().collect();
        let mut unreadable = Vec::new();
        for name in logs.iter().filter(|name| meta.is_ok() && tag(name).is_none()) {
            let what = "the folder holds a log that the meta file doesn't know";
            unreadable.push(StorageError::damaged(path.join(name), None, what));
        }
        let mut modules = ModulesReport::default();
        match module_store::check(path) {
            Ok(checked) => {
                for module in checked {
                    match module {
                        Ok(hash) => modules.whole.push(hash),
                        Err(error) => modules.damages.push(error),
                    }
                }
            }
            Err(error) => unreadable.push(error),
        }
        let mut snapshots = Vec::new();
        for folder in folders.iter().filter(|name| snapshot::is_folder_name(name)).map(|name| path.join(name)) {
            match snapshot::check_folder(&folder) {
                Ok((entries, foreign)) => {
                    snapshots.push(SnapshotsReport { path: folder, snapshots: entries, foreign });
                }
                Err(error) => unreadable.push(error),
            }
        }
        let logs = logs.iter().map(|name| disk_log::inspect(&path.join(name), tag(name))).collect();
        Ok(NodeReport { path: path.to_owned(), meta, meta_damages, repairs, logs, modules, snapshots, unreadable })
    }

    /// The meta file of a stopped node's folder.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if a node runs there; [`StorageError::Damaged`] if the file is damaged or missing.
    pub fn verify_meta(path: impl AsRef<Path>) -> Result<Meta, StorageError> {
        let path = path.as_ref();
        let _lock = DirLock::observe(path)?;
        Ok(read_meta(path)?.meta)
    }

    /// The records of the log called `log` in a stopped node's folder: those of entries from `from` on, and what cuts there.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if a node runs there; [`StorageError::Damaged`] if the meta file is, or doesn't know such a log.
    pub fn dump(path: impl AsRef<Path>, log: &str, from: LogIndex) -> Result<LogDump, StorageError> {
        let path = path.as_ref();
        let lock = DirLock::observe(path)?;
        let meta = read_meta(path)?.meta;
        let Some(tag) = meta.logs.get(log) else {
            let known = meta.logs.keys().cloned().collect::<Vec<_>>().join(", ");
            let what = format!("it has no log {log:?}; it has: {known}");
            return Err(StorageError::NotOurs { path: path.to_owned(), what });
        };
        LogDump::open(&path.join(log), *tag, from, lock)
    }
}

fn read_meta(path: &Path) -> Result<FoundMeta, StorageError> {
    meta::read(path)?.ok_or_else(|| match path.join(LOCK_FILE).is_file() {
        true => StorageError::damaged(path.join(meta::META_FILE), None, "the file is missing"),
        false => StorageError::NoNode { path: path.to_owned() },
    })
}

/// The folders in the node's, but for what was set aside.
fn folders(path: &Path) -> Result<Vec<String>, StorageError> {
    if !path.is_dir() {
        let source = std::io::ErrorKind::NotFound.into();
        return Err(StorageError::Io { path: path.to_owned(), action: "read the folder", source });
    }
    let names = atomic_file::names(path)?.into_iter();
    Ok(names.filter(|name| !crate::node_dir::is_set_aside(name) && path.join(name).is_dir()).collect())
}
