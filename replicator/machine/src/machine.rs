//! The machine: what each entry does.
//!
//! An entry goes through here from top to bottom: its index must rise, time is clamped, the command is carried out, the
//! outcome and the pushes fold into the running digest. Commands of the log call the module one after the other; a trap
//! takes back what the module did in that call, and nothing else: a session that was opened stays open when the module
//! traps in its connect, one that was closed or expired stays gone.
//!
//! **Time** of an entry is the greater of the last one's and what its proposer says (safety rule 15). The **session
//! clock** is another: it begins at 0 and advances only at a Tick, by the time since the last Tick (or genesis) and at
//! most two tick periods. So after an hour without a primary, or a jump of its wall clock, no session that was in flight
//! has expired.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use replicator_types::{Digest, Lineage, ModuleHash, Position, Seed, Sequence, SessionId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::{
    activation::ActivationRefusal,
    application::{Application, Context, Kind},
    checkpoint,
    digest::RunningDigest,
    engine::{self, Prepared},
    entry::{Command, Entry, Genesis},
    halt::Halt,
    history::{History, ModuleSpan},
    image::{
        Head, Image, ImageError, ImageUnavailable,
        reading::{self, Parts},
    },
    outcome::{Applied, Outcome, Push, QueryOutcome, Refusal, RequestResult},
    pushes::{CursorExpired, PushCursor, RetainedPush, RetainedPushes},
    rollback::CopyTime,
    sessions::{Sessions, Verdict},
};

mod survey;
mod trial;

pub use survey::{SURVEY_PAGE_BYTES, Survey};

/// Where modules come from: the node's module store.
pub trait ModuleSource: Send + Sync {
    /// The bytes of a module, if the store has it.
    fn module(&self, hash: &ModuleHash) -> Option<Bytes>;
}

/// The replicated machine of one node. Lives on one thread.
///
/// All methods are deterministic: equal entries at equal positions give equal outcomes, pushes, digests and states.
pub struct Machine {
    modules: Arc<dyn ModuleSource>,
    applied: Option<Position>,
    digest: RunningDigest,
    state: Option<State>,
    halted: Option<String>,
}

/// What begins with the genesis entry.
struct State {
    genesis: Genesis,
    /// The modules that ran since, and the engine in force.
    history: History,
    /// Whether an engine barrier was applied: nothing is, after it.
    barred: bool,
    /// The genesis entry's lineage, and those that recoveries have begun since. Never empty; the last one is the current one.
    lineages: Vec<Lineage>,
    application: Application,
    sessions: Sessions,
    pushes: RetainedPushes,
    /// The last entry's time. Never decreases.
    time_us: i64,
    /// The session clock. Never decreases.
    clock_us: u64,
    /// The time of the last Tick, or of genesis.
    ticked_at_us: i64,
}

/// What a machine holds, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Open sessions.
    pub sessions: u64,
    /// Bytes of the module's linear memory.
    pub memory_bytes: u64,
    /// Calls by the log that trapped, since this machine was made.
    pub traps: u64,
    /// The module's own description.
    pub module_description: String,
}

/// Hashes of the parts of a machine's state, to see which part differs between two replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateParts {
    /// The module's linear memory, its size included.
    pub memory: u64,
    /// The module's mutable globals.
    pub globals: u64,
    /// The session table.
    pub sessions: u64,
    /// The retained pushes.
    pub pushes: u64,
    /// Time, session clock and lineages.
    pub clock: u64,
    /// Which modules ran from where, and the engine in force.
    pub history: u64,
    /// The running digest and the applied position.
    pub digest: u64,
}

impl StateParts {
    /// The hash of everything.
    pub(crate) fn hash(&self) -> Digest {
        let Self { memory, globals, sessions, pushes, clock, history, digest } = *self;
        Digest(hash_of(&[memory, globals, sessions, pushes, clock, history, digest]))
    }
}

impl Machine {
    /// A machine before its genesis entry, which will take its module from `modules`.
    #[must_use]
    pub fn new(modules: Arc<dyn ModuleSource>) -> Self {
        Self { modules, applied: None, digest: RunningDigest::default(), state: None, halted: None }
    }

