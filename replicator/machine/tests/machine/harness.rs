//! A machine with a log: what the node would do around it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use replicator_machine::{
    Applied, Command, Entry, Genesis, Halt, Limits, Machine, ModuleSource, Outcome, QueryOutcome, Refusal,
    RequestResult, Trap, engine_fingerprint,
};
use replicator_types::{ClusterId, Lineage, ModuleHash, Position, Seed, Sequence, SessionId};
use sha2::Digest as _;

pub(crate) const TICK_US: i64 = 1_000_000;

#[derive(Default)]
pub(crate) struct Modules(Mutex<HashMap<ModuleHash, Bytes>>);

impl ModuleSource for Modules {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        self.0.lock().expect("nothing panics with it").get(hash).cloned()
    }
}

impl Modules {
    pub(crate) fn with(bytes: &[u8]) -> (Arc<Self>, ModuleHash) {
        let modules = Arc::new(Self::default());
        let hash = modules.add(bytes);
        (modules, hash)
    }

    pub(crate) fn add(&self, bytes: &[u8]) -> ModuleHash {
        let hash = hash(bytes);
        self.0.lock().expect("nothing panics with it").insert(hash, Bytes::copy_from_slice(bytes));
        hash
    }
}

pub(crate) fn hash(bytes: &[u8]) -> ModuleHash {
    ModuleHash(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn hostile() -> Vec<u8> {
    wat::parse_str(include_str!("guest.wat")).expect("the guest is valid")
}

/// Small, so that tests reach them.
pub(crate) fn limits() -> Limits {
    Limits {
        apply_fuel: 1_000_000,
        query_fuel: 1_000_000,
        memory_pages: 8,
        request_bytes: 50_000,
        output_bytes: 40_000,
        sessions: 8,
        session_window: 4,
        session_ttl_us: 10 * TICK_US as u64,
        session_ttl_max_us: 100 * TICK_US as u64,
        retained_push_bytes: 1_000,
        tick_us: TICK_US as u64,
        snapshot_fuel: 5_000_000,
        restore_fuel: 8_000_000,
        chunk_bytes: 64 << 10,
    }
}

pub(crate) fn genesis(module: ModuleHash, limits: Limits) -> Genesis {
    Genesis {
        cluster: ClusterId([1; 16]),
        lineage: Lineage(0x1122_3344_5566_7788),
        module,
        app_config: Bytes::new(),
        limits,
        engine: engine_fingerprint(),
    }
}

/// A machine after genesis, the log that it was given, and the next position.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) modules: Arc<Modules>,
    pub(crate) log: Vec<(Position, Entry)>,
    pub(crate) time_us: i64,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(&hostile(), limits())
    }

    pub(crate) fn with(module: &[u8], limits: Limits) -> Self {
        let (modules, hash) = Modules::with(module);
        let machine = Machine::new(modules.clone());
        let mut node = Self { machine, modules, log: Vec::new(), time_us: 1_000_000_000 };
        let applied = node.apply(Command::Genesis(Box::new(genesis(hash, limits))));
        assert_eq!(applied.outcome, Outcome::Genesis);
        node
    }

    /// A machine that was given the same log.
    pub(crate) fn replayed(&self, module: &[u8]) -> Self {
        self.replayed_with(Modules::with(module).0)
    }

    /// The same, with all modules that this one has.
    pub(crate) fn replayed_with(&self, modules: Arc<Modules>) -> Self {
        let machine = Machine::new(modules.clone());
        let mut node = Self { machine, modules, log: Vec::new(), time_us: self.time_us };
        for (position, entry) in &self.log {
            node.machine.apply(*position, entry).expect("it went well the first time");
        }
        node.log.clone_from(&self.log);
        node
    }

    pub(crate) fn entry(&self, command: Command) -> (Position, Entry) {
        let index = self.machine.applied().map_or(0, |applied| applied.index.0 + 1);
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        (Position::new(3, index), Entry { time_us: self.time_us, seed: Seed(seed), command })
    }

    pub(crate) fn try_apply(&mut self, command: Command) -> Result<Applied, Halt> {
        let (position, entry) = self.entry(command);
        let applied = self.machine.apply(position, &entry)?;
        self.log.push((position, entry));
        Ok(applied)
    }

    pub(crate) fn apply(&mut self, command: Command) -> Applied {
        self.try_apply(command).expect("the node goes on")
    }

    pub(crate) fn open(&mut self) -> Client {
        match self.apply(Command::OpenSession { ttl_us: 0 }).outcome {
            Outcome::SessionOpened { session, .. } => Client { session, sequence: 0 },
            other => panic!("no session: {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, client: &mut Client, request: &[u8]) -> Applied {
        client.sequence += 1;
        self.send_as(client, client.sequence, client.sequence, request)
    }

    pub(crate) fn send_as(&mut self, client: &Client, sequence: u64, acked_below: u64, request: &[u8]) -> Applied {
        self.apply(Command::Request {
            session: client.session,
            sequence: Sequence(sequence),
            acked_below: Sequence(acked_below),
            request: Bytes::copy_from_slice(request),
        })
    }

    pub(crate) fn reply(&mut self, client: &mut Client, request: &[u8]) -> Bytes {
        reply_of(self.send(client, request).outcome)
    }

    pub(crate) fn trap(&mut self, client: &mut Client, request: &[u8]) -> Trap {
        match self.send(client, request).outcome {
            Outcome::Executed { result: RequestResult::Trap(trap), .. } => trap,
            other => panic!("no trap: {other:?}"),
        }
    }

    pub(crate) fn tick(&mut self) -> u32 {
        match self.apply(Command::Tick).outcome {
            Outcome::Ticked { expired } => expired,
            other => panic!("no tick: {other:?}"),
        }
    }

    pub(crate) fn query(&mut self, request: &[u8]) -> RequestResult {
        match self.machine.query(None, request).expect("the node goes on") {
            QueryOutcome::Answered { result, .. } => result,
            QueryOutcome::Refused(refusal) => panic!("refused: {refusal}"),
        }
    }

    pub(crate) fn query_reply(&mut self, request: &[u8]) -> Bytes {
        match self.query(request) {
            RequestResult::Reply(reply) => reply,
            RequestResult::Trap(trap) => panic!("trapped: {trap}"),
        }
    }
}

/// A session, as its client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
}

pub(crate) fn reply_of(outcome: Outcome) -> Bytes {
    match outcome {
        Outcome::Executed { result: RequestResult::Reply(reply), .. } => reply,
        other => panic!("no reply: {other:?}"),
    }
}

pub(crate) fn refusal_of(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn number(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(number)
}
