//! What a node tells of itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_storage::{Log, LogRoom};
use replicator_types::{ClusterId, Digest, DiskId, Epoch, Incarnation, Lineage, LogIndex};
use tokio::sync::watch;

use super::{AppliedState, Divergence, Node, NodeError, Restart, Stage, applier::Work};
use crate::replication::{ChainView, Images as _, Member, Role};

/// After this long without a quorum's answer, a primary says so. Healthy ones get one with each heartbeat.
const QUORUM_SILENCE: Duration = Duration::from_secs(1);

/// How often health is found out, and how long that may take.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);
const HEALTH_TIMEOUT: Duration = Duration::from_millis(750);

/// The last way out, where a node waits for others.
pub(super) const IF_LOST: &str = "If too many nodes are lost for ever: `replicator recover`";

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No cluster yet.
    Blank,
    /// Asks its peers about its disk.
    Checking,
    /// Takes part, in this role.
    Running(Role),
    /// Stands still.
    Halted,
    /// Replicates, and answers nobody: its state isn't what other replicas have.
    Quarantined,
}

/// A node's own view.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its name.
    pub node: String,
    /// Its disk.
    pub disk: DiskId,
    /// How often that was started.
    pub incarnation: Incarnation,
    /// Its cluster and history.
    pub cluster: Option<(ClusterId, Lineage)>,
    /// What it does.
    pub condition: Condition,
    /// More about that, for people.
    pub detail: String,
    /// The current term.
    pub epoch: Epoch,
    /// The primary, if known.
    pub primary: Option<Member>,
    /// The members, and on the primary how far each log is known to be durable.
    pub members: Vec<(Member, LogIndex)>,
    /// The end of the log.
    pub last: LogIndex,
    /// Its durable end.
    pub durable: LogIndex,
    /// Its committed end.
    pub committed: LogIndex,
    /// The machine.
    pub applied: AppliedState,
    /// The chain, in chain mode.
    pub chain: Option<ChainView>,
    /// How the start went.
    pub restart: Restart,
    /// The position of the newest image in the folder.
    pub image: Option<LogIndex>,
    /// What the log can still take.
    pub room: LogRoom,
    /// Where its state differs from that of other replicas, if it does.
    pub divergence: Option<Arc<Divergence>>,
    /// The last index that has left the log; everything up to there is in images.
    pub purged: Option<LogIndex>,
}

impl Node {
    /// What this node is, holds and sees, now.
    #[must_use]
    pub fn status(&self) -> Status {
        let applied = self.applier.state.borrow().clone();
        let ends = self.log.ends();
        let index = |at: Option<replicator_types::Position>| at.map_or(LogIndex(0), |at| at.index);
        let mut status = Status {
            node: self.config.name.to_string(),
            disk: self.disk,
            incarnation: self.incarnation,
            cluster: self.dir.meta().cluster,
            condition: Condition::Blank,
            detail: String::new(),
            epoch: Epoch(0),
            primary: None,
            members: Vec::new(),
            last: index(ends.last),
            durable: index(ends.durable),
            committed: LogIndex(0),
            applied,
            chain: None,
            restart: self.restart(),
            image: self.images.newest().map(|image| image.position.index),
            room: self.log.room(),
            divergence: self.quarantine.divergence(),
            purged: ends.purged.map(|at| at.index),
        };
        let stage = self.stage.borrow().clone();
        match stage {
            Stage::Blank(detail) => {
                // A cluster that was never heard of again binds nobody.
                status.cluster = None;
                status.detail = detail;
            }
            Stage::Checking(detail) => (status.condition, status.detail) = (Condition::Checking, detail),
            Stage::Running(running) => {
                let view = running.strategy.view().borrow().clone();
                let progress = running.strategy.progress();
                let matched = |disk| progress.matched.iter().find(|(d, _)| *d == disk).map_or(LogIndex(0), |(_, i)| *i);
                status.condition = Condition::Running(view.role);
                status.epoch = view.epoch;
                status.chain = running.strategy.chain();
                status.primary = view.primary().cloned();
                status.members = view.members.iter().map(|m| (m.clone(), matched(m.disk))).collect();
                status.committed = progress.committed.unwrap_or_default();
                status.detail = self.detail(&status, view.role, progress.quorum_silent_for);
            }
        }
        if let Some(full) = disk_full(&status).filter(|_| !self.config.witness) {
            let rest = std::mem::take(&mut status.detail);
            status.detail = if rest.is_empty() { full } else { format!("{full}; {rest}") };
        }
        if let Some(told) = self.quarantine.told().filter(|_| matches!(status.condition, Condition::Running(_))) {
            let rest = std::mem::take(&mut status.detail);
            status.condition = Condition::Quarantined;
            status.detail = if rest.is_empty() || status.primary.is_some() { told } else { format!("{told}; {rest}") };
        }
        if let Some(reason) = &status.applied.halted {
            (status.condition, status.detail) = (Condition::Halted, reason.clone());
        }
        status
    }