    /// Applies the entry at `position`. Indexes rise, and may leave out what the strategy keeps to itself.
    ///
    /// # Errors
    /// If this node can't go on; nothing was applied. See [`Halt`] for what can be done.
    pub fn apply(&mut self, position: Position, entry: &Entry) -> Result<Applied, Halt> {
        self.check_may_advance(position)?;
        let applied = match (&entry.command, &mut self.state) {
            (Command::Genesis(genesis), None) => {
                self.state = Some(State::begin(genesis, entry.time_us, self.modules.as_ref())?);
                Applied::of(Outcome::Genesis)
            }
            (_, None) => Applied::of(Outcome::Refused(Refusal::NoGenesis)),
            (Command::Activate { module, expected }, Some(state)) => {
                // Nothing has changed yet: without the bytes, the same entry is applied again once they are here.
                let incoming = state.incoming(entry.seed, *module, *expected, self.modules.as_ref())?;
                state.time_us = state.time_us.max(entry.time_us);
                match state.activate(position, incoming) {
                    Ok(outcome) => {
                        state.history.decided(entry.seed);
                        Applied::of(outcome)
                    }
                    Err(halt) => {
                        self.halted = Some(halt.to_string());
                        return Err(halt);
                    }
                }
            }
            (_, Some(state)) => match state.apply(position, entry, &mut self.digest) {
                // An executed request has folded in already: its outcome holds the digest.
                Ok(Step { applied, folded: true }) => {
                    self.applied = Some(position);
                    return Ok(applied);
                }
                Ok(Step { applied, .. }) => applied,
                Err(halt) => {
                    self.halted = Some(halt.to_string());
                    return Err(halt);
                }
            },
        };
        self.digest.fold(position, &applied.outcome, &applied.pushes);
        self.applied = Some(position);
        Ok(applied)
    }

    /// Passes over an entry of the strategy's own, such as a membership change or a blank: the applied position
    /// advances, and nothing else.
    ///
    /// # Panics
    /// If the index isn't above the applied one: a bug of the caller.
    pub fn skip(&mut self, position: Position) {
        if let Some(applied) = self.applied {
            assert!(position.index > applied.index, "entry {position} is skipped after {applied} was applied");
        }
        self.applied = Some(position);
    }

    fn check_may_advance(&self, given: Position) -> Result<(), Halt> {
        if let Some(reason) = &self.halted {
            return Err(Halt::Halted(reason.clone()));
        }
        if self.state.as_ref().is_some_and(|state| state.barred) {
            let awaited = self.engine().unwrap_or_default().to_owned();
            return Err(Halt::AwaitsEngine { awaited, ours: engine::engine_fingerprint() });
        }
        match self.applied {
            Some(applied) if given.index <= applied.index || given.epoch < applied.epoch => {
                Err(Halt::IndexBackwards { applied, given })
            }
            _ => Ok(()),
        }
    }

    /// Answers a query from the state as of [`Machine::applied`], which it never changes.
    ///
    /// The module sees it as a request of `session` (zeros if there is none), at the applied index and its time, with
    /// sequence 0 and a seed of zeros. Whether the session is open is the caller's to check: [`Machine::has_session`].
    ///
    /// # Errors
    /// If this node can't go on.
    pub fn query(&mut self, session: Option<SessionId>, request: &[u8]) -> Result<QueryOutcome, Halt> {
        if let Some(reason) = &self.halted {
            return Err(Halt::Halted(reason.clone()));
        }
        let (Some(state), Some(applied)) = (&mut self.state, self.applied) else {
            return Ok(QueryOutcome::Refused(Refusal::NoGenesis));
        };
        let (bytes, max) = (request.len() as u64, state.genesis.limits.request_bytes.into());
        if bytes > max {
            return Ok(QueryOutcome::Refused(Refusal::TooLarge { bytes, max }));
        }
        let context = Context {
            kind: Kind::Request,
            index: applied.index,
            client: session.unwrap_or_default(),
            time_us: state.time_us,
            sequence: Sequence(0),
            seed: Seed::default(),
        };
        state.application.query(&context, request).inspect_err(|halt| self.halted = Some(halt.to_string()))
    }

    /// Answers several queries from one state, each as [`Machine::query`] would.
    ///
    /// # Errors
    /// If this node can't go on.
    pub fn query_group<'a>(
        &mut self,
        queries: impl IntoIterator<Item = (Option<SessionId>, &'a [u8])>,
    ) -> Result<Vec<QueryOutcome>, Halt> {
        queries.into_iter().map(|(session, request)| self.query(session, request)).collect()
    }

