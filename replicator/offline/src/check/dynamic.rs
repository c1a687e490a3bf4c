//! The same run in several memories, in lockstep, and what differs.
//!
//! ```text
//!            entries ──▶ ...... middle ...................................... end
//! first      ──────────────────┬───────────────────────────────────────────▶ digest, state, logical state
//! again      ───────────────── │ ──────────────────────────────────────────▶ must be equal in everything
//! elsewhere  ───────────────── │ ──────────────────────────────────────────▶ all that comes out must be equal
//! image                        ├─ image, read back ─────────────────────────▶ must be equal in everything
//! restored                     └─ snapshot, restored, snapshot ─────────────▶ all that comes out must be equal
//! ```
//!
//! *Elsewhere* the input buffer has another size, so that everything that the module allocates after it lies at other addresses.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use replicator_machine::{
    Applied, Command, Entry, Halt, Limits, Machine, ModuleSource, Outcome, QueryOutcome, Refusal, RequestResult,
};
use replicator_types::{LogIndex, ModuleHash, Position};
use xxhash_rust::xxh3::xxh3_64;

use super::{ByModule, Report, Trial, Verdict, hazards, script::Script};
use crate::{
    Beginning, History, Logged, Modules, OfflineError, Progress, Replay, Tally,
    beside::{Differences, copy, first_difference, taken},
    for_each_entry,
};

/// Requests that are asked as queries too, in the middle and at the end.
const QUERIES_MAX: usize = 256;
/// By how much the input buffer is larger elsewhere: no multiple of a page, nor of what allocators round to.
const SHIFT_BYTES: u32 = (64 << 10) + 48;

pub(super) fn check(
    module: &Bytes,
    trial: &Trial<'_>,
    progress: Progress<'_>,
    report: &mut Report,
) -> Result<(), OfflineError> {
    let (script, adapted);
    let history: &dyn History = match trial {
        Trial::MadeUp { requests, config } => {
            script = match Script::make_up(module, *requests, config) {
                Err(OfflineError::Halt { source: Halt::ModuleRefused(error), .. }) => {
                    let told = format!("{error}; if it wants a configuration, give it with --app-config");
                    report.add("begin", Verdict::Refused, told);
                    return Ok(());
                }
                made => made?,
            };
            &script
        }
        Trial::Log(history) => {
            let behind_image = history.purged().is_some();
            adapted = ByModule::new(*history, module.clone(), behind_image).without_swaps();
            &adapted
        }
    };
    let run = match Run::new(history, module, progress) {
        Err(OfflineError::Halt { source: Halt::RollbackDiffers { index }, .. }) => {
            let told = format!("after a trap, entry {index} came to something else than the first time");
            report.add("rollback", Verdict::Nondeterministic, told);
            return Ok(());
        }
        run => run?,
    };
    run.judge(matches!(trial, Trial::MadeUp { .. }), report)
}

/// A machine beside the first one, and what it did otherwise.
struct Other {
    machine: Machine,
    differences: Differences,
    /// The first query that it answered otherwise, and both answers.
    query: Option<(Bytes, QueryOutcome, QueryOutcome)>,
}

impl Other {
    fn new(machine: Machine) -> Self {
        Self { machine, differences: Differences::default(), query: None }
    }

    fn apply(&mut self, position: Position, entry: &Entry, first: &Applied) -> Result<(), OfflineError> {
        let applied = self.machine.apply(position, entry);
        let applied = applied.map_err(|source| OfflineError::Halt { position, source })?;
        // Elsewhere the limit is another one.
        if !matches!(first.outcome, Outcome::Refused(Refusal::TooLarge { .. })) {
            self.differences.compare(position, entry, first.clone(), applied);
        }
        Ok(())
    }

    fn ask(&mut self, request: &Bytes, first: &QueryOutcome) -> Result<(), OfflineError> {
        let answer = self.machine.query(None, request).map_err(OfflineError::Query)?;
        if answer != *first && self.query.is_none() {
            self.query = Some((request.clone(), first.clone(), answer));
        }
        Ok(())
    }
}

/// What the module made of its own logical state.
enum Restored {
    /// The two snapshots, byte by byte the same or not, and their machine.
    Taken {
        bytes: u64,
        differs_at: Option<u64>,
    },
    Refused(String),
}

struct Run {
    hash: ModuleHash,
    modules: Arc<Modules>,
    first: Machine,
    again: Other,
    /// None: the run begins with an image, or the module's memory can't be laid out otherwise.
    elsewhere: Option<Other>,
    image: Option<Other>,
    restored: Option<Other>,
    /// What the snapshots in the middle and at the end came to.
    snapshots: Vec<Restored>,
    tally: Tally,
    answers: BTreeSet<u64>,
    requests: VecDeque<Bytes>,
}

