//! What clients ask of a node: to execute, and to subscribe. Reads are in `queries`.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use replicator_machine::{Command, CursorExpired, Entry, Limits, Outcome, PushCursor, Refusal, RequestResult, Trap};
use replicator_types::{Digest, Lineage, LogIndex, Position, Seed, Sequence, SessionId, codec};
use tokio::sync::oneshot;

use super::{
    Node, Running,
    applier::Work,
    proposals::Proposal,
    subscriptions::{Subscribe, Subscribed, Target},
    waiters::{Done, Finished, Waiters},
};

/// How long the apply loop may take to answer what costs it next to nothing.
pub(super) const ASK_MAX: Duration = Duration::from_secs(10);
/// The largest encoded entry: below what the log takes as one record.
pub(super) const ENTRY_BYTES_MAX: usize = 12 << 20;

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
    /// The machine's state isn't what other replicas have.
    #[error("this node is not to be believed: {0}")]
    Quarantined(String),
    /// The node waits for as many requests as it may.
    #[error("this node has as many requests or subscriptions as it may; try again later, or another node")]
    Overloaded,
    /// The primary has no room for new entries.
    #[error(
        "the disk of {node}, the primary, is full: nothing was done. Free some space there, or add some; writes then go on by themselves, and \
         reads go on meanwhile"
    )]
    DiskFull {
        /// The primary.
        node: String,
    },
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
    #[error(
        "it belongs to another history (lineage {given}) than this cluster's, {ours}: an operator has recovered the cluster since, or restored it from a \
         snapshot; begin anew"
    )]
    LineageMismatch {
        /// The one given.
        given: Lineage,
        /// The cluster's.
        ours: Lineage,
    },
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its session.
    pub session: SessionId,
    /// Its number.
    pub sequence: Sequence,
    /// The client has the outcome of every number below.
    pub acked_below: Sequence,
    /// What the module gets.
    pub request: Bytes,
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
    done: oneshot::Receiver<Finished>,
    deadline: Instant,
    waiters: Arc<Waiters>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.waiters.give_up(self.seed);
    }
}

/// A request's outcome, as its client gets it.
pub(super) fn outcome_of(done: Done) -> Result<Executed, NodeError> {
    match done.outcome {
        Outcome::Executed { result, position, digest } => Ok(Executed { result, position, digest }),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => unreachable!("a request became {other:?}"),
    }
}

impl Node {
    /// The limits in the log, once it has begun.
    pub(super) fn limits(&self) -> Option<Limits> {
        self.applier.state.borrow().genesis.as_ref().map(|genesis| genesis.limits.clone())
    }

    /// The longest request that is taken, in bytes.
    #[must_use]
    pub fn request_bytes_max(&self) -> u64 {
        self.applier.state.borrow().genesis.as_ref().map_or(0, |genesis| genesis.limits.request_bytes.into())
    }

    /// Begins to execute a request, at most once. On return it has its place among this node's proposals, so that requests begun
    /// one after the other are executed in that order.
    ///
    /// # Errors
    /// A refusal is the log's; anything else says whether the outcome is unknown.
    pub async fn begin_execute(&self, request: Request, deadline: Instant) -> Result<Pending, NodeError> {
        let running = self.running()?;
        self.check_halted()?;
        let proposal = self.entry_of(request)?;
        self.begin(&running, proposal, deadline).await
    }

    /// The entry of a request, if it isn't too long.
    pub(super) fn entry_of(&self, request: Request) -> Result<Proposal, NodeError> {
        let Request { session, sequence, acked_below, request } = request;
        let (bytes, max) = (request.len() as u64, self.request_bytes_max());
        if bytes > max && max > 0 {
            return Err(Refusal::TooLarge { bytes, max }.into());
        }
        self.encode(Command::Request { session, sequence, acked_below, request })
    }