    /// The last position applied or skipped; none before the first.
    #[must_use]
    pub const fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// The running digest: equal on all replicas that have applied the same entries.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest.get()
    }

    /// The hash of everything: memory, globals, session table, retained pushes, time, running digest, applied position.
    ///
    /// Reads the whole state: some 100 ms for each GiB.
    pub fn state_hash(&mut self) -> Digest {
        self.state_parts().hash()
    }

    /// The hashes of the parts of the state. Reads all of it.
    pub fn state_parts(&mut self) -> StateParts {
        let Position { epoch, index } = self.applied.unwrap_or_default();
        let digest = hash_of(&[self.digest.get().0, self.applied.is_some().into(), epoch.0, index.0]);
        let Some(state) = &mut self.state else { return StateParts { digest, ..StateParts::default() } };
        let globals: Vec<u64> = state.application.globals().collect();
        StateParts {
            memory: hash_of(&[state.application.memory().len() as u64, xxh3_64(state.application.memory())]),
            globals: hash_of(&globals),
            sessions: state.sessions.hash(),
            pushes: state.pushes.hash(),
            clock: hash_of(&state.clock().collect::<Vec<_>>()),
            history: state.history.hash(),
            digest,
        }
    }

    /// The state's hash for a checkpoint, of what is cheap to have: what was written since the last one, and not the whole memory. None before
    /// the genesis entry, and where the system can't tell which pages were written.
    ///
    /// Equal states have equal ones, however each came about. Call it where [`crate::is_checkpoint`] says so.
    ///
    /// # Errors
    /// If this node can't go on.
    pub fn checkpoint(&mut self) -> Result<Option<Digest>, Halt> {
        if let Some(reason) = &self.halted {
            return Err(Halt::Halted(reason.clone()));
        }
        let (Some(state), Some(position)) = (&mut self.state, self.applied) else { return Ok(None) };
        let hash = state.checkpoint(position, self.digest.get());
        hash.inspect_err(|halt| self.halted = Some(halt.to_string()))
    }

    /// How the history began, if it has.
    #[must_use]
    pub fn genesis(&self) -> Option<&Genesis> {
        self.state.as_ref().map(|state| &state.genesis)
    }

    /// The lineages of the history, oldest first: the last one is the current one. Empty before the genesis entry.
    #[must_use]
    pub fn lineages(&self) -> &[Lineage] {
        self.state.as_ref().map_or(&[], |state| &state.lineages)
    }

    /// Which module ran from where on, oldest first: the genesis entry's is the first, the active one the last. Empty before the genesis
    /// entry. Of more than 1,024 the oldest but the first are left out.
    #[must_use]
    pub fn modules(&self) -> &[ModuleSpan] {
        self.state.as_ref().map_or(&[], |state| state.history.modules())
    }

    /// The module that runs, if the history has begun.
    #[must_use]
    pub fn active_module(&self) -> Option<ModuleHash> {
        self.state.as_ref().map(|state| state.history.active())
    }

    /// The engine in force, if the history has begun: that of the genesis entry, or of the last upgrade.
    #[must_use]
    pub fn engine(&self) -> Option<&str> {
        self.state.as_ref().map(|state| state.history.engine())
    }

    /// The engine that an upgrade has put in force, if that is no more this program's: then [`Machine::apply`] refuses all further entries
    /// with [`Halt::AwaitsEngine`], while queries are answered and [`Machine::image`] gives the image from which programs of that engine go
    /// on. Make it durable, and end the process.
    #[must_use]
    pub fn awaits_engine(&self) -> Option<&str> {
        self.state.as_ref().filter(|state| state.barred).map(|state| state.history.engine())
    }

    /// What the machine holds, in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.state.as_ref().map_or_else(Stats::default, |state| Stats {
            sessions: state.sessions.len() as u64,
            memory_bytes: state.application.memory().len() as u64,
            traps: state.application.traps(),
            module_description: state.application.info().description.clone(),
        })
    }

    /// For how long taking one copy of the module's memory has held up the machine at most since the last image began, that one's own copy
    /// included. Differs from node to node.
    #[must_use]
    pub fn longest_copy(&self) -> CopyTime {
        self.state.as_ref().map(|state| state.application.copy_longest()).unwrap_or_default()
    }

    /// An image of the machine as of [`Machine::applied`], to be written by any thread while the machine goes on.
    ///
    /// Takes some milliseconds: it copies the pages of memory that were written since the last copy for rollback
    /// (`rollback.rs`; the whole memory where the system can't tell them) and shares the rest.
    ///
    /// # Errors
    /// If an earlier image of this machine still lives, if there is nothing to image yet, or if this node can't go on.
    pub fn image(&mut self) -> Result<Image, ImageUnavailable> {
        if let Some(reason) = &self.halted {
            return Err(Halt::Halted(reason.clone()).into());
        }
        let (Some(state), Some(position)) = (&mut self.state, self.applied) else {
            return Err(ImageUnavailable::NotBegun);
        };
        match state.image(position, self.digest.get()) {
            Ok(image) => image.ok_or(ImageUnavailable::AnotherLives),
            Err(halt) => {
                self.halted = Some(halt.to_string());
                Err(halt.into())
            }
        }
    }

    /// The machine that was imaged: equal in everything that decides a result. Reads `image` to its end.
    ///
    /// Never allocates more than the limits allow that the image's genesis logged, and for what was really read. Nothing of
    /// the module runs. Reads 1 GiB in about a second.
    ///
    /// # Errors
    /// If the image is damaged, cut off or of another format, or if this node can't go on from it; [`ImageError::Refused`]
    /// with [`Halt::ModuleMissing`] names the module to fetch first.
    pub fn from_image(image: &mut dyn Read, modules: Arc<dyn ModuleSource>) -> Result<Self, ImageError> {
        let parts = reading::read(image, |head| prepare(&head.genesis, &head.history, modules.as_ref()))?;
        let Parts { head, sessions, pushes, application } = parts;
        let Head { position, digest, genesis, history, lineages, time_us, clock_us, ticked_at_us, .. } = head;
        let barred = false;
        let state = State {
            genesis,
            history,
            barred,
            lineages,
            application,
            sessions,
            pushes,
            time_us,
            clock_us,
            ticked_at_us,
        };
        let digest = RunningDigest::after(digest);
        Ok(Self { modules, applied: Some(position), digest, state: Some(state), halted: None })
    }

    /// The module at work, and how the history began, for [`crate::bench`].
    pub(crate) fn application(&mut self) -> Option<(&mut Application, &Genesis)> {
        self.state.as_mut().map(|state| (&mut state.application, &state.genesis))
    }

    /// Whether a session is open.
    #[must_use]
    pub fn has_session(&self, session: &SessionId) -> bool {
        self.state.as_ref().is_some_and(|state| state.sessions.contains(session))
    }

    /// Whether the primary has to propose ticks: while any session is open, or if the module asks for them.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.sessions.len() > 0 || state.application.wants_ticks())
    }

    /// The first `max` retained pushes after `after`, oldest first.
    ///
    /// # Errors
    /// If some of those after the cursor are no longer kept.
    pub fn pushes_after(&self, after: PushCursor, max: usize) -> Result<Vec<RetainedPush>, CursorExpired> {
        self.state.as_ref().map_or_else(|| Ok(Vec::new()), |state| state.pushes.after(after, max))
    }
}