    /// What people should know of a node that takes part. Nothing, if all is well.
    fn detail(&self, status: &Status, role: Role, silent_for: Option<Duration>) -> String {
        let trouble = self.trouble(status, role, silent_for);
        match self.refused.borrow().as_ref().filter(|_| !*self.serving.borrow()) {
            Some(refused) if trouble.is_empty() => refused.clone(),
            Some(refused) => format!("{refused}; {trouble}"),
            None => trouble,
        }
    }

    fn trouble(&self, status: &Status, role: Role, silent_for: Option<Duration>) -> String {
        let voters = status.members.iter().filter(|(member, _)| member.voter).count();
        let unconfirmed = role != Role::Learner && status.applied.genesis.is_some() && !*self.serving.borrow();
        if let Some(module) = status.applied.awaited_module {
            let why = self.fetches.why_missing(module);
            let why = if why.is_empty() { why } else { format!(" ({why})") };
            return format!(
                "it stands still until it has the module {module}, which its log activates and no peer has given it yet{why}; `replicator module upload` \
                 gives it one"
            );
        }
        if let Some(why) = self.images.lacking(status.applied.index()) {
            return format!("it needs the whole state from a peer, and can't have it yet: {why}; it goes on asking");
        }
        match (&status.chain, silent_for) {
            (Some(chain), _) if !chain.detail.is_empty() => chain.detail.clone(),
            _ if status.primary.is_none() => format!("{}. {IF_LOST}", self.why_no_primary()),
            (Some(_), _) if unconfirmed => {
                format!(
                    "{} doesn't confirm itself to this node as primary: the way to it is cut, a member of the chain doesn't answer it, or the chain is being changed",
                    status.primary.as_ref().map_or("nobody", |primary| &primary.node)
                )
            }
            (None, Some(silent)) if silent > QUORUM_SILENCE && voters > 1 => {
                let seconds = silent.as_secs();
                format!(
                    "no majority has answered for {seconds} s: writes and linearizable reads wait for one. {IF_LOST}"
                )
            }
            (None, _) if unconfirmed => {
                format!(
                    "no primary confirms itself: fewer than a majority answer, or an election or a start is under way. {IF_LOST}"
                )
            }
            _ => String::new(),
        }
    }

    /// Whether clients are served, as it changes: the history has begun, the machine goes on, and a primary confirms itself.
    #[must_use]
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    pub(super) async fn watch_health(self: Arc<Self>) {
        loop {
            let begun = self.limits().is_some() && self.check_halted().is_ok();
            let stands = self.applier.state.borrow().awaited_module.is_some();
            let serves = begun && !stands && self.read_index(Instant::now() + HEALTH_TIMEOUT).await.is_ok();
            self.serving.send_if_modified(|serving| std::mem::replace(serving, serves) != serves);
            tokio::time::sleep(HEALTH_PERIOD).await;
        }
    }

    /// The hash of the whole state, and the index it belongs to. Costs time in proportion to the state.
    ///
    /// # Errors
    /// If the machine has halted.
    pub async fn state_hash(&self) -> Result<(Digest, LogIndex), NodeError> {
        let (hash, index) = self.ask_anyway(Work::StateHash).await?;
        Ok((hash, index.unwrap_or_default()))
    }
}

/// What a full disk means for this node's part.
fn disk_full(status: &Status) -> Option<String> {
    let free = status.room.free_bytes >> 20;
    match status.condition {
        _ if status.room.open => None,
        Condition::Running(Role::Primary) => {
            Some(format!("its disk is full ({free} MiB free): writes are refused until there is room, reads go on"))
        }
        _ if status.room.stalled => {
            Some(format!("its disk is full ({free} MiB free): its log waits for room, and it goes on by itself"))
        }
        _ => Some(format!("its disk is full ({free} MiB free): as primary it would refuse writes")),
    }
}
