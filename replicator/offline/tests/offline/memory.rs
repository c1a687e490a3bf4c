//! A log in memory, and the machine that went through it.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use replicator_machine::{
    Applied, Command, Entry, Genesis, Limits, Machine, ModuleSource, Outcome, engine_fingerprint,
};
use replicator_offline::{History, Logged, Modules, OfflineError};
use replicator_types::{ClusterId, Lineage, LogIndex, ModuleHash, Position, Seed, Sequence, SessionId, codec};

/// A log, and perhaps an image that it begins behind.
pub(crate) struct Memory {
    pub(crate) entries: Vec<Logged>,
    pub(crate) image: Option<(Position, Vec<u8>)>,
    modules: Arc<Modules>,
    pub(crate) machine: Machine,
}

/// Small, so that they fit modules with little memory.
pub(crate) fn limits() -> Limits {
    Limits { request_bytes: 50_000, ..Limits::default() }
}

impl Memory {
    /// A log that begins with an entry of the strategy's own, and the genesis of the first of these modules.
    pub(crate) fn new(wasm: &[&[u8]], limits: Limits) -> Self {
        let mut modules = Modules::default();
        let hashes: Vec<ModuleHash> = wasm.iter().map(|wasm| modules.add(Bytes::copy_from_slice(wasm))).collect();
        let modules = Arc::new(modules);
        let machine = Machine::new(Arc::clone(&modules) as Arc<dyn ModuleSource>);
        let mut memory = Self { entries: Vec::new(), image: None, modules, machine };
        memory.skip();
        let genesis = Genesis {
            cluster: ClusterId([1; 16]),
            lineage: Lineage(7),
            module: hashes[0],
            app_config: Bytes::new(),
            limits,
            engine: engine_fingerprint(),
        };
        assert_eq!(memory.apply(Command::Genesis(Box::new(genesis))).outcome, Outcome::Genesis);
        memory
    }

    fn next(&self) -> Position {
        Position::new(3, self.entries.len() as u64)
    }

    pub(crate) fn skip(&mut self) {
        let position = self.next();
        self.machine.skip(position);
        self.entries.push(Logged { position, entry: None });
    }

    pub(crate) fn apply(&mut self, command: Command) -> Applied {
        let position = self.next();
        let mut seed = [9; 16];
        seed[..8].copy_from_slice(&position.index.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let entry = Entry { time_us: 1_000_000 + position.index.0 as i64, seed: Seed(seed), command };
        let applied = self.machine.apply(position, &entry).unwrap();
        self.entries.push(Logged { position, entry: Some(codec::encode(&entry).into()) });
        applied
    }

    pub(crate) fn open(&mut self) -> Client {
        match self.apply(Command::OpenSession { ttl_us: 0 }).outcome {
            Outcome::SessionOpened { session, .. } => Client { session, sequence: 0 },
            other => panic!("no session: {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, client: &mut Client, request: &[u8]) -> Applied {
        client.sequence += 1;
        self.apply(Command::Request {
            session: client.session,
            sequence: Sequence(client.sequence),
            acked_below: Sequence(client.sequence),
            request: Bytes::copy_from_slice(request),
        })
    }

    /// Lets the log begin behind an image of this moment.
    pub(crate) fn take_image(&mut self) {
        let mut bytes = Vec::new();
        let image = self.machine.image().unwrap();
        let position = image.position();
        image.write_to(&mut bytes).unwrap();
        self.image = Some((position, bytes));
    }
}

/// A session, as its client sees it.
pub(crate) struct Client {
    pub(crate) session: SessionId,
    sequence: u64,
}

impl History for Memory {
    fn images(&self) -> Vec<Position> {
        self.image.iter().map(|(position, _)| *position).collect()
    }

    fn image(&self, _: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        Ok(Box::new(&self.image.as_ref().unwrap().1[..]))
    }

    fn purged(&self) -> Option<Position> {
        self.image.as_ref().map(|(position, _)| *position)
    }

    fn last(&self) -> Option<Position> {
        self.entries.last().map(|last| last.position)
    }

    fn committed(&self) -> Option<LogIndex> {
        self.last().map(|last| last.index)
    }

    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Logged>, OfflineError> {
        let to = (to.0 as usize).min(self.entries.len());
        let many = if bytes_max == 0 { 1 } else { 1_000 };
        let from = (from.0 as usize).min(to);
        Ok(self.entries[from..to.min(from + many)].to_vec())
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}
