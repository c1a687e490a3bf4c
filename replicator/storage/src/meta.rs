//! What a node must never forget: who it is, what it voted, what it sealed. Two small files with the same content, replaced as a whole.
//!
//! Nobody else has it, so one of the two makes up for the other. An update replaces both before it returns: whichever is whole has everything that was
//! promised, and the greater generation is the newer one.

use std::{collections::BTreeMap, path::Path};

use replicator_types::{
    ClusterId, DiskId, Epoch, Incarnation, Lineage, LogIndex,
    codec::{CodecError, Format},
};
use serde::{Deserialize, Serialize};

use crate::{StorageError, atomic_file, sealed_file};

/// The files' names in the node's folder.
pub(crate) const META_FILE: &str = "meta";
pub(crate) const META_FILES: [&str; 2] = [META_FILE, "meta.copy"];

const MAGIC: [u8; 8] = *b"RPLMETA\n";

/// The durable identity and promises of one data folder. Read with [`crate::NodeDir::meta`], changed with
/// [`crate::NodeDir::update`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The node's name in the configuration. Invariant: never changes.
    pub node: String,
    /// The folder's identity, made with it (safety rule 1). Invariant: changes only when a recovery ends.
    pub disk: DiskId,
    /// How often the disk was started (safety rule 2). Invariant: never decreases.
    pub incarnation: Incarnation,
    /// The cluster and the history that the folder takes part in; `None` until it joined one.
    pub cluster: Option<(ClusterId, Lineage)>,
    /// The cluster's mode, as the configuration spells it.
    pub mode: Option<String>,
    /// The strategy's vote, in its own encoding (safety rule 4). That it never regresses, the strategy must see to.
    pub vote: Option<Vec<u8>>,
    /// The last epoch that this disk acknowledges nothing of any more (safety rule 8). Invariant: never decreases.
    pub sealed_epoch: Option<Epoch>,
    /// The greatest (epoch, attempt number) obeyed (safety rule 6). Invariant: never decreases.
    pub seal_attempt: Option<(Epoch, u64)>,
    /// What this disk remembers of the others, to notice an old copy put back (safety rule 2).
    pub peers: BTreeMap<DiskId, PeerMemory>,
    /// The members of the cluster as last known here: whom to ask at a start, before the log is read.
    pub members: Vec<MemberMemory>,
    /// An operator's recovery that was begun here, in the node's own encoding. Until it has ended the folder can't be started: some of its files
    /// may be of the old history, and some of the new one.
    pub recovery: Option<Vec<u8>>,
    /// The logs that exist in this folder, each with its tag, so that a missing or foreign one is noticed.
    pub(crate) logs: BTreeMap<String, LogTag>,
}

/// What is remembered of another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMemory {
    /// The greatest incarnation seen of it.
    pub incarnation: Incarnation,
    /// The random number of that start, to tell a repeated message of it from one of another copy of the disk.
    pub start: u64,
    /// The greatest index that it said was durable there, and committed.
    pub durable: LogIndex,
}

/// A member of the cluster, as last known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberMemory {
    /// Its node's name.
    pub node: String,
    /// Its disk.
    pub disk: DiskId,
    /// Where peers reach it.
    pub peer_address: String,
    /// Whether it votes.
    pub voter: bool,
}

/// A random number that every record of one log carries, so that bytes of another log are never taken for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogTag(pub(crate) u64);

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// How often it was written; 0: by a version that kept one file.
    generation: u64,
    meta: Meta,
}

impl Format for Stored {
    const WHAT: &'static str = "meta file";
    const VERSION: u8 = 3;
}

/// As the version before wrote it: without a generation, and without a copy.
impl Format for Meta {
    const WHAT: &'static str = "meta file";
    const VERSION: u8 = 2;
}

impl Meta {
    /// The meta of a folder that has just been made.
    pub(crate) fn new(node: &str, disk: DiskId) -> Self {
        Self {
            node: node.to_owned(),
            disk,
            incarnation: Incarnation(0),
            cluster: None,
            mode: None,
            vote: None,
            sealed_epoch: None,
            seal_attempt: None,
            peers: BTreeMap::new(),
            members: Vec::new(),
            recovery: None,
            logs: BTreeMap::new(),
        }
    }

    /// The names of the logs in the folder.
    pub fn logs(&self) -> impl Iterator<Item = &str> {
        self.logs.keys().map(String::as_str)
    }

    /// Asserts that `next` may follow this one.
    ///
    /// # Panics
    /// If it would break a promise that the disk has made. That is a bug, and going on could lose acknowledged writes.
    pub(crate) fn assert_may_become(&self, next: &Self) {
        if let Err(broken) = self.may_become(next) {
            panic!("{broken}");
        }
    }