impl Run {
    /// Runs all of the history.
    fn new(history: &dyn History, module: &Bytes, progress: Progress<'_>) -> Result<Self, OfflineError> {
        let mut modules = Modules::before(history.modules());
        let hash = modules.add(module.clone());
        let modules = Arc::new(modules);
        let until = history.committed().ok_or(OfflineError::Empty)?;
        let (first, from) = begun(history, hash, &modules)?;
        let (again, _) = begun(history, hash, &modules)?;
        let moved = if from == LogIndex(0) { moved_limits(history, until)? } else { None };
        let elsewhere = moved.map(|limits| ByModule::with_limits(history, module.clone(), limits));
        let other = || Machine::new(Arc::clone(&modules) as Arc<dyn ModuleSource>);
        let mut run = Self {
            hash,
            first,
            again: Other::new(again),
            elsewhere: elsewhere.as_ref().map(|_| Other::new(other())),
            modules,
            image: None,
            restored: None,
            snapshots: Vec::new(),
            tally: Tally::default(),
            answers: BTreeSet::new(),
            requests: VecDeque::new(),
        };
        let middle = LogIndex(from.0 + (until.0 + 1 - from.0) / 2);
        for_each_entry::<OfflineError>(history, from, until, progress, |position, entry| {
            if position.index == middle {
                run.fork()?;
            }
            run.step(position, entry.as_ref(), elsewhere.as_ref())
        })?;
        run.ask()?;
        run.snapshot()?;
        Ok(run)
    }

    fn step(
        &mut self,
        position: Position,
        entry: Option<&Entry>,
        elsewhere: Option<&ByModule<'_>>,
    ) -> Result<(), OfflineError> {
        let others = [Some(&mut self.again), self.image.as_mut(), self.restored.as_mut()].into_iter().flatten();
        let Some(entry) = entry else {
            self.first.skip(position);
            others.chain(&mut self.elsewhere).for_each(|other| other.machine.skip(position));
            self.tally.add_own();
            return Ok(());
        };
        let applied = self.first.apply(position, entry);
        let applied = applied.map_err(|source| OfflineError::Halt { position, source })?;
        for other in others {
            other.apply(position, entry, &applied)?;
        }
        self.step_elsewhere(position, entry, &applied, elsewhere)?;
        self.tally.add(entry, &applied);
        if let Command::Request { request, .. } = &entry.command {
            if self.requests.len() == QUERIES_MAX {
                self.requests.pop_front();
            }
            self.requests.push_back(request.clone());
        }
        if let Outcome::Executed { result: RequestResult::Reply(reply), .. } = &applied.outcome {
            self.answers.insert(xxh3_64(reply));
        }
        Ok(())
    }

    fn step_elsewhere(
        &mut self,
        position: Position,
        entry: &Entry,
        applied: &Applied,
        elsewhere: Option<&ByModule<'_>>,
    ) -> Result<(), OfflineError> {
        let (Some(other), Some(history)) = (&mut self.elsewhere, elsewhere) else { return Ok(()) };
        let Command::Genesis(_) = &entry.command else { return other.apply(position, entry, applied) };
        // Only this one is another entry there.
        match other.apply(position, &history.genesis_of(entry), applied) {
            Err(OfflineError::Halt { source: Halt::ModuleRefused(_), .. }) => self.elsewhere = None,
            applied => applied?,
        }
        Ok(())
    }

    /// In the middle: the machines that are made of the first one.
    fn fork(&mut self) -> Result<(), OfflineError> {
        if self.first.genesis().is_none() {
            return Ok(());
        }
        self.ask()?;
        self.image = Some(Other::new(copy(&mut self.first, Arc::clone(&self.modules))?));
        self.restored = self.snapshot()?.map(Other::new);
        Ok(())
    }

    /// Takes a snapshot of the first machine, restores it, and takes another one of that. Returns the machine that was made so.
    fn snapshot(&mut self) -> Result<Option<Machine>, OfflineError> {
        let at = self.first.applied().unwrap_or_default();
        if self.first.genesis().is_none() {
            return Ok(None);
        }
        let before = match taken(self.first.logical_state(), at)? {
            Ok(state) => state,
            Err(refusal) => return self.refused(refusal.to_string()),
        };
        let mut machine = copy(&mut self.first, Arc::clone(&self.modules))?;
        if let Err(refusal) = taken(machine.try_module(self.hash), at)? {
            return self.refused(refusal.to_string());
        }
        let after = match taken(machine.logical_state(), at)? {
            Ok(state) => state,
            Err(refusal) => return self.refused(refusal.to_string()),
        };
        let differs_at = first_difference(&before, &after);
        self.snapshots.push(Restored::Taken { bytes: before.len() as u64, differs_at });
        Ok(Some(machine))
    }

    fn refused(&mut self, why: String) -> Result<Option<Machine>, OfflineError> {
        self.snapshots.push(Restored::Refused(why));
        Ok(None)
    }

    /// Asks all machines the same queries.
    fn ask(&mut self) -> Result<(), OfflineError> {
        for request in &self.requests {
            let first = self.first.query(None, request).map_err(OfflineError::Query)?;
            let others = [Some(&mut self.again), self.elsewhere.as_mut(), self.image.as_mut(), self.restored.as_mut()];
            for other in others.into_iter().flatten() {
                other.ask(request, &first)?;
            }
        }
        Ok(())
    }

