//! Another module beside the one that ran: over the same entries, from the same state, compared entry by entry.
//!
//! Two machines in one process. The *old* one is what the cluster was: it goes through the log as replicas do, through swaps too. The *new* one
//! is made of the same state by the swap's own path, the logical snapshot of the old module restored into the new one, and then gets the same
//! entries. What is compared is what clients see: outcomes and pushes, without the running digest. At the end the old state is given to the new
//! module once more, and what that makes of it is compared with the state that the new one has come to.

use std::sync::Arc;

use bytes::Bytes;
use replicator_machine::{ActivationRefusal, Applied, Command, Entry, Halt, Machine, Outcome, RequestResult};
use replicator_types::{LogIndex, ModuleHash, Position};

use crate::{History, Modules, OfflineError, Progress, Replay, Tally, for_each_entry};

/// Examples that are kept of each kind of difference.
pub const EXAMPLES_MAX: usize = 5;

/// In what an entry's results differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Both answered, and not the same.
    Response,
    /// One trapped, or both did and not in the same way.
    Trap,
    /// The host refused it in one of them.
    Refusal,
    /// The answers are equal, and the pushes are not.
    Pushes,
}

impl Kind {
    /// All of them, each at the place of its number.
    pub const ALL: [Self; 4] = [Self::Response, Self::Trap, Self::Refusal, Self::Pushes];

    /// The kind in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::Trap => "trap",
            Self::Refusal => "refusal",
            Self::Pushes => "pushes",
        }
    }
}

/// An entry of which something else comes.
#[derive(Debug, Clone)]
pub struct Example {
    /// In what it differs.
    pub kind: Kind,
    /// Where it is.
    pub position: Position,
    /// What it is.
    pub entry: Entry,
    /// What comes of it in the old module.
    pub old: Applied,
    /// What comes of it in the new one.
    pub new: Applied,
}

/// How often something differs, and the first entries in which it does.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    counts: [u64; Kind::ALL.len()],
    examples: Vec<Example>,
}

impl Differences {
    /// How often it is of this kind.
    #[must_use]
    pub const fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many entries differ.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The first [`EXAMPLES_MAX`] of each kind, in the order of the log.
    #[must_use]
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Compares what came of an entry.
    #[inline]
    pub(crate) fn compare(&mut self, position: Position, entry: &Entry, old: Applied, new: Applied) {
        if let Some(kind) = difference(&old, &new) {
            self.add(kind, position, entry, old, new);
        }
    }

    #[cold]
    fn add(&mut self, kind: Kind, position: Position, entry: &Entry, old: Applied, new: Applied) {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(Example { kind, position, entry: entry.clone(), old, new });
        }
    }
}

/// In what two results of one entry differ, as clients see them.
#[inline]
fn difference(old: &Applied, new: &Applied) -> Option<Kind> {
    let kind = match (&old.outcome, &new.outcome) {
        (Outcome::Executed { result: a, .. }, Outcome::Executed { result: b, .. }) if a == b => None,
        (
            Outcome::Executed { result: RequestResult::Reply(_), .. },
            Outcome::Executed { result: RequestResult::Reply(_), .. },
        ) => Some(Kind::Response),
        (Outcome::Executed { .. }, Outcome::Executed { .. }) => Some(Kind::Trap),
        (a, b) if a == b => None,
        _ => Some(Kind::Refusal),
    };
    kind.or_else(|| (old.pushes != new.pushes).then_some(Kind::Pushes))
}

/// How the states compare at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum States {
    /// What the new module makes of the old state is what it has come to by itself.
    Equal {
        /// Bytes of the logical snapshot.
        bytes: u64,
    },
    /// It is something else.
    Differ {
        /// Bytes of the snapshot that the new module makes of the old state.
        old_bytes: u64,
        /// Bytes of the one of its own state.
        new_bytes: u64,
        /// The first byte that differs.
        at: u64,
    },
    /// The new module doesn't take the state that the old one has come to.
    Refused(ActivationRefusal),
}