/// An entry's outcome, and whether the running digest has it already.
struct Step {
    applied: Applied,
    folded: bool,
}

impl From<Applied> for Step {
    fn from(applied: Applied) -> Self {
        Self { applied, folded: false }
    }
}

impl From<Outcome> for Step {
    fn from(outcome: Outcome) -> Self {
        Applied::of(outcome).into()
    }
}

impl From<Refusal> for Step {
    fn from(refusal: Refusal) -> Self {
        Outcome::Refused(refusal).into()
    }
}

impl State {
    fn begin(genesis: &Genesis, time_us: i64, modules: &dyn ModuleSource) -> Result<Self, Halt> {
        let history = History::begin(genesis);
        let prepared = prepare(genesis, &history, modules)?;
        Ok(Self {
            application: Application::begin(prepared, &genesis.limits, &genesis.app_config)?,
            sessions: Sessions::default(),
            pushes: RetainedPushes::new(genesis.limits.retained_push_bytes),
            time_us,
            clock_us: 0,
            ticked_at_us: time_us,
            genesis: genesis.clone(),
            history,
            barred: false,
            lineages: vec![genesis.lineage],
        })
    }

    /// Nothing if there is an image already.
    fn image(&mut self, position: Position, digest: Digest) -> Result<Option<Image>, Halt> {
        let Some((memory, globals, input)) = self.application.freeze()? else { return Ok(None) };
        let (sessions, pushes) = (self.sessions.snapshot(), self.pushes.snapshot());
        let head = Head {
            position,
            digest,
            genesis: self.genesis.clone(),
            history: self.history.clone(),
            lineages: self.lineages.clone(),
            time_us: self.time_us,
            clock_us: self.clock_us,
            ticked_at_us: self.ticked_at_us,
            memory_bytes: memory.bytes() as u64,
            globals,
            input,
            sessions: sessions.len() as u64,
            pushes: pushes.len() as u64,
            trimmed: pushes.trimmed(),
        };
        Ok(Some(Image { head, sessions, pushes, memory }))
    }

