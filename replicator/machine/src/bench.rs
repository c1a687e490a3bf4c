//! Parts of the machine on their own, and switches, for its benches and tests. Not an interface: no promise whatever.

use std::time::{Duration, Instant};

use bytes::Bytes;
use replicator_types::{Digest, Position, Sequence, SessionId};

use crate::{
    digest::RunningDigest,
    engine,
    guest::{Failure, Guest, HEADER_BYTES},
    limits::Limits,
    machine::Machine,
    outcome::{RequestResult, Trap},
    sessions::{Sessions, Verdict},
    swap::FUEL_PER_BYTE,
};

/// Runs `run` as if the system couldn't tell which pages a module wrote.
pub fn without_write_tracking<T>(run: impl FnOnce() -> T) -> T {
    crate::written::without_tracking(run)
}

/// An instance, without anything around it.
pub struct BenchGuest {
    guest: Guest,
    header: [u8; HEADER_BYTES],
    fuel: u64,
}

impl BenchGuest {
    /// Begins the module.
    ///
    /// # Panics
    /// If it can't.
    #[must_use]
    pub fn new(module: &[u8], limits: &Limits, config: &[u8]) -> Self {
        let prepared = engine::prepare(engine::hash(module), module).expect("the module is good");
        let (mut guest, _) = Guest::live(&prepared.module, limits).expect("it can be instantiated");
        guest.begin(limits, config).expect("it begins");
        let mut header = [0; HEADER_BYTES];
        header[0] = 64;
        Self { guest, header, fuel: limits.apply_fuel }
    }

    /// A call, and its decoded reply.
    ///
    /// # Panics
    /// If it traps.
    pub fn call(&mut self, request: &[u8]) -> Bytes {
        self.guest.apply(&self.header, request, self.fuel).expect("it answers").output.reply
    }
}

/// What the two halves of a swap cost, each without the other.
#[derive(Debug)]
pub struct SwapParts {
    /// The whole snapshot, from a fork, and the copying of its chunks.
    pub snapshot: Duration,
    /// A new instance, begun, and the whole restore.
    pub restore: Duration,
    /// Bytes of the logical state.
    pub bytes: u64,
    /// Fuel that the snapshot burned.
    pub snapshot_fuel: u64,
    /// Fuel that the restore burned.
    pub restore_fuel: u64,
}

/// Measures a swap of the machine's module to `module`, which doesn't happen.
///
/// # Panics
/// If it couldn't.
pub fn swap_parts(machine: &mut Machine, module: &[u8]) -> SwapParts {
    let (application, genesis) = machine.application().expect("the history has begun");
    let (limits, config) = (&genesis.limits, &genesis.app_config);
    let max = limits.chunk_bytes as usize;
    let start = Instant::now();
    let mut fork = application.fork().expect("there is memory");
    let (mut chunks, mut fuel) = (Vec::new(), limits.snapshot_fuel);
    loop {
        match fork.snapshot_chunk(max, &mut fuel).expect("it has a snapshot") {
            [] => break,
            chunk => {
                let bytes = chunk.len();
                chunks.push(chunk.to_vec());
                fuel += FUEL_PER_BYTE * bytes as u64;
            }
        }
    }
    let snapshot = start.elapsed();
    let bytes = chunks.iter().map(Vec::len).sum::<usize>() as u64;
    let snapshot_fuel = limits.snapshot_fuel + FUEL_PER_BYTE * bytes - fuel;

    let incoming = engine::prepare(engine::hash(module), module).expect("the module is good");
    let start = Instant::now();
    let (mut live, _) = Guest::live(&incoming.module, limits).expect("it can be instantiated");
    live.begin(limits, config).expect("it begins");
    let mut fuel = limits.restore_fuel + FUEL_PER_BYTE * bytes;
    for (number, chunk) in chunks.iter().enumerate() {
        live.put_piece(chunk);
        let last = number + 1 == chunks.len();
        let taken = live.restore_piece(chunk.len(), incoming.info.schema(), last, &mut fuel);
        taken.expect("it doesn't trap").expect("it takes the state");
    }
    let (restore, restore_fuel) = (start.elapsed(), limits.restore_fuel + FUEL_PER_BYTE * bytes - fuel);
    SwapParts { snapshot, restore, bytes, snapshot_fuel, restore_fuel }
}

impl BenchGuest {
    /// The first chunk of a snapshot, or the trap that came of it.
    ///
    /// # Errors
    /// The trap.
    ///
    /// # Panics
    /// If this node can't go on.
    pub fn snapshot(&mut self) -> Result<u64, Trap> {
        trap_of(self.guest.call("rsm_snapshot", (64u32 << 10,), self.fuel))
    }

    /// What `rsm_restore` says to an empty last chunk.
    ///
    /// # Errors
    /// The trap.
    ///
    /// # Panics
    /// If this node can't go on.
    pub fn restore(&mut self) -> Result<u32, Trap> {
        let input = u32::try_from(self.guest.input()).expect("an address");
        trap_of(self.guest.call("rsm_restore", (input, 0u32, 1u32, 1u32), self.fuel))
    }
}

fn trap_of<T>(called: Result<T, Failure>) -> Result<T, Trap> {
    called.map_err(|failure| match failure {
        Failure::Trap(trap) => trap,
        Failure::Halt(halt) => panic!("{halt}"),
    })
}

/// A session table and a digest, without anything around them.
pub struct BenchTable {
    sessions: Sessions,
    digest: RunningDigest,
    limits: Limits,
    count: u64,
    step: u64,
}

impl BenchTable {
    /// With `count` open sessions.
    #[must_use]
    pub fn new(count: u64) -> Self {
        let mut sessions = Sessions::default();
        for i in 0..count {
            sessions.open(Self::id(i), 1 << 40, 0);
        }
        Self { sessions, digest: RunningDigest::default(), limits: Limits::default(), count, step: 0 }
    }

    fn id(i: u64) -> SessionId {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        SessionId(id)
    }

    /// A request of the next session: judged, folded in, stored.
    ///
    /// # Panics
    /// If it isn't the next one.
    pub fn step(&mut self, request: &[u8]) -> Digest {
        let (id, sequence) = (Self::id(self.step % self.count), self.step / self.count + 1);
        self.step += 1;
        let session = self.sessions.get_mut(&id).expect("it is open");
        let Verdict::Execute(hash) = session.judge(Sequence(sequence), Sequence(sequence), request, 0, &self.limits)
        else {
            panic!("sequence {sequence} isn't the next one")
        };
        let result = RequestResult::Reply(Bytes::copy_from_slice(request));
        let position = Position::new(1, self.step);
        let digest = self.digest.fold_executed(position, position, &result, &[]);
        session.store(hash, result, position, digest);
        digest
    }
}
