//! Mending what the disk has damaged, from the peers, in place: the node keeps its disk id, its vote and its promises.
//!
//! A damaged log is mended before anything of this node takes part ([`open_log`], [`asking`]): as long as those who may have its entries don't answer, the
//! start waits for them. Damaged images and modules are other copies of what peers have, and are taken from these where they are read. Whatever was
//! mended is told by the log, by `status` until the next start, and by `replicator log verify` later on.

mod asking;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use replicator_storage::{DiskLog, DiskLogOptions, Matching, MendError, NodeDir, OpenReport, Repair, StorageError};
use replicator_types::{ClusterId, Lineage, LogIndex, Position};
use tokio::runtime::Handle;

use self::asking::Peerage;
use super::{EnvelopeError, Node, images::IMAGES, startup::LOG};
use crate::{config::Peer, transport::Peers};

/// Between two rounds of asking.
const RETRY: Duration = Duration::from_secs(1);
/// What is read of a log for a peer at once.
const READ_BYTES_MAX: usize = 4 << 20;
/// What `status` tells of, at most.
const TOLD_MAX: usize = 20;

/// What was mended since this start.
pub(super) struct Repairs {
    dir: NodeDir,
    told: Mutex<Vec<String>>,
}

impl Repairs {
    /// Begins with what opening the folder has mended.
    pub(super) fn new(dir: NodeDir) -> Arc<Self> {
        let told = dir.mended().iter().map(ToString::to_string).collect();
        Arc::new(Self { dir, told: Mutex::new(told) })
    }

    /// What was mended, for people, the oldest first.
    pub(super) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs the repairs, and keeps them for `status` and `log verify`. That they can't be kept harms nothing.
    pub(super) fn note(&self, repairs: &[Repair]) {
        if repairs.is_empty() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for repair in repairs {
            tracing::warn!("mended {repair}");
            told.push(repair.to_string());
        }
        let spare = told.len().saturating_sub(TOLD_MAX);
        told.drain(..spare);
        if let Err(error) = self.dir.note_repairs(repairs) {
            tracing::warn!(%error, "can't keep what was mended");
        }
    }
}

/// What mending needs of the node.
pub(super) struct Means<'a> {
    pub(super) dir: &'a NodeDir,
    pub(super) peers: &'a Peers,
    /// The other nodes, as this one's configuration has them.
    pub(super) configured: &'a [Peer],
    pub(super) repairs: &'a Repairs,
}

/// Opens a log, having mended it if it is damaged. Waits for peers as long as it takes, telling `waiting` for what.
///
/// # Errors
/// As [`DiskLog::open`]; a damage says why it can't be mended.
pub(super) async fn open_log(
    means: Means<'_>,
    name: &'static str,
    waiting: impl Fn(&str),
) -> Result<(DiskLog, OpenReport), StorageError> {
    let damage = match DiskLog::open(means.dir, name, DiskLogOptions::default()) {
        Err(damage @ StorageError::Damaged { .. }) => damage,
        opened => return opened,
    };
    let Some(cluster) = means.dir.meta().cluster else { return Err(damage) };
    if let StorageError::Damaged { path, offset, what } = &damage {
        tracing::warn!(file = %path.display(), offset, "the log is damaged, and is mended before this node takes part: {what}");
    }
    // Before anything is sent, as at each start (safety rule 2).
    means.dir.raise_incarnation()?;
    let images = (name == LOG).then_some(IMAGES);
    let mut told = String::new();
    loop {
        let mut peerage = Peerage::new(Handle::current(), means.dir, means.configured, means.peers, cluster, name);
        let dir = means.dir.clone();
        let mended = tokio::task::spawn_blocking(move || DiskLog::mend(&dir, name, images, &mut peerage));
        match mended.await.expect("mending a log doesn't panic") {
            Ok(repairs) => {
                means.repairs.note(&repairs);
                return DiskLog::open(means.dir, name, DiskLogOptions::default());
            }
            Err(MendError::Storage(error)) => return Err(error),
            Err(error @ MendError::NotNow { .. }) => {
                let now = error.to_string();
                if now != told {
                    tracing::warn!("can't start yet: {now}");
                    waiting(&now);
                    told = now;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

impl Node {
    /// How [`open_log`] reaches the world.
    pub(super) fn means(&self) -> Means<'_> {
        Means { dir: &self.dir, peers: &self.peers, configured: &self.config.peers, repairs: &self.repairs }
    }

    /// Entries for a peer that has lost them; see `PeerService.FetchLog`. Also while this node doesn't take part: it has its log, and that is enough.
    ///
    /// # Errors
    /// If it is of another cluster or history, has no such log open, or can't read it.
    pub(crate) async fn serve_log(
        &self,
        cluster: Option<(ClusterId, Lineage)>,
        name: &str,
        entries: Range<LogIndex>,
        anchor: Position,
    ) -> Result<Matching, EnvelopeError> {
        if cluster.is_none() || cluster != self.dir.meta().cluster {
            let why = format!("{} takes no part in that cluster's history", self.config.name);
            return Err(EnvelopeError::Refused(why));
        }
        let group_log = || self.group_log.get().cloned();
        let log = if name == LOG { Some(self.log.clone()) } else { group_log() };
        let not_yet = || EnvelopeError::NotReady(format!("{} has no log {name:?} open yet", self.config.name));
        let log = log.ok_or_else(not_yet)?;
        let read = move || log.matching(entries.start, entries.end, anchor, READ_BYTES_MAX);
        let read = tokio::task::spawn_blocking(read).await;
        Ok(read.expect("reading a log doesn't panic")?)
    }
}
