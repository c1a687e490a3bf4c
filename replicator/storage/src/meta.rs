//! What a node must never forget: who it is, what it voted, what it sealed. One small file, replaced as a whole.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use replicator_types::{ClusterId, DiskId, Epoch, Incarnation, Lineage, LogIndex, codec::Format};
use serde::{Deserialize, Serialize};

use crate::{StorageError, atomic_file, sealed_file};

/// The file's name in the node's folder.
pub(crate) const META_FILE: &str = "meta";

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

    /// Asserts that `next` may follow this one.
    ///
    /// # Panics
    /// If it would break a promise that the disk has made. That is a bug, and going on could lose acknowledged writes.
    pub(crate) fn assert_may_become(&self, next: &Self) {
        assert_eq!(self.node, next.node, "a folder keeps its node");
        if self.recovery.is_some() && next.recovery.is_none() {
            // Rules 1 and 3: what the old disk promised to the old history binds nobody in the new one, and must not be taken for it.
            assert_ne!(self.disk, next.disk, "a recovery ends with another disk id");
            assert_ne!(self.cluster, next.cluster, "a recovery ends with another lineage");
        } else {
            assert_eq!(self.disk, next.disk, "a folder keeps its disk id");
        }
        assert!(self.incarnation <= next.incarnation, "incarnation {} after {}", next.incarnation, self.incarnation);
        let (old, new) = (self.sealed_epoch, next.sealed_epoch);
        assert!(old <= new, "sealed epoch {new:?} after {old:?}");
        let (old, new) = (self.seal_attempt, next.seal_attempt);
        assert!(old <= new, "seal attempt {new:?} after {old:?}");
    }

    /// The file's content.
    pub(crate) fn to_file(&self) -> Vec<u8> {
        sealed_file::encode(&MAGIC, self)
    }

    /// Reads what [`Self::to_file`] wrote: any other byte is found out.
    pub(crate) fn from_file(path: &Path, bytes: &[u8]) -> Result<Self, StorageError> {
        sealed_file::decode(&MAGIC, path, bytes, |what| StorageError::damaged(path, None, what))
    }
}

/// Reads the meta of the folder; `None` if it has none.
pub(crate) fn read(dir: &Path) -> Result<Option<Meta>, StorageError> {
    let path = path(dir);
    atomic_file::read(&path)?.map(|bytes| Meta::from_file(&path, &bytes)).transpose()
}

/// Replaces the meta of the folder; durable on return.
pub(crate) fn write(dir: &Path, meta: &Meta) -> Result<(), StorageError> {
    atomic_file::replace(&path(dir), &meta.to_file())
}

fn path(dir: &Path) -> PathBuf {
    dir.join(META_FILE)
}