    fn checkpoint(&mut self, position: Position, digest: Digest) -> Result<Option<Digest>, Halt> {
        let Some(application) = self.application.fingerprint()? else { return Ok(None) };
        let mut numbers: Vec<u64> = application.collect();
        numbers.extend([position.epoch.0, position.index.0, digest.0]);
        numbers.extend(self.clock());
        numbers.push(self.history.hash());
        let few = self.sessions.len() <= checkpoint::SESSIONS_MAX;
        let sessions = few || position.index.0.is_multiple_of(checkpoint::SESSIONS_ENTRIES);
        numbers.extend([self.sessions.len() as u64, if sessions { self.sessions.fingerprint() } else { 0 }]);
        numbers.extend(self.pushes.fingerprint());
        Ok(Some(Digest(hash_of(&numbers))))
    }

    fn clock(&self) -> impl Iterator<Item = u64> {
        let lineages = self.lineages.iter().map(|lineage| lineage.0);
        [self.time_us as u64, self.clock_us, self.ticked_at_us as u64].into_iter().chain(lineages)
    }

    #[inline]
    fn apply(&mut self, position: Position, entry: &Entry, digest: &mut RunningDigest) -> Result<Step, Halt> {
        self.time_us = self.time_us.max(entry.time_us);
        let seed = entry.seed;
        match &entry.command {
            Command::Request { session, sequence, acked_below, request } => {
                let context = self.context(Kind::Request, position, *session, *sequence, seed);
                self.request(&context, position, *acked_below, request, digest)
            }
            Command::Genesis(_) => Ok(Refusal::SecondGenesis.into()),
            Command::OpenSession { ttl_us } => self.open(position, seed, *ttl_us),
            Command::CloseSession { session } => self.close(position, seed, *session),
            Command::KeepAlive { session } => Ok(self.keep_alive(session)),
            Command::Tick => self.tick(position, seed),
            Command::Recover { replaces, lineage } => self.recover(position, seed, *replaces, *lineage),
            Command::Upgrade { from, to } => Ok(self.upgrade(from, to).into()),
            Command::Activate { .. } => unreachable!("the machine calls `activate` for that"),
        }
    }

    /// The module that is to be activated, if it may be, as far as that can be told without calling it. Changes nothing.
    fn incoming(
        &self,
        order: Seed,
        module: ModuleHash,
        expected: ModuleHash,
        modules: &dyn ModuleSource,
    ) -> Result<Result<Arc<Prepared>, ActivationRefusal>, Halt> {
        if let Err(refusal) = self.history.may_activate(order, module, expected) {
            return Ok(Err(refusal));
        }
        let prepared = match load(module, modules) {
            Ok(prepared) => prepared,
            Err(Halt::ModuleRefused(error)) => return Ok(Err(error.into())),
            Err(halt) => return Err(halt),
        };
        let fits = prepared.info.fits(&self.genesis.limits).map_err(ActivationRefusal::from);
        Ok(fits.and_then(|()| prepared.info.can_replace(self.application.info())).map(|()| prepared))
    }

    /// Sessions, pushes, time and digest go on; nobody is connected or disconnected.
    fn activate(&mut self, at: Position, incoming: Result<Arc<Prepared>, ActivationRefusal>) -> Result<Outcome, Halt> {
        let activated = match incoming {
            Ok(prepared) => {
                let module = prepared.hash;
                let taken = self.application.activate(prepared, &self.genesis.app_config)?;
                taken.map(|state_bytes| (module, state_bytes))
            }
            Err(refusal) => Err(refusal),
        };
        match activated {
            Ok((module, state_bytes)) => {
                let previous = self.history.active();
                self.history.activated(at, module);
                tracing::info!(position = %at, %module, %previous, state_bytes, "another module is active");
                Ok(Outcome::Activated { module, previous, state_bytes })
            }
            Err(refusal) => {
                tracing::warn!(position = %at, %refusal, "no other module was activated");
                Ok(Outcome::ActivationRefused(refusal))
            }
        }
    }

