//! The apply loop: the one place that owns the machine, on a thread of its own.
//!
//! It applies committed entries in order, answers who waits for them, hands pushes to subscribers, and runs queries between
//! batches. A module that burns all its fuel holds up this thread and nothing else.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use replicator_machine::{
    Command, CopyTime, Entry, Genesis, Halt, Image, ImageUnavailable, Machine, ModuleSpan, Outcome, Push, QueryOutcome,
    Refusal, is_checkpoint,
};
use replicator_types::{Digest, Lineage, LogIndex, ModuleHash, Position, Seed, SessionId, codec};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    quarantine::Quarantine,
    queries::Read,
    subscriptions::{Hub, Subscribe},
    waiters::{Answer, Done, Waiters},
};
use crate::{
    replication::{ApplySink, Committed},
    transport::DigestAt,
};

/// How many messages may wait for the loop.
const WORK_MAX: usize = 1_024;

/// What an entry takes in the log beside its own bytes, at most: its record's head, what the strategy adds, and the zeros that fill it up.
const LOGGED_BYTES: u64 = 64;

/// Entries of a replay whose digests are kept: more than are compared.
const REPLAYED_KEPT: usize = 1 << 20;

/// Where the machine is, after a batch.
#[derive(Debug, Clone, Default)]
pub struct AppliedState {
    /// The last applied entry.
    pub position: Option<Position>,
    /// The running digest after it.
    pub digest: Digest,
    /// The genesis entry, once applied.
    pub genesis: Option<Arc<Genesis>>,
    /// The lineages of the history so far, oldest first.
    pub lineages: Arc<[Lineage]>,
    /// Whether the primary should propose ticks.
    pub wants_ticks: bool,
    /// Open sessions.
    pub sessions: u64,
    /// The module's linear memory.
    pub memory_bytes: u64,
    /// Traps since the process began, replayed ones included.
    pub traps: u64,
    /// For how long a copy of the module's memory has held up the machine at most since the last image began.
    pub longest_copy: CopyTime,
    /// How the active module describes itself.
    pub module: String,
    /// Which modules ran, and from where on: the last one is the active one.
    pub modules: Arc<[ModuleSpan]>,
    /// Rises whenever these change.
    pub modules_changed: u64,
    /// The last activation since then that switched, and for how long it held up the machine.
    pub last_switch: Option<(LogIndex, Duration)>,
    /// The module that the machine stands still for, until it has been fetched.
    pub awaited_module: Option<ModuleHash>,
    /// The engine that an upgrade has put in force, if it isn't this program's any more: the machine applies nothing after it.
    pub awaited_engine: Option<String>,
    /// Bytes of entries since the last image, or the start.
    pub bytes_since_image: u64,
    /// Why the machine stands still; None while it goes on.
    pub halted: Option<String>,
}

impl AppliedState {
    /// The applied index.
    #[must_use]
    pub fn index(&self) -> Option<LogIndex> {
        self.position.map(|position| position.index)
    }

    /// The module that runs.
    #[must_use]
    pub fn active_module(&self) -> Option<ModuleHash> {
        self.modules.last().map(|span| span.module)
    }

    /// The module that ran before it.
    #[must_use]
    pub fn previous_module(&self) -> Option<ModuleHash> {
        self.modules.iter().rev().nth(1).map(|span| span.module)
    }

    /// The modules that this node must be able to run: the active one, and that of a rollback.
    pub(super) fn runnable(&self) -> Vec<ModuleHash> {
        self.active_module().into_iter().chain(self.previous_module()).collect()
    }
}

/// Reads that are answered from one state, and where the answers go.
pub(super) struct QueryGroup {
    pub(super) reads: Vec<Read>,
    pub(super) answer: oneshot::Sender<(Vec<QueryOutcome>, LogIndex)>,
}