    /// Whether `next` may follow this one; else which promise it would break.
    fn may_become(&self, next: &Self) -> Result<(), String> {
        let require = |kept: bool, what: &str| if kept { Ok(()) } else { Err(what.to_owned()) };
        require(self.node == next.node, "a folder keeps its node")?;
        if self.recovery.is_some() && next.recovery.is_none() {
            // Rules 1 and 3: what the old disk promised to the old history binds nobody in the new one, and must not be taken for it.
            require(self.disk != next.disk, "a recovery ends with another disk id")?;
            require(self.cluster != next.cluster, "a recovery ends with another lineage")?;
        } else {
            require(self.disk == next.disk, "a folder keeps its disk id")?;
        }
        let (old, new) = (self.incarnation, next.incarnation);
        require(old <= new, &format!("incarnation {new} after {old}"))?;
        let (old, new) = (self.sealed_epoch, next.sealed_epoch);
        require(old <= new, &format!("sealed epoch {new:?} after {old:?}"))?;
        let (old, new) = (self.seal_attempt, next.seal_attempt);
        require(old <= new, &format!("seal attempt {new:?} after {old:?}"))
    }
}

/// What the two files say.
#[derive(Debug)]
pub(crate) struct FoundMeta {
    pub(crate) meta: Meta,
    pub(crate) generation: u64,
    /// Files that aren't as they should be, though what they should hold is known: each with what is wrong.
    pub(crate) damages: Vec<StorageError>,
    /// Whether both must be written, though none is damaged: an update was interrupted, or the version before wrote it.
    pub(crate) outdated: bool,
}

/// Reads the meta of the folder; `None` if it has none.
///
/// # Errors
/// If neither file is whole, or they contradict each other; [`StorageError::Version`] if another version wrote one.
pub(crate) fn read(dir: &Path) -> Result<Option<FoundMeta>, StorageError> {
    let paths = META_FILES.map(|name| dir.join(name));
    let mut found = Vec::new();
    let mut damages = Vec::new();
    let mut damaged = Vec::new();
    for path in &paths {
        let Some(bytes) = atomic_file::read(path)? else {
            damages.push(StorageError::damaged(path, None, "the file is missing"));
            continue;
        };
        match decode(path, &bytes) {
            Ok(stored) => found.push(stored),
            Err(error @ StorageError::Damaged { .. }) => {
                damages.push(error);
                damaged = bytes;
            }
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|stored| stored.generation);
    let Some(newest) = found.pop() else {
        let missing = paths.iter().all(|path| !path.exists());
        return if missing { Ok(None) } else { Err(damages.swap_remove(usize::from(!paths[0].exists()))) };
    };
    // Where the one that is whole tells, the place of the damage.
    let whole = sealed_file::encode(&MAGIC, &newest);
    let differing = whole.iter().zip(&damaged).position(|(whole, damaged)| whole != damaged);
    let place = differing.unwrap_or(damaged.len().min(whole.len())) as u64;
    if let Some(StorageError::Damaged { offset: offset @ Some(_), .. }) = damages.first_mut() {
        *offset = Some(place);
    }
    let mut outdated = newest.generation == 0;
    if outdated {
        damages.clear(); // The version before kept no copy, so none is missing.
    }
    if let Some(other) = found.pop().filter(|other| *other != newest) {
        let interrupted = other.generation + 1 == newest.generation && other.meta.may_become(&newest.meta).is_ok();
        let older = (&other.meta.node, other.meta.disk) == (&newest.meta.node, newest.meta.disk)
            && other.generation < newest.generation;
        if interrupted {
            outdated = true;
        } else if older {
            damages.push(StorageError::damaged(dir, None, "one of the two meta files is an older copy of the other"));
        } else {
            let what = "its two copies contradict each other, so it isn't known which one is this disk's";
            return Err(StorageError::damaged(&paths[0], None, what));
        }
    }
    Ok(Some(FoundMeta { meta: newest.meta, generation: newest.generation, damages, outdated }))
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Stored, StorageError> {
    let damaged = |what| StorageError::damaged(path, 0, what);
    match sealed_file::decode(&MAGIC, path, bytes, damaged) {
        Err(StorageError::Version { source: CodecError::Version { found: 2, .. }, .. }) => {
            Ok(Stored { generation: 0, meta: sealed_file::decode(&MAGIC, path, bytes, damaged)? })
        }
        decoded => decoded,
    }
}

/// Replaces the meta of the folder by that of this generation; durable on return. A crash leaves each file old or new.
pub(crate) fn write(dir: &Path, generation: u64, meta: &Meta) -> Result<(), StorageError> {
    let bytes = sealed_file::encode(&MAGIC, &Stored { generation, meta: meta.clone() });
    atomic_file::replace_all(&META_FILES.map(|name| dir.join(name)), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_version_before_opens_and_gets_a_copy() {
        let scratch = tempfile::tempdir().expect("a folder");
        let meta = Meta { vote: Some(vec![1, 2, 3]), incarnation: Incarnation(8), ..Meta::new("a", DiskId(5)) };
        std::fs::write(scratch.path().join(META_FILE), sealed_file::encode(&MAGIC, &meta)).expect("a file");
        let found = read(scratch.path()).expect("it is read").expect("it is there");
        assert_eq!((&found.meta, found.generation, found.damages.len()), (&meta, 0, 0));
        let dir = crate::NodeDir::open(scratch.path(), "a").expect("it opens");
        assert!(*dir.meta() == meta && dir.mended().is_empty());
        drop(dir);
        let found = read(scratch.path()).expect("it is read").expect("it is there");
        assert_eq!((found.meta, found.generation, found.outdated), (meta, 1, false));
        assert!(scratch.path().join(META_FILES[1]).is_file());
    }
}