    fn upgrade(&mut self, from: &str, to: &str) -> Outcome {
        if self.history.upgrade(from, to) {
            // This program's engine was in force, or nothing would have been applied.
            self.barred = true;
            Outcome::Upgraded
        } else {
            Outcome::UpgradeRefused { engine: self.history.engine().to_owned() }
        }
    }

    #[inline]
    fn request(
        &mut self,
        context: &Context,
        position: Position,
        acked_below: Sequence,
        request: &Bytes,
        digest: &mut RunningDigest,
    ) -> Result<Step, Halt> {
        if !self.is_ours(&context.client) {
            return Ok(Refusal::LineageMismatch.into());
        }
        let Some(session) = self.sessions.get_mut(&context.client) else {
            return Ok(Refusal::SessionExpired.into());
        };
        let limits = &self.genesis.limits;
        let hash = match session.judge(context.sequence, acked_below, request, self.clock_us, limits) {
            Verdict::Execute(hash) => hash,
            Verdict::Repeat(outcome) => return Ok(outcome.into()),
            Verdict::Refuse(refusal) => return Ok(refusal.into()),
        };
        let (result, pushes, logs) = match self.application.call(context, request)? {
            Ok(output) => (RequestResult::Reply(output.reply), output.pushes, output.logs),
            Err(trap) => (RequestResult::Trap(trap), Vec::new(), Vec::new()),
        };
        self.pushes.keep(position.index, &pushes);
        let digest = digest.fold_executed(position, position, &result, &pushes);
        session.store(hash, result.clone(), position, digest);
        let outcome = Outcome::Executed { result, position, digest };
        Ok(Step { applied: Applied { outcome, pushes, logs }, folded: true })
    }

    fn open(&mut self, position: Position, seed: Seed, ttl_us: u64) -> Result<Step, Halt> {
        let max = self.genesis.limits.sessions;
        if self.sessions.len() >= max as usize {
            return Ok(Refusal::SessionsFull { max }.into());
        }
        let session = session_id(self.lineage(), position, seed);
        if self.sessions.contains(&session) {
            return Ok(Refusal::SessionIdTaken.into());
        }
        let ttl_us = self.genesis.limits.ttl_us(ttl_us);
        self.sessions.open(session, ttl_us, self.clock_us);
        let window = self.genesis.limits.session_window;
        let mut applied = Applied::of(Outcome::SessionOpened { session, ttl_us, window });
        self.tell(Kind::Connect, position, session, seed, &mut applied)?;
        Ok(self.with_pushes_kept(position, applied))
    }

    fn close(&mut self, position: Position, seed: Seed, session: SessionId) -> Result<Step, Halt> {
        if !self.is_ours(&session) {
            return Ok(Refusal::LineageMismatch.into());
        }
        let existed = self.sessions.close(&session);
        let mut applied = Applied::of(Outcome::SessionClosed { existed });
        if existed {
            self.tell(Kind::Disconnect, position, session, seed, &mut applied)?;
        }
        Ok(self.with_pushes_kept(position, applied))
    }

    fn keep_alive(&mut self, session: &SessionId) -> Step {
        if !self.is_ours(session) {
            return Refusal::LineageMismatch.into();
        }
        let session = self.sessions.get_mut(session);
        let existed = session.map(|session| session.touch(self.clock_us)).is_some();
        Outcome::Kept { existed }.into()
    }

    /// Sessions expire first, in the order of their ids; then the module has its tick, if it asks for one.
    fn tick(&mut self, position: Position, seed: Seed) -> Result<Step, Halt> {
        let passed_us = self.time_us.abs_diff(self.ticked_at_us);
        self.clock_us = self.clock_us.saturating_add(passed_us.min(2 * self.genesis.limits.tick_us));
        self.ticked_at_us = self.time_us;
        let expired = self.sessions.expired(self.clock_us);
        let mut applied = Applied::of(Outcome::Ticked { expired: count_of(&expired) });
        self.end(expired, position, seed, &mut applied)?;
        if self.application.wants_ticks() {
            self.tell(Kind::Tick, position, SessionId::default(), seed, &mut applied)?;
        }
        Ok(self.with_pushes_kept(position, applied))
    }

