//! A node: one replica of one application, with everything that it owns.
//!
//! It ties a strategy, a log and a machine together, and gives the service floor plain calls. It knows no generated types.

mod applier;
mod check;
mod peer;
mod proposer;
mod reads;
mod startup;
mod status;
mod subscriptions;
mod waiters;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use replicator_machine::{
    Command, CursorExpired, Entry, Limits, Outcome, PushCursor, QueryOutcome, Refusal, RequestResult, Trap,
};
use replicator_storage::{DiskLog, ModuleStore, NodeDir, StorageError};
use replicator_types::{
    ClusterId, Digest, DiskId, Incarnation, Lineage, LogIndex, Position, Seed, Sequence, SessionId, codec,
};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    applier::AppliedState,
    peer::EnvelopeError,
    startup::{Founding, StartError},
    status::{Condition, Status},
    subscriptions::{Subscribed, Target},
};
use self::{
    applier::{Applier, Query, Work},
    proposer::Proposal,
    reads::Reader,
    subscriptions::Subscribe,
    waiters::{Done, Waiters},
};
use crate::{config::NodeConfig, replication::Strategy, seams::Seams, transport::Peers};

/// Requests that one node may wait for at once.
pub const WAITERS_MAX: usize = 32_768;
/// How long the apply loop may take to answer what costs it next to nothing.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Their bytes, together.
const WAITING_BYTES_MAX: usize = 512 << 20;
/// The largest encoded entry: below what the log takes as one record.
pub(crate) const ENTRY_BYTES_MAX: usize = 12 << 20;

/// Why a call was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// Nothing was done. Try again, or another node.
    #[error("{0}")]
    NotReady(String),
    /// It may have been executed, or may be later.
    #[error("no outcome in time: it may or may not have been executed; repeat it under its sequence")]
    OutcomeUnknown,
    /// The machine stands still.
    #[error("this node has halted: {0}")]
    Halted(String),
    /// The node waits for as many requests as it may.
    #[error("this node has as many requests or subscriptions as it may; try again later, or another node")]
    Overloaded,
    /// The log refused the command.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The module trapped while it answered a query.
    #[error("the module trapped: {0}")]
    QueryTrapped(Trap),
    /// The cursor is too old.
    #[error(transparent)]
    CursorExpired(#[from] CursorExpired),
    /// The cursor, index or session is of another history.
    #[error("it belongs to another history (lineage {given}) of this cluster, which is now {ours}; begin anew")]
    LineageMismatch {
        /// The one given.
        given: Lineage,
        /// The cluster's.
        ours: Lineage,
    },
}

/// The first execution of a request, as every copy of it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Reply or trap.
    pub result: RequestResult,
    /// Where it was executed.
    pub position: Position,
    /// The running digest there.
    pub digest: Digest,
}

/// A command on its way to the log. Dropped, it is given up: it may still be executed.
pub struct Pending {
    seed: Seed,
    done: oneshot::Receiver<Done>,
    deadline: Instant,
    waiters: Arc<Waiters>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.waiters.give_up(self.seed);
    }
}

/// What a running replica has.
pub(crate) struct Running {
    pub(crate) strategy: Arc<dyn Strategy>,
    pub(crate) cluster: ClusterId,
    pub(crate) lineage: Lineage,
    proposals: mpsc::Sender<Proposal>,
    reads: mpsc::Sender<Reader>,
}

/// How far the node has come since its start.
#[derive(Clone)]
pub(crate) enum Stage {
    /// No cluster yet.
    Blank(String),
    /// Asks its peers about its disk.
    Checking(String),
    /// Takes part.
    Running(Arc<Running>),
}

/// Why a node can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What happened, and what to do.
    pub reason: String,
    /// Whether its disk can't be trusted.
    pub damage: bool,
}

/// One node.
pub struct Node {
    config: NodeConfig,
    disk: DiskId,
    incarnation: Incarnation,
    /// A random number of this start.
    start: u64,
    seams: Seams,
    dir: NodeDir,
    log: Arc<DiskLog>,
    modules: ModuleStore,
    peers: Peers,
    waiters: Arc<Waiters>,
    applier: Applier,
    stage: watch::Sender<Stage>,
    founding: mpsc::Sender<(Founding, oneshot::Sender<Result<LogIndex, String>>)>,
    adoptions: mpsc::Sender<(ClusterId, Lineage)>,
    failed: watch::Sender<Option<Failed>>,
    serving: watch::Sender<bool>,
}