pub(super) enum Work {
    Apply(Vec<Committed>, oneshot::Sender<()>),
    Query(QueryGroup),
    /// What queries have pushed at other nodes.
    Deliver(Vec<Push>),
    Subscribe(Subscribe),
    HasSession(SessionId, oneshot::Sender<bool>),
    StateHash(oneshot::Sender<(Digest, Option<LogIndex>)>),
    Image(oneshot::Sender<Result<Image, ImageUnavailable>>),
    /// Go on as this machine, which is further.
    Enter(Box<Machine>, oneshot::Sender<()>),
    /// Stand still, for this reason.
    Halt(String),
    /// Nobody is to be told anything any more.
    Silence,
    /// Go on as another machine, from the place where this one is, whose state is wrong.
    Renew(Renewal),
}

/// Reads committed entries from the log: from an index, which it must have, up to another.
pub(super) type ReadEntries = Box<dyn Fn(LogIndex, LogIndex) -> Result<Vec<Committed>, String> + Send + Sync>;

/// A machine that takes the place of one that is wrong.
pub(super) struct Renewal {
    pub(super) machine: Box<Machine>,
    pub(super) read: ReadEntries,
    pub(super) done: oneshot::Sender<Result<(), String>>,
}

/// Gets a module that the machine needs and doesn't have. Ends when it is in the store.
pub(super) type FetchModule = Arc<dyn Fn(ModuleHash) -> BoxFuture<'static, ()> + Send + Sync>;

/// A handle on the loop.
#[derive(Clone)]
pub(super) struct Applier {
    work: mpsc::Sender<Work>,
    pub(super) state: watch::Receiver<AppliedState>,
}

impl Applier {
    /// A handle, and the loop's body, to be run on its own thread.
    pub(super) fn new(
        machine: Machine,
        waiters: Arc<Waiters>,
        quarantine: Arc<Quarantine>,
        fetch: FetchModule,
        ephemeral: mpsc::Sender<Vec<Push>>,
        answers: mpsc::UnboundedSender<Vec<Answer>>,
    ) -> (Self, BoxFuture<'static, ()>) {
        let (work, queue) = mpsc::channel(WORK_MAX);
        let (publish, state) = watch::channel(AppliedState::default());
        let hub = Hub::default();
        let applying = Loop {
            machine,
            waiters,
            quarantine,
            fetch,
            publish,
            genesis: None,
            lineages: Arc::default(),
            hub,
            ephemeral,
            answers,
            logged_traps: 0,
            bytes_since_image: 0,
            swaps: Swaps::default(),
            barred: Vec::new(),
            entered: None,
        };
        (Self { work, state }, applying.run(queue).boxed())
    }

    /// Gives work to the loop. False: the loop has ended.
    pub(super) async fn give(&self, work: Work) -> bool {
        self.work.send(work).await.is_ok()
    }
}

impl ApplySink for Applier {
    fn apply(&self, batch: Vec<Committed>) -> BoxFuture<'static, ()> {
        let work = self.work.clone();
        async move {
            let (done, applied) = oneshot::channel();
            if work.send(Work::Apply(batch, done)).await.is_err() || applied.await.is_err() {
                std::future::pending::<()>().await; // Halted: replication goes on (safety rule 18).
            }
        }
        .boxed()
    }
}

struct Loop {
    machine: Machine,
    waiters: Arc<Waiters>,
    quarantine: Arc<Quarantine>,
    fetch: FetchModule,
    publish: watch::Sender<AppliedState>,
    genesis: Option<Arc<Genesis>>,
    lineages: Arc<[Lineage]>,
    hub: Hub,
    /// What queries push, on its way to the other nodes.
    ephemeral: mpsc::Sender<Vec<Push>>,
    /// Outcomes on their way to clients. Holds no more than the waiters did.
    answers: mpsc::UnboundedSender<Vec<Answer>>,
    logged_traps: u64,
    bytes_since_image: u64,
    swaps: Swaps,
    /// Who waits for entries after an engine barrier, for ever.
    barred: Vec<oneshot::Sender<()>>,
    /// Where the machine that took the place of a wrong one stood, if that was further: what comes before is in it.
    entered: Option<Position>,
}

