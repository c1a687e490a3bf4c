//! Logs for one module: made up, or another module's log with this one in its place.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use replicator_machine::{
    Command, Entry, Genesis, Limits, Machine, ModuleSource, Outcome, RequestResult, engine_fingerprint,
};
use replicator_types::{ClusterId, Lineage, LogIndex, ModuleHash, Position, Sequence, SessionId, codec};

use super::requests::{Chance, Requests};
use crate::{History, Logged, Modules, OfflineError};

/// Sessions that made-up requests come from.
const SESSIONS: usize = 6;
/// What passes between two entries, in microseconds.
const STEP_US: u64 = 20_000;
/// 2023-11-14T22:13:20Z.
const START_US: i64 = 1_700_000_000_000_000;

/// A log in memory, which begins with its genesis entry.
pub(super) struct Script {
    entries: Vec<Logged>,
    modules: Arc<Modules>,
}

impl Script {
    /// A log of `requests` requests that are made up for `module`. What sessions are open, only a machine knows: so one runs along.
    pub(super) fn make_up(module: &Bytes, requests: u64, config: &Bytes) -> Result<Self, OfflineError> {
        let mut modules = Modules::default();
        let hash = modules.add(module.clone());
        let modules = Arc::new(modules);
        let genesis = Genesis {
            cluster: ClusterId([0xc4; 16]),
            lineage: Lineage(1),
            module: hash,
            app_config: config.clone(),
            limits: Limits::default(),
            engine: engine_fingerprint(),
        };
        let mut writer = Writer {
            machine: Machine::new(modules.clone()),
            entries: Vec::new(),
            time_us: START_US,
            chance: Chance::of(hash),
        };
        writer.write(Command::Genesis(Box::new(genesis)))?;
        let (mut made, mut sessions) = (Requests::for_module(module), Vec::new());
        for step in 0..requests {
            while sessions.len() < SESSIONS {
                sessions.extend(writer.open()?);
            }
            match writer.chance.below(200) {
                0 => {
                    let (session, _): (SessionId, u64) = sessions.swap_remove(writer.chance.below(SESSIONS));
                    writer.write(Command::CloseSession { session })?;
                    continue;
                }
                1 | 2 => drop(writer.write(Command::Tick)?),
                _ => {}
            }
            let request = made.next(&mut writer.chance);
            let (session, sequence) = &mut sessions[step as usize % SESSIONS];
            *sequence += 1;
            let (session, sequence) = (*session, Sequence(*sequence));
            let command = Command::Request { session, sequence, acked_below: sequence, request: request.clone() };
            if let Outcome::Executed { result: RequestResult::Reply(reply), .. } = writer.write(command)? {
                made.learn(&request, &reply, &mut writer.chance);
            }
        }
        Ok(Self { entries: writer.entries, modules })
    }
}

struct Writer {
    machine: Machine,
    entries: Vec<Logged>,
    time_us: i64,
    chance: Chance,
}

impl Writer {
    fn write(&mut self, command: Command) -> Result<Outcome, OfflineError> {
        self.time_us += (self.chance.next() % STEP_US) as i64;
        let entry = Entry { time_us: self.time_us, seed: self.chance.seed(), command };
        let position = Position::new(1, self.entries.len() as u64);
        let applied = self.machine.apply(position, &entry);
        let applied = applied.map_err(|source| OfflineError::Halt { position, source })?;
        self.entries.push(Logged { position, entry: Some(codec::encode(&entry).into()) });
        Ok(applied.outcome)
    }

    fn open(&mut self) -> Result<Option<(SessionId, u64)>, OfflineError> {
        Ok(match self.write(Command::OpenSession { ttl_us: 0 })? {
            Outcome::SessionOpened { session, .. } => Some((session, 0)),
            _ => None,
        })
    }
}

impl History for Script {
    fn images(&self) -> Vec<Position> {
        Vec::new()
    }

    fn image(&self, _: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        Err(OfflineError::Empty)
    }

    fn purged(&self) -> Option<Position> {
        None
    }

    fn last(&self) -> Option<Position> {
        self.entries.last().map(|last| last.position)
    }

    fn committed(&self) -> Option<LogIndex> {
        self.last().map(|last| last.index)
    }

    fn entries(&self, from: LogIndex, to: LogIndex, _: usize) -> Result<Vec<Logged>, OfflineError> {
        let bound = |index: LogIndex| (index.0 as usize).min(self.entries.len());
        Ok(self.entries[bound(from)..bound(to).max(bound(from))].to_vec())
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}

/// A log that another module, or the same one, went through, for a module: its genesis entry names this one, and under which limits.
pub struct ByModule<'h> {
    history: &'h dyn History,
    module: ModuleHash,
    modules: Arc<Modules>,
    /// Where the log doesn't go back to the genesis entry, it begins with an image.
    keeps_images: bool,
    /// Activations are left out: this module runs to the end.
    drops_swaps: bool,
    limits: Option<Limits>,
}

impl<'h> ByModule<'h> {
    /// The history for a module. Images are left out unless `keeps_images`: they may be of another module.
    #[must_use]
    pub fn new(history: &'h dyn History, module: Bytes, keeps_images: bool) -> Self {
        let mut modules = Modules::before(history.modules());
        let hash = modules.add(module);
        Self { history, module: hash, modules: Arc::new(modules), keeps_images, drops_swaps: false, limits: None }
    }

    /// The same without activations.
    pub(super) fn without_swaps(self) -> Self {
        Self { drops_swaps: true, ..self }
    }

    /// The same from the genesis entry on, under other limits.
    pub(super) fn with_limits(history: &'h dyn History, module: Bytes, limits: Limits) -> Self {
        Self { limits: Some(limits), ..Self::new(history, module, false) }
    }

    /// The module.
    #[must_use]
    pub const fn module(&self) -> ModuleHash {
        self.module
    }

    /// A genesis entry as it is here.
    pub(super) fn genesis_of(&self, entry: &Entry) -> Entry {
        let mut entry = entry.clone();
        if let Command::Genesis(genesis) = &mut entry.command {
            genesis.module = self.module;
            genesis.engine = engine_fingerprint();
            if let Some(limits) = &self.limits {
                genesis.limits = limits.clone();
            }
        }
        entry
    }

    fn adapted(&self, logged: Logged) -> Result<Logged, OfflineError> {
        let Logged { position, entry: Some(bytes) } = logged else { return Ok(logged) };
        let entry: Entry = codec::decode(&bytes).map_err(|source| OfflineError::Entry { position, source })?;
        let bytes = match &entry.command {
            Command::Genesis(_) => codec::encode(&self.genesis_of(&entry)).into(),
            Command::Activate { .. } if self.drops_swaps => return Ok(Logged { position, entry: None }),
            _ => bytes,
        };
        Ok(Logged { position, entry: Some(bytes) })
    }
}

impl History for ByModule<'_> {
    fn images(&self) -> Vec<Position> {
        if self.keeps_images { self.history.images() } else { Vec::new() }
    }

    fn image(&self, at: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        self.history.image(at)
    }

    fn purged(&self) -> Option<Position> {
        self.history.purged()
    }

    fn last(&self) -> Option<Position> {
        self.history.last()
    }

    fn committed(&self) -> Option<LogIndex> {
        self.history.committed()
    }

    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Logged>, OfflineError> {
        self.history.entries(from, to, bytes_max)?.into_iter().map(|logged| self.adapted(logged)).collect()
    }

    fn no_module(&self, hash: ModuleHash) -> OfflineError {
        self.history.no_module(hash)
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}