    /// All sessions close, in the order of their ids: who holds one is refused from here on, so it would only wait for its expiry.
    fn recover(&mut self, at: Position, seed: Seed, replaces: Lineage, lineage: Lineage) -> Result<Step, Halt> {
        // A disk that was recovered twice before it had caught up never saw the recovery between.
        if self.lineage() != replaces {
            self.lineages.push(replaces);
        }
        self.lineages.push(lineage);
        let open = self.sessions.ids();
        let mut applied = Applied::of(Outcome::Recovered { closed: count_of(&open) });
        self.end(open, at, seed, &mut applied)?;
        Ok(self.with_pushes_kept(at, applied))
    }

    fn end(&mut self, ended: Vec<SessionId>, at: Position, seed: Seed, applied: &mut Applied) -> Result<(), Halt> {
        for session in ended {
            self.sessions.close(&session);
            self.tell(Kind::Disconnect, at, session, seed, applied)?;
        }
        Ok(())
    }

    /// Calls the module for something else than a request: a reply has nobody to go to, and a trap stays without effect.
    fn tell(
        &mut self,
        kind: Kind,
        position: Position,
        client: SessionId,
        seed: Seed,
        applied: &mut Applied,
    ) -> Result<(), Halt> {
        let context = self.context(kind, position, client, Sequence(0), seed);
        match self.application.call(&context, &Bytes::new())? {
            Ok(output) => {
                applied.pushes.extend(output.pushes);
                applied.logs.extend(output.logs);
            }
            Err(trap) => tracing::warn!(?kind, %position, %trap, "the module trapped; its effect was taken back"),
        }
        Ok(())
    }

    fn with_pushes_kept(&mut self, position: Position, applied: Applied) -> Step {
        self.pushes.keep(position.index, &applied.pushes);
        applied.into()
    }

    #[inline]
    const fn context(&self, kind: Kind, at: Position, client: SessionId, sequence: Sequence, seed: Seed) -> Context {
        Context { kind, index: at.index, client, time_us: self.time_us, sequence, seed }
    }

    #[inline]
    fn is_ours(&self, session: &SessionId) -> bool {
        session.is_of(self.lineage())
    }

    #[inline]
    fn lineage(&self) -> Lineage {
        *self.lineages.last().expect("a history has a lineage")
    }
}

/// The active module of a history, if this program may run it.
fn prepare(genesis: &Genesis, history: &History, modules: &dyn ModuleSource) -> Result<Arc<Prepared>, Halt> {
    let ours = engine::engine_fingerprint();
    if history.engine() != ours {
        return Err(Halt::EngineMismatch { logged: history.engine().to_owned(), ours });
    }
    genesis.limits.validate()?;
    load(history.active(), modules)
}

/// A module, checked and compiled.
fn load(wanted: ModuleHash, modules: &dyn ModuleSource) -> Result<Arc<Prepared>, Halt> {
    let bytes = modules.module(&wanted).ok_or(Halt::ModuleMissing(wanted))?;
    let found = engine::hash(&bytes);
    if found != wanted {
        return Err(Halt::ModuleDamaged { wanted, found });
    }
    engine::prepare(found, &bytes)
}

impl Applied {
    const fn of(outcome: Outcome) -> Self {
        Self { outcome, pushes: Vec::<Push>::new(), logs: Vec::new() }
    }
}

/// The lineage's low 4 bytes, then 12 bytes made of the seed and the index: an entry that comes twice, as one that was
/// proposed again may, never opens the session again that its first copy opened.
fn session_id(lineage: Lineage, position: Position, seed: Seed) -> SessionId {
    const LINEAGE_BYTES: usize = SessionId::LINEAGE_BYTES;
    let lineage = lineage.0.to_le_bytes();
    let mixed = xxh3_128_with_seed(&seed.0, position.index.0).to_le_bytes();
    SessionId(std::array::from_fn(|i| if i < LINEAGE_BYTES { lineage[i] } else { mixed[i - LINEAGE_BYTES] }))
}

fn count_of(sessions: &[SessionId]) -> u32 {
    u32::try_from(sessions.len()).expect("there are at most 2^20 sessions")
}

fn hash_of(numbers: &[u64]) -> u64 {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    xxh3_64(&bytes)
}

/// A machine moves to its apply thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Machine>();
};