/// Why no more of a batch is applied.
enum Stop {
    /// An engine barrier: the machine stays as it is, to be imaged.
    Barred,
    /// This node can't go on.
    Halted(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Halted(why)
    }
}

/// What is known of modules and their activations.
#[derive(Default)]
struct Swaps {
    modules: Arc<[ModuleSpan]>,
    changed: u64,
    last: Option<(LogIndex, Duration)>,
}

impl Swaps {
    /// An activation was applied, which took so long.
    fn applied(&mut self, module: ModuleHash, at: LogIndex, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Activated { .. } => {
                tracing::info!(%module, index = at.0, took_ms = took.as_millis(), "the machine goes on with another module");
                self.last = Some((at, took));
            }
            Outcome::ActivationRefused(refusal) => {
                tracing::warn!(%module, index = at.0, took_ms = took.as_millis(), %refusal, "a module was not activated; the active one goes on");
            }
            _ => {}
        }
    }

    fn see(&mut self, modules: &[ModuleSpan]) {
        if *self.modules != *modules {
            self.modules = modules.into();
            self.changed += 1;
        }
    }
}

/// What a batch has come to.
#[derive(Default)]
struct Came {
    finished: Vec<(Seed, Done)>,
    digests: Vec<(LogIndex, Digest)>,
    checkpoints: Vec<DigestAt>,
}