/// What came of running another module beside the one that ran.
#[derive(Debug)]
pub struct Compared {
    /// The entry after which the new module took over: the image's, or the last swap's.
    pub from: Position,
    /// The last entry.
    pub to: Position,
    /// The module that was active.
    pub old: (ModuleHash, String),
    /// The new one.
    pub new: (ModuleHash, String),
    /// Bytes of the logical state that the new module took over.
    pub state_bytes: u64,
    /// What was applied, and what came of it in the old module.
    pub tally: Tally,
    /// The calls that trapped: in the old module, and in the new one.
    pub traps: (u64, u64),
    /// What differs.
    pub differences: Differences,
    /// The states at the end.
    pub states: States,
    /// What was found amiss, and passed over.
    pub notes: Vec<String>,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// The history can't be run.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The new module would be refused.
    #[error("the module would be refused if it were activated: {0}")]
    Refused(ActivationRefusal),
    /// It is the module that runs.
    #[error("module {0} is the one that runs: there is nothing to compare")]
    Same(ModuleHash),
}

/// Runs `module` beside what ran, from the newest image at or below `until`, or from the genesis entry, or from the last swap after that; up to
/// `until`. `began` is called when the state was taken over and the comparison begins.
///
/// # Errors
/// If the history can't be run, or the module would be refused.
pub fn beside(
    history: &dyn History,
    module: Bytes,
    until: LogIndex,
    progress: Progress<'_>,
    began: &mut dyn FnMut(),
) -> Result<Compared, BesideError> {
    let mut modules = Modules::before(history.modules());
    let hash = modules.add(module);
    let modules = Arc::new(modules);
    let mut replay = Replay::begin(history, until, modules.clone())?;
    if replay.machine().genesis().is_none() {
        let genesis = genesis(history, replay.next(), until)?;
        replay.run_to(genesis, progress)?;
    }
    let (next, notes) = (replay.next(), replay.notes().to_vec());
    let mut pair = Pair::new(replay.into_machine(), hash, modules, began)?;
    for_each_entry::<BesideError>(history, next, until, progress, |position, entry| pair.apply(position, entry))?;
    pair.finish(notes)
}

/// The two machines.
struct Pair<'a> {
    hash: ModuleHash,
    modules: Arc<Modules>,
    old: Machine,
    /// Or why the module can't take the place of the one that is active. After a swap that may be another matter.
    new: Result<New, BesideError>,
    began: &'a mut dyn FnMut(),
}

/// The new machine, and what was compared since it took over.
struct New {
    machine: Machine,
    from: Position,
    state_bytes: u64,
    tally: Tally,
    differences: Differences,
    /// Traps of the old machine before.
    traps: u64,
}

impl<'a> Pair<'a> {
    fn new(
        mut old: Machine,
        hash: ModuleHash,
        modules: Arc<Modules>,
        began: &'a mut dyn FnMut(),
    ) -> Result<Self, BesideError> {
        let new = take_over(&mut old, hash, &modules)?;
        began();
        Ok(Self { hash, modules, old, new, began })
    }

    #[inline]
    fn apply(&mut self, position: Position, entry: Option<Entry>) -> Result<(), BesideError> {
        let halted = |source| OfflineError::Halt { position, source };
        let Some(entry) = entry else {
            self.old.skip(position);
            if let Ok(new) = &mut self.new {
                new.machine.skip(position);
                new.tally.add_own();
            }
            return Ok(());
        };
        let applied = self.old.apply(position, &entry).map_err(halted)?;
        if let Command::Activate { .. } = entry.command {
            return self.swapped(position, &applied);
        }
        if let Ok(new) = &mut self.new {
            new.tally.add(&entry, &applied);
            new.differences.compare(position, &entry, applied, new.machine.apply(position, &entry).map_err(halted)?);
        }
        Ok(())
    }