impl Node {
    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its ways into the world.
    #[must_use]
    pub const fn seams(&self) -> &Seams {
        &self.seams
    }

    /// Its modules.
    #[must_use]
    pub const fn modules(&self) -> &ModuleStore {
        &self.modules
    }

    /// Ends with the reason when the node can't go on: its disk failed, or it turned out to be an old copy. The process must end.
    pub async fn failed(&self) -> Failed {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(failed) = &*failed.borrow_and_update() {
                return failed.clone();
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await; // Dropped with the node, which `self` holds.
            }
        }
    }

    fn fail(&self, error: impl Into<StartError>) {
        let error = error.into();
        tracing::error!("{error}");
        self.failed.send_replace(Some(Failed { reason: error.to_string(), damage: error.is_damage() }));
    }

    pub(crate) fn running(&self) -> Result<Arc<Running>, NodeError> {
        match &*self.stage.borrow() {
            Stage::Running(running) => Ok(running.clone()),
            Stage::Blank(detail) | Stage::Checking(detail) => Err(NodeError::NotReady(detail.clone())),
        }
    }

    /// The applied state, as it changes.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedState> {
        self.applier.state.clone()
    }

    /// The limits in the log, once it has begun.
    fn limits(&self) -> Option<Limits> {
        self.applier.state.borrow().genesis.as_ref().map(|genesis| genesis.limits.clone())
    }

    /// The cluster's history.
    ///
    /// # Errors
    /// If the node has none yet.
    pub fn lineage(&self) -> Result<Lineage, NodeError> {
        Ok(self.running()?.lineage)
    }

    /// Checks that something a client holds belongs to this history. 0 passes: it wasn't said.
    ///
    /// # Errors
    /// [`NodeError::LineageMismatch`], or that the node has no history yet.
    pub fn check_lineage(&self, given: Lineage) -> Result<(), NodeError> {
        let ours = self.lineage()?;
        if given == Lineage(0) || given == ours { Ok(()) } else { Err(NodeError::LineageMismatch { given, ours }) }
    }

    /// The primary's name and client address, as far as this node knows.
    #[must_use]
    pub fn primary(&self) -> Option<(String, String)> {
        let running = self.running().ok()?;
        let view = running.strategy.view().borrow().clone();
        view.primary().map(|member| (member.node.clone(), member.client_address.clone()))
    }

    /// Begins to execute a request, at most once. On return it has its place among this node's proposals, so that requests begun
    /// one after the other are executed in that order.
    ///
    /// # Errors
    /// A refusal is the log's; anything else says whether the outcome is unknown.
    pub async fn begin_execute(
        &self,
        session: SessionId,
        sequence: Sequence,
        acked_below: Sequence,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Pending, NodeError> {
        if let Some(limits) = self.limits()
            && request.len() as u64 > u64::from(limits.request_bytes)
        {
            let (bytes, max) = (request.len() as u64, u64::from(limits.request_bytes));
            return Err(Refusal::TooLarge { bytes, max }.into());
        }
        self.begin(Command::Request { session, sequence, acked_below, request }, deadline).await
    }

    /// Waits for what [`Self::begin_execute`] began, and answers with this replica's own outcome.
    ///
    /// # Errors
    /// As [`Self::begin_execute`].
    pub async fn executed(&self, pending: Pending) -> Result<Executed, NodeError> {
        match self.finish(pending).await?.outcome {
            Outcome::Executed { result, position, digest } => Ok(Executed { result, position, digest }),
            Outcome::Refused(refusal) => Err(refusal.into()),
            other => unreachable!("a request became {other:?}"),
        }
    }

    /// Opens a session. Returns its id, granted time to live (microseconds), window, and log index.
    ///
    /// # Errors
    /// As [`Self::begin_execute`].
    pub async fn open_session(
        &self,
        ttl_us: u64,
        deadline: Instant,
    ) -> Result<(SessionId, u64, u32, LogIndex), NodeError> {
        loop {
            let done = self.submit(Command::OpenSession { ttl_us }, deadline).await?;
            match done.outcome {
                Outcome::SessionOpened { session, ttl_us, window } => {
                    return Ok((session, ttl_us, window, done.position.index));
                }
                Outcome::Refused(Refusal::SessionIdTaken) => {} // 96 random bits met again: another seed.
                Outcome::Refused(refusal) => return Err(refusal.into()),
                other => unreachable!("an open session became {other:?}"),
            }
        }
    }

    /// Closes a session, or keeps it from expiring.
    ///
    /// # Errors
    /// As [`Self::begin_execute`]; keeping an unknown session is refused, closing one is not.
    pub async fn end_or_keep(&self, command: Command, deadline: Instant) -> Result<LogIndex, NodeError> {
        let done = self.submit(command, deadline).await?;
        match done.outcome {
            Outcome::SessionClosed { .. } | Outcome::Kept { existed: true } => Ok(done.position.index),
            Outcome::Kept { existed: false } => Err(Refusal::SessionExpired.into()),
            Outcome::Refused(refusal) => Err(refusal.into()),
            other => unreachable!("a session command became {other:?}"),
        }
    }

    /// Gets a command into the log, and waits until this replica has applied it.
    pub(crate) async fn submit(&self, command: Command, deadline: Instant) -> Result<Done, NodeError> {
        let pending = self.begin(command, deadline).await?;
        self.finish(pending).await
    }

    async fn begin(&self, command: Command, deadline: Instant) -> Result<Pending, NodeError> {
        let running = self.running()?;
        self.check_halted()?;
        let seed = Seed(self.seams.random());
        let entry = Entry { time_us: self.seams.clock.now_us(), seed, command };
        let encoded = Bytes::from(codec::encode(&entry));
        if encoded.len() > ENTRY_BYTES_MAX {
            let (bytes, max) = (encoded.len() as u64, ENTRY_BYTES_MAX as u64);
            return Err(Refusal::TooLarge { bytes, max }.into());
        }
        let done = self.waiters.add(seed, encoded.len()).ok_or(NodeError::Overloaded)?;
        let pending = Pending { seed, done, deadline, waiters: self.waiters.clone() };
        let given = running.proposals.send(Proposal { seed, encoded });
        match tokio::time::timeout_at(deadline.into(), given).await {
            Ok(Ok(())) => Ok(pending),
            Ok(Err(_)) => Err(NodeError::NotReady("this node is stopping".into())),
            Err(_) => Err(NodeError::NotReady(self.why_no_primary())),
        }
    }

    async fn finish(&self, mut pending: Pending) -> Result<Done, NodeError> {
        match tokio::time::timeout_at(pending.deadline.into(), &mut pending.done).await {
            Ok(Ok(done)) => Ok(done),
            // A dropped waiter is one whose machine has halted, perhaps after it had executed the request.
            Ok(Err(_)) => Err(NodeError::OutcomeUnknown),
            Err(_) => match self.waiters.give_up(pending.seed) {
                Some(false) => Err(NodeError::NotReady(self.why_no_primary())),
                Some(true) => Err(NodeError::OutcomeUnknown),
                // It was answered, or dropped, at this very moment.
                None => pending.done.try_recv().map_err(|_| NodeError::OutcomeUnknown),
            },
        }
    }

    fn why_no_primary(&self) -> String {
        match self.primary() {
            Some((primary, address)) => format!("the primary, {primary} at {address}, doesn't answer this node"),
            None => "no primary is known: fewer than a majority of the nodes are up and connected, or an election is \
                     under way; nothing was done"
                .to_owned(),
        }
    }

    fn check_halted(&self) -> Result<(), NodeError> {
        match &self.applier.state.borrow().halted {
            Some(reason) => Err(NodeError::Halted(reason.clone())),
            None => Ok(()),
        }
    }

    /// The index that a linearizable read which begins now must see.
    ///
    /// # Errors
    /// If no primary confirms itself before `deadline`.
    pub async fn read_index(&self, deadline: Instant) -> Result<LogIndex, NodeError> {
        let running = self.running()?;
        let (reader, index) = oneshot::channel();
        let asked = async {
            running.reads.send(reader).await.ok()?;
            index.await.ok()
        };
        let index = tokio::time::timeout_at(deadline.into(), asked).await;
        index.ok().flatten().ok_or_else(|| NodeError::NotReady(self.why_no_primary()))
    }

    /// Waits until this replica has applied everything up to `index`.
    ///
    /// # Errors
    /// If it hasn't by `deadline`, or has halted.
    pub async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), NodeError> {
        let mut state = self.applied();
        let reached = state.wait_for(|state| state.halted.is_some() || state.index() >= Some(index));
        match tokio::time::timeout_at(deadline.into(), reached).await {
            Ok(_) => self.check_halted(),
            Err(_) => {
                let applied = self.applier.state.borrow().index().unwrap_or_default();
                Err(NodeError::NotReady(format!("this replica is behind: it has applied {applied}, not {index}")))
            }
        }
    }

    /// Reads the state as it is, having waited for whatever the caller needs it to hold.
    ///
    /// # Errors
    /// If the module traps, the node has halted or has no module yet, or the deadline passes.
    pub async fn query(
        &self,
        session: Option<SessionId>,
        request: Bytes,
        deadline: Instant,
    ) -> Result<(Bytes, LogIndex), NodeError> {
        self.running()?;
        self.check_halted()?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let given = self.applier.give(Work::Query(Query { session, request, answer })).await;
            if given { answered.await.ok() } else { None }
        };
        let late = || NodeError::NotReady("the state machine is busy; try again, or another node".into());
        let answered = tokio::time::timeout_at(deadline.into(), asked).await.map_err(|_| late())?;
        let Some((outcome, index)) = answered else {
            self.check_halted()?;
            return Err(late());
        };
        match outcome {
            QueryOutcome::Answered { result: RequestResult::Reply(reply), .. } => Ok((reply, index)),
            QueryOutcome::Answered { result: RequestResult::Trap(trap), .. } => Err(NodeError::QueryTrapped(trap)),
            QueryOutcome::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// Begins to deliver pushes after a place, at this replica.
    ///
    /// # Errors
    /// If the place is no longer kept, or the node can't serve, or has as many subscriptions as it may.
    pub async fn subscribe(
        &self,
        targets: HashSet<Target>,
        after: Option<PushCursor>,
    ) -> Result<Subscribed, NodeError> {
        self.ask(|answer| Work::Subscribe(Subscribe { targets, after, answer })).await?
    }

    /// Whether this replica knows the session.
    ///
    /// # Errors
    /// If the node can't serve.
    pub async fn has_session(&self, session: SessionId) -> Result<bool, NodeError> {
        self.ask(|answer| Work::HasSession(session, answer)).await
    }

    /// Asks the apply loop something that takes its turn among the batches.
    async fn ask<T>(&self, work: impl FnOnce(oneshot::Sender<T>) -> Work) -> Result<T, NodeError> {
        self.check_halted()?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let given = self.applier.give(work(answer)).await;
            if given { answered.await.ok() } else { None }
        };
        let answered = tokio::time::timeout(ASK_MAX, asked).await.ok().flatten();
        let busy = || NodeError::NotReady("the state machine is busy; try again, or another node".into());
        answered.ok_or_else(|| self.check_halted().err().unwrap_or_else(busy))
    }

    /// Stores a module, durably. Nothing runs it yet.
    ///
    /// # Errors
    /// If it can't be loaded, or can't be stored.
    pub async fn store_module(&self, bytes: Bytes) -> Result<(replicator_types::ModuleHash, String), StoreModuleError> {
        let modules = self.modules.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let description = replicator_machine::load::describe(&bytes)?;
            Ok((modules.put(&bytes)?, description.description))
        });
        stored.await.expect("checking and storing a module doesn't panic")
    }

    /// Makes a cluster of blank nodes, this one among them. Returns the index of the genesis entry.
    ///
    /// # Errors
    /// If this node isn't blank or doesn't have the module, or the others can't be reached in time.
    pub async fn found(&self, founding: Founding) -> Result<LogIndex, String> {
        let (answer, founded) = oneshot::channel();
        let gone = || "this node is stopping".to_owned();
        self.founding.send((founding, answer)).await.map_err(|_| gone())?;
        founded.await.map_err(|_| gone())?
    }

    /// A deadline that many milliseconds from now.
    #[must_use]
    pub fn deadline(within: Duration) -> Instant {
        Instant::now() + within
    }
}

/// Why a module was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreModuleError {
    /// It is none that this program can run.
    #[error(transparent)]
    Refused(#[from] replicator_machine::LoadError),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