impl Loop {
    async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut batch = Vec::with_capacity(WORK_MAX);
        while queue.recv_many(&mut batch, WORK_MAX).await > 0 {
            for work in batch.drain(..) {
                if let Err(halt) = self.handle(work).await {
                    return self.halt(&halt, queue).await;
                }
            }
        }
    }

    async fn handle(&mut self, work: Work) -> Result<(), String> {
        match work {
            Work::Apply(batch, done) => match self.apply(batch).await {
                Ok(()) => drop(done.send(())),
                Err(Stop::Barred) => self.barred.push(done),
                Err(Stop::Halted(why)) => return Err(why),
            },
            // Who asks learns why from the node.
            Work::Query(_) | Work::Subscribe(_) | Work::HasSession(..) if self.quarantine.is_silent() => {}
            Work::Query(group) => self.query(group)?,
            Work::Deliver(pushes) => self.hub.publish_ephemeral(&pushes),
            Work::Subscribe(subscribe) => self.hub.subscribe(subscribe, &self.machine),
            Work::HasSession(session, answer) => drop(answer.send(self.machine.has_session(&session))),
            Work::StateHash(answer) => {
                let hash = self.machine.state_hash();
                let _ = answer.send((hash, self.machine.applied().map(|at| at.index)));
            }
            Work::Image(answer) => {
                let image = self.machine.image();
                self.bytes_since_image = 0;
                self.publish();
                let _ = answer.send(image);
            }
            Work::Enter(machine, done) => {
                self.enter(*machine);
                let _ = done.send(());
            }
            Work::Halt(why) => return Err(why),
            Work::Silence => self.silence(),
            Work::Renew(Renewal { machine, read, done }) => drop(done.send(self.renew(*machine, &read).await)),
        }
        Ok(())
    }

    async fn apply(&mut self, batch: Vec<Committed>) -> Result<(), Stop> {
        let mut came = Came { finished: Vec::with_capacity(batch.len()), ..Came::default() };
        let applied = self.apply_each(batch, &mut came).await;
        self.quarantine.digests.add(&came.digests, &came.checkpoints);
        self.publish();
        if self.quarantine.is_silent() {
            self.silence();
            return applied;
        }
        // Those before an entry that halts the machine were executed, and are answered.
        let answers = self.waiters.complete(came.finished.into_iter());
        if !answers.is_empty() {
            let _ = self.answers.send(answers); // Fails only when the node ends.
        }
        applied
    }

    /// What was executed meanwhile is not answered one by one: clients ask again, and find it in the session table. Subscribers begin again
    /// after their cursors.
    fn enter(&mut self, machine: Machine) {
        if machine.applied() < self.machine.applied() {
            return; // It has come further by itself.
        }
        self.go_on_as(machine);
    }

    fn go_on_as(&mut self, machine: Machine) {
        self.machine = machine;
        self.genesis = None;
        self.hub = Hub::default();
        self.logged_traps = 0;
        self.bytes_since_image = 0;
        self.swaps.last = None;
        self.waiters.clear();
        self.quarantine.renew(self.machine.applied().map(|at| (at.index, self.machine.digest())));
        self.publish();
    }

    /// Whoever waits for something is told by another node.
    fn silence(&mut self) {
        self.hub = Hub::default();
        self.waiters.clear();
    }

    /// Puts `machine` in the place of this one, having applied to it what this one was given. On an error this one stays.
    async fn renew(&mut self, machine: Machine, read: &ReadEntries) -> Result<(), String> {
        let wrong = mem::replace(&mut self.machine, machine);
        let entered = self.entered.take();
        let mut came = Came::default();
        let replayed = self.replay(wrong.applied(), read, &mut came).await;
        let machine = mem::replace(&mut self.machine, wrong);
        if let Err(why) = replayed {
            self.entered = entered;
            return Err(why);
        }
        self.entered = machine.applied();
        self.go_on_as(machine);
        self.quarantine.digests.add(&came.digests, &came.checkpoints);
        Ok(())
    }

    async fn replay(&mut self, to: Option<Position>, read: &ReadEntries, came: &mut Came) -> Result<(), String> {
        let end = to.map_or(LogIndex(0), |to| to.index.next());
        loop {
            let next = self.machine.applied().map_or(LogIndex(0), |at| at.index.next());
            if next >= end {
                return Ok(());
            }
            self.apply_each(read(next, end)?, came).await.map_err(|stop| match stop {
                Stop::Barred => "an upgrade of the engine stands before the place where this machine is".to_owned(),
                Stop::Halted(why) => why,
            })?;
            came.finished.clear();
            came.digests.drain(..came.digests.len().saturating_sub(REPLAYED_KEPT));
        }
    }

    async fn apply_each(&mut self, batch: Vec<Committed>, came: &mut Came) -> Result<(), Stop> {
        for (position, encoded) in batch {
            if self.entered.is_some_and(|entered| position.index <= entered.index) {
                continue;
            }
            let Some(encoded) = encoded else {
                self.machine.skip(position);
                self.compare(position.index, None, came)?;
                continue;
            };
            self.bytes_since_image += encoded.len() as u64 + LOGGED_BYTES;
            // Decoding fails alike on every replica of this version, and would on each start: it is not a result.
            let entry: Entry =
                codec::decode(&encoded).map_err(|error| format!("log entry {position} can't be read: {error}"))?;
            #[cfg(feature = "planted-wrong-answers")]
            let entry = super::planted::applied(entry);
            let (applied, took) = loop {
                let began = matches!(entry.command, Command::Activate { .. }).then(Instant::now);
                match self.machine.apply(position, &entry) {
                    Ok(applied) => break (applied, began.map(|began| began.elapsed())),
                    Err(Halt::ModuleMissing(hash)) => self.await_module(hash).await,
                    Err(Halt::AwaitsEngine { .. }) => return Err(Stop::Barred),
                    Err(halt) => return Err(halt.to_string().into()),
                }
            };
            if let (Command::Activate { module, .. }, Some(took)) = (&entry.command, took) {
                self.swaps.applied(*module, position.index, &applied.outcome, took);
            }
            for line in &applied.logs {
                tracing::info!(target: "module", index = position.index.0, "{line}");
            }
            self.hub.publish(position.index, &applied.pushes);
            came.finished
                .push((entry.seed, Done { position, outcome: applied.outcome, digest: self.machine.digest() }));
            self.compare(position.index, Some(&entry), came)?;
        }
        Ok(())
    }

    /// Keeps what the machine has come to, to be compared.
    #[inline]
    fn compare(&mut self, index: LogIndex, entry: Option<&Entry>, came: &mut Came) -> Result<(), String> {
        let digest = self.machine.digest();
        came.digests.push((index, digest));
        if is_checkpoint(index, entry) {
            let state = self.machine.checkpoint().map_err(|halt| halt.to_string())?;
            came.checkpoints.push(DigestAt { index, digest, state });
        }
        Ok(())
    }

    /// Stands still until the module is here. Readiness never decides what an entry does (safety rule 21).
    async fn await_module(&mut self, hash: ModuleHash) {
        self.publish();
        self.publish.send_modify(|state| state.awaited_module = Some(hash));
        (self.fetch)(hash).await;
    }

    /// Answers reads whose client still waits, each in a session only if that is open.
    fn query(&mut self, QueryGroup { reads, answer }: QueryGroup) -> Result<(), String> {
        let index = self.machine.applied().map_or(LogIndex(0), |at| at.index);
        let mut outcomes = Vec::with_capacity(reads.len());
        for Read { session, request } in reads {
            if answer.is_closed() {
                return Ok(());
            }
            let mut outcome = match session {
                Some(session) if !self.machine.has_session(&session) => QueryOutcome::Refused(Refusal::SessionExpired),
                session => self.machine.query(session, &request).map_err(|halt| halt.to_string())?,
            };
            if let QueryOutcome::Answered { pushes, logs, .. } = &mut outcome {
                for line in logs {
                    tracing::info!(target: "module", index = index.0, "query: {line}");
                }
                if !pushes.is_empty() {
                    self.hub.publish_ephemeral(pushes);
                    let _ = self.ephemeral.try_send(mem::take(pushes)); // Full: lost, as they may be.
                }
            }
            outcomes.push(outcome);
        }
        let _ = answer.send((outcomes, index));
        Ok(())
    }

    fn publish(&mut self) {
        let stats = self.machine.stats();
        if self.genesis.is_none() {
            self.genesis = self.machine.genesis().cloned().map(Arc::new);
        }
        if self.lineages.len() != self.machine.lineages().len() {
            self.lineages = self.machine.lineages().into();
        }
        self.swaps.see(self.machine.modules());
        if stats.traps > self.logged_traps {
            self.logged_traps = stats.traps;
            tracing::warn!(traps = stats.traps, "the module trapped; its effects were rolled back");
        }
        self.publish.send_replace(AppliedState {
            position: self.machine.applied(),
            digest: self.machine.digest(),
            genesis: self.genesis.clone(),
            lineages: self.lineages.clone(),
            wants_ticks: self.machine.wants_ticks(),
            sessions: stats.sessions,
            memory_bytes: stats.memory_bytes,
            traps: stats.traps,
            longest_copy: self.machine.longest_copy(),
            module: stats.module_description,
            modules: self.swaps.modules.clone(),
            modules_changed: self.swaps.changed,
            last_switch: self.swaps.last,
            awaited_module: None,
            awaited_engine: self.machine.awaits_engine().map(str::to_owned),
            bytes_since_image: self.bytes_since_image,
            halted: None,
        });
    }

    /// Stands still for ever, and says why. Nobody is answered any more; the process goes on replicating.
    async fn halt(mut self, halt: &str, mut queue: mpsc::Receiver<Work>) {
        tracing::error!(halt, "the machine has halted; this node answers nothing until it is restarted");
        self.publish.send_modify(|state| state.halted = Some(halt.to_owned()));
        self.waiters.clear();
        let mut held = mem::take(&mut self.barred);
        while let Some(work) = queue.recv().await {
            // An unanswered Apply keeps the strategy waiting; anything else is dropped, which its sender sees.
            if let Work::Apply(_, done) = work {
                held.push(done);
            }
        }
    }
}