    /// The cluster has another module now: it is that one which the new one is compared with.
    #[cold]
    fn swapped(&mut self, position: Position, applied: &Applied) -> Result<(), BesideError> {
        if matches!(applied.outcome, Outcome::Activated { .. }) {
            self.new = take_over(&mut self.old, self.hash, &self.modules)?;
            (self.began)();
        } else if let Ok(new) = &mut self.new {
            new.machine.skip(position);
        }
        Ok(())
    }

    fn finish(self, notes: Vec<String>) -> Result<Compared, BesideError> {
        let Self { hash, mut old, new, .. } = self;
        let New { machine: mut new, from, state_bytes, tally, differences, traps } = new?;
        let traps = (old.stats().traps - traps, new.stats().traps);
        let (to, active) = (old.applied().unwrap_or_default(), old.active_module().unwrap_or_default());
        let old_is = (active, old.stats().module_description);
        let new_is = (hash, new.stats().module_description);
        let states = compare_states(&mut old, &mut new, hash)?;
        Ok(Compared { from, to, old: old_is, new: new_is, state_bytes, tally, traps, differences, states, notes })
    }
}

fn take_over(
    old: &mut Machine,
    hash: ModuleHash,
    modules: &Arc<Modules>,
) -> Result<Result<New, BesideError>, OfflineError> {
    let from = old.applied().unwrap_or_default();
    if old.active_module() == Some(hash) {
        return Ok(Err(BesideError::Same(hash)));
    }
    let mut machine = copy(old, Arc::clone(modules))?;
    let taken = taken(machine.try_module(hash), from)?;
    let (tally, differences, traps) = (Tally::default(), Differences::default(), old.stats().traps);
    let taken = taken.map(|state_bytes| New { machine, from, state_bytes, tally, differences, traps });
    Ok(taken.map_err(BesideError::Refused))
}

/// A machine that is equal to this one.
pub(crate) fn copy(machine: &mut Machine, modules: Arc<Modules>) -> Result<Machine, OfflineError> {
    let position = machine.applied().unwrap_or_default();
    let mut image = Vec::new();
    let written = machine.image()?.write_to(&mut image);
    written.map_err(|source| OfflineError::Image { position, source: io(source) })?;
    Machine::from_image(&mut &image[..], modules).map_err(|source| OfflineError::Image { position, source })
}

const fn io(source: std::io::Error) -> replicator_machine::ImageError {
    replicator_machine::ImageError::Read { offset: 0, source }
}

/// What a trial came to; a halt names the place.
pub(crate) fn taken<T>(
    trial: Result<Result<T, ActivationRefusal>, Halt>,
    position: Position,
) -> Result<Result<T, ActivationRefusal>, OfflineError> {
    trial.map_err(|source| OfflineError::Halt { position, source })
}

/// The index of the genesis entry.
fn genesis(history: &dyn History, from: LogIndex, until: LogIndex) -> Result<LogIndex, OfflineError> {
    let mut next = from;
    while next <= until {
        for logged in history.entries(next, until.next(), 0)? {
            if logged.entry.is_some() {
                return Ok(logged.position.index);
            }
            next = logged.position.index.next();
        }
    }
    Err(OfflineError::Empty)
}

fn compare_states(old: &mut Machine, new: &mut Machine, module: ModuleHash) -> Result<States, OfflineError> {
    let at = old.applied().unwrap_or_default();
    if let Err(refusal) = taken(old.try_module(module), at)? {
        return Ok(States::Refused(refusal));
    }
    let (old, new) = match (taken(old.logical_state(), at)?, taken(new.logical_state(), at)?) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(refusal), _) | (_, Err(refusal)) => return Ok(States::Refused(refusal)),
    };
    Ok(first_difference(&old, &new).map_or(States::Equal { bytes: new.len() as u64 }, |at| States::Differ {
        old_bytes: old.len() as u64,
        new_bytes: new.len() as u64,
        at,
    }))
}

/// The first byte in which two snapshots differ.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    let differing = a.iter().zip(b).position(|(a, b)| a != b);
    differing.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len()))).map(|at| at as u64)
}
