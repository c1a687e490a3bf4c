//! A stopped node's folder, for the offline engine: which of its log's records are the machine's, and up to where they are committed.
//!
//! A log doesn't say how far it is committed, and what a replica has may never have been: a majority, or a later epoch, may have other entries
//! in its place. A folder knows of
//!
//! - its images, which hold nothing else;
//! - what it remembers of its peers' disks, which tell it every few seconds how far theirs are durable and committed;
//! - in majority mode, all that is durable, if this disk is the only voter;
//! - in chain mode, where the epochs of which it has entries began; and all that is durable, if it was alone in the last of them.

use std::path::Path;

use replicator_offline::{Folder, OfflineError};
use replicator_storage::{Meta, ReadLog, SnapshotEntry, StoppedLog, StoppedNode, StorageError};
use replicator_types::{LogIndex, Position, codec};

use super::{
    reading::framing,
    startup::{GROUP_LOG, LOG},
};
use crate::{
    config::Mode,
    replication::{
        chain::offline as group,
        majority::offline::{self, LedgerError},
    },
};

/// Why a stopped node's folder can't be read.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    /// Its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// One of its logs.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Its images.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The members that its newest image names.
    #[error("the folder's newest image can't be read: {0}")]
    Image(codec::CodecError),
    /// There is no state in it.
    #[error("{node} holds no state: {why}. Name the folder of another node")]
    NoState {
        /// Its name.
        node: String,
        /// Why.
        why: &'static str,
    },
}

impl StoppedError {
    /// Whether the disk can't be trusted.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let is_damaged =
            |error: &StorageError| matches!(error, StorageError::Damaged { .. } | StorageError::Version { .. });
        match self {
            Self::Storage(error) | Self::Ledger(LedgerError::Storage(error)) => is_damaged(error),
            Self::Ledger(LedgerError::Entry { .. }) | Self::Image(_) => true,
            Self::Offline(error) => error.is_damage(),
            Self::NoState { .. } => false,
        }
    }
}

/// Opens the folder of a node that doesn't run. Changes nothing in it, and keeps nodes out as long as it is held.
///
/// # Errors
/// If a node runs there, if it is damaged, or if it is no replica's.
pub fn open(path: &Path) -> Result<Folder, StoppedError> {
    let node = StoppedNode::open(path)?;
    let no_state = |why| StoppedError::NoState { node: node.meta().node.clone(), why };
    let chain_mode = match node.meta().mode.as_deref() {
        Some(mode) => mode.starts_with(&Mode::Chain.to_string()),
        None => return Err(no_state("it never took part in a cluster")),
    };
    if !node.meta().logs().any(|name| name == LOG) {
        return Err(no_state("it has no log of the application, as a witness hasn't"));
    }
    let log = node.log(LOG)?;
    let framing = framing(if chain_mode { Mode::Chain } else { Mode::Majority });
    let committed = if chain_mode { in_chain(&node, &log)? } else { in_majority(&node, &log)? };
    let committed = committed.max(told_by_peers(node.meta()));
    // What peers have beyond this log's end, it can't give.
    let committed = committed.min(log.ends().last.map(|last| last.index));
    Ok(Folder::new(node, log, framing, committed)?)
}

/// The greatest index of which another disk said that it is durable there, and committed.
fn told_by_peers(meta: &Meta) -> Option<LogIndex> {
    meta.peers.values().map(|peer| peer.durable).max()
}

fn in_majority(node: &StoppedNode, log: &StoppedLog) -> Result<Option<LogIndex>, StoppedError> {
    let images = node.images()?.into_iter().rev();
    let newest = images.filter_map(|SnapshotEntry { manifest, .. }| manifest.ok()).next();
    let imaged = newest.map_or_else(|| Ok(Vec::new()), |image| offline::members_of_image(&image.info.extra));
    let ledger = offline::read(log, imaged.map_err(StoppedError::Image)?, |_, _| Ok(()))?;
    let mut voters = ledger.members.iter().filter(|member| member.voter);
    let alone = voters.next().is_some_and(|voter| voter.disk == node.meta().disk) && voters.next().is_none();
    Ok(log.ends().durable.filter(|_| alone).map(|durable| durable.index))
}

fn in_chain(node: &StoppedNode, log: &StoppedLog) -> Result<Option<LogIndex>, StoppedError> {
    let book = group::read(&node.log(GROUP_LOG)?)?;
    let last = log.ends().last.unwrap_or_default();
    // An epoch of which there are entries was entered, so its configuration was decided.
    let entered = book.configurations.iter().rfind(|configuration| configuration.epoch <= last.epoch);
    let start = entered.and_then(|configuration| configuration.start).map(|start: Position| start.index);
    let alone = entered.is_some_and(|configuration| {
        configuration.epoch == last.epoch
            && configuration.chain.iter().all(|life| life.disk == node.meta().disk)
            && book.configurations.last() == Some(configuration)
    });
    Ok(start.max(log.ends().durable.filter(|_| alone).map(|durable| durable.index)))
}