    /// Waits for what [`Self::begin_execute`] began, and answers with this replica's own outcome.
    ///
    /// # Errors
    /// As [`Self::begin_execute`].
    pub async fn executed(&self, pending: Pending) -> Result<Executed, NodeError> {
        outcome_of(self.finish(pending).await?)
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
    pub(super) async fn submit(&self, command: Command, deadline: Instant) -> Result<Done, NodeError> {
        let running = self.running()?;
        self.check_halted()?;
        let proposal = self.encode(command)?;
        let pending = self.begin(&running, proposal, deadline).await?;
        self.finish(pending).await
    }

    fn encode(&self, command: Command) -> Result<Proposal, NodeError> {
        let seed = Seed(self.seams.random());
        let entry = Entry { time_us: self.seams.clock.now_us(), seed, command };
        let encoded = Bytes::from(codec::encode(&entry));
        if encoded.len() > ENTRY_BYTES_MAX {
            let (bytes, max) = (encoded.len() as u64, ENTRY_BYTES_MAX as u64);
            return Err(Refusal::TooLarge { bytes, max }.into());
        }
        Ok(Proposal { seed, encoded })
    }

    async fn begin(&self, running: &Running, proposal: Proposal, deadline: Instant) -> Result<Pending, NodeError> {
        let seed = proposal.seed;
        let done = self.waiters.add(seed, proposal.encoded.len()).ok_or(NodeError::Overloaded)?;
        let pending = Pending { seed, done, deadline, waiters: self.waiters.clone() };
        self.give(running, vec![proposal], deadline).await?;
        Ok(pending)
    }

    /// Gives entries to the proposer.
    pub(super) async fn give(
        &self,
        running: &Running,
        proposals: Vec<Proposal>,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let stopping = |_| NodeError::NotReady("this node is stopping".into());
        match running.proposals.try_push(proposals).map_err(stopping)? {
            Ok(()) => Ok(()),
            Err(proposals) => match tokio::time::timeout_at(deadline.into(), running.proposals.push(proposals)).await {
                Ok(pushed) => pushed.map_err(stopping),
                Err(_) => Err(NodeError::NotReady(self.why_no_primary())),
            },
        }
    }

    async fn finish(&self, mut pending: Pending) -> Result<Done, NodeError> {
        match tokio::time::timeout_at(pending.deadline.into(), &mut pending.done).await {
            Ok(Ok(done)) => done,
            // A dropped waiter is one whose machine has halted, perhaps after it had executed the request.
            Ok(Err(_)) => Err(NodeError::OutcomeUnknown),
            Err(_) => match self.given_up(pending.seed) {
                Some(error) => Err(error),
                // It was answered, or dropped, at this very moment: the answer is on its way.
                None => (&mut pending.done).await.unwrap_or(Err(NodeError::OutcomeUnknown)),
            },
        }
    }

    /// Gives up an entry whose deadline has passed. None: it was answered, or dropped, before.
    pub(super) fn given_up(&self, seed: Seed) -> Option<NodeError> {
        self.waiters.give_up(seed).map(|proposed| match proposed {
            false => NodeError::NotReady(self.why_no_primary()),
            true => NodeError::OutcomeUnknown,
        })
    }

    pub(super) fn why_no_primary(&self) -> String {
        match self.primary() {
            Some((primary, address)) => format!("the primary, {primary} at {address}, doesn't answer this node"),
            None => "no primary is known: fewer than a majority of the nodes are up and connected, or an election is \
                     under way; nothing was done"
                .to_owned(),
        }
    }

    /// Checks that there is a machine here that goes on, and is to be believed.
    pub(super) fn check_halted(&self) -> Result<(), NodeError> {
        if self.config.witness {
            let replica =
                self.primary().map_or_else(String::new, |(node, address)| format!(", for example {node} at {address}"));
            return Err(NodeError::NotReady(format!(
                "this node is a witness, without application data; ask a replica{replica}"
            )));
        }
        if let Some(reason) = &self.applier.state.borrow().halted {
            return Err(NodeError::Halted(reason.clone()));
        }
        self.check_quarantined()
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
    pub(super) async fn ask<T>(&self, work: impl FnOnce(oneshot::Sender<T>) -> Work) -> Result<T, NodeError> {
        self.check_halted()?;
        self.ask_anyway(work).await
    }

    /// Asks even a machine whose state isn't to be believed.
    pub(super) async fn ask_anyway<T>(&self, work: impl FnOnce(oneshot::Sender<T>) -> Work) -> Result<T, NodeError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let given = self.applier.give(work(answer)).await;
            if given { answered.await.ok() } else { None }
        };
        let answered = tokio::time::timeout(ASK_MAX, asked).await.ok().flatten();
        let busy = || NodeError::NotReady("the state machine is busy; try again, or another node".into());
        answered.ok_or_else(|| self.check_halted().err().unwrap_or_else(busy))
    }
}