    fn judge(mut self, made_up: bool, report: &mut Report) -> Result<(), OfflineError> {
        self.coverage(made_up, report);
        let state = (self.first.digest(), self.first.state_hash());
        let mut equal = |what, other: Option<&mut Other>, told: &str| {
            let Some(other) = other else { return };
            let found = (other.machine.digest(), other.machine.state_hash());
            match found == state && other.query.is_none() {
                true => report.add(what, Verdict::Ok, told),
                false => {
                    report.add(what, Verdict::Nondeterministic, hazards::unequal(&other.differences, &other.query))
                }
            }
        };
        equal("twice", Some(&mut self.again), "the same log twice gives the same digest and the same state");
        equal(
            "image",
            self.image.as_mut(),
            "a machine made of an image in the middle goes on as the one that was imaged",
        );
        self.judge_snapshots(report);
        if let Some(Other { differences, query, .. }) = &self.restored {
            match hazards::first(differences, query.as_ref()) {
                None => {
                    report.add("restore", Verdict::Ok, "after snapshot and restore everything is answered as without")
                }
                Some(first) => {
                    report.add("restore", Verdict::Nondeterministic, format!("{} {first}", hazards::RESTORED))
                }
            }
        }
        match &self.elsewhere {
            None => report.add(
                "layout",
                Verdict::Warn,
                "not tried: the log begins with an image, or the module takes no input buffer of another size",
            ),
            Some(Other { differences, query, .. }) => match hazards::first(differences, query.as_ref()) {
                None => report.add(
                    "layout",
                    Verdict::Ok,
                    "in a memory that is laid out otherwise everything is answered alike",
                ),
                Some(first) => {
                    report.add("layout", Verdict::Nondeterministic, format!("{} {first}", hazards::ADDRESSES))
                }
            },
        }
        Ok(())
    }

    fn coverage(&self, made_up: bool, report: &mut Report) {
        let (requests, answers) = (self.tally.requests(), self.answers.len());
        let traps = self.first.stats().traps;
        let told = format!(
            "{requests} requests{}: {answers} different answers, {} pushes, {traps} traps",
            if made_up { " that were made up" } else { " of the log" },
            self.tally.pushes
        );
        if made_up && answers < 8 {
            let why = "they hardly reach what the module does; give a real run with --log";
            return report.add("run", Verdict::Warn, format!("{told}; {why}"));
        }
        report.add("run", Verdict::Ok, told);
    }

    fn judge_snapshots(&self, report: &mut Report) {
        for snapshot in &self.snapshots {
            match snapshot {
                Restored::Refused(why) => return report.add("snapshot", Verdict::Refused, why.clone()),
                Restored::Taken { differs_at: Some(at), bytes } => {
                    let told = format!("{} It differs from byte {at} of {bytes} on", hazards::SNAPSHOT);
                    return report.add("snapshot", Verdict::Nondeterministic, told);
                }
                Restored::Taken { .. } => {}
            }
        }
        if let Some(Restored::Taken { bytes, .. }) = self.snapshots.last() {
            let told = format!("snapshot, restore, snapshot: {bytes} bytes, the same ones");
            report.add("snapshot", Verdict::Ok, told);
        }
    }
}

/// A machine where the history begins, with the module, and the next entry.
fn begun(history: &dyn History, hash: ModuleHash, modules: &Arc<Modules>) -> Result<(Machine, LogIndex), OfflineError> {
    let image = history.purged().and_then(|_| history.images().first().copied());
    let until = image.map_or(LogIndex(0), |image| image.index);
    let replay = Replay::begin(history, until, Arc::clone(modules) as Arc<dyn ModuleSource>)?;
    let (beginning, next) = (replay.beginning(), replay.next());
    let mut machine = replay.into_machine();
    if let Beginning::Image(position) = beginning
        && machine.active_module() != Some(hash)
        && let Err(refusal) = taken(machine.try_module(hash), position)?
    {
        return Err(OfflineError::ModuleRefused(refusal));
    }
    Ok((machine, next))
}

/// The limits of the genesis entry, but for the size of the input buffer.
fn moved_limits(history: &dyn History, until: LogIndex) -> Result<Option<Limits>, OfflineError> {
    let mut next = LogIndex(0);
    while next <= until {
        for Logged { position, entry } in history.entries(next, until.next(), 0)? {
            next = position.index.next();
            let Some(bytes) = entry else { continue };
            let entry = replicator_types::codec::decode::<Entry>(&bytes);
            let entry = entry.map_err(|source| OfflineError::Entry { position, source })?;
            let Command::Genesis(genesis) = entry.command else { return Ok(None) };
            return Ok(moved(genesis.limits));
        }
    }
    Ok(None)
}

fn moved(mut limits: Limits) -> Option<Limits> {
    let bytes = limits.request_bytes;
    limits.request_bytes = bytes.saturating_add(SHIFT_BYTES);
    if limits.validate().is_err() {
        limits.request_bytes = bytes.saturating_sub(SHIFT_BYTES);
    }
    limits.validate().is_ok().then_some(limits)
}
