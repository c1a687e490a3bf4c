//! The swap: a new instance takes over the logical state of the running one (safety rule 21, `docs/guest-abi.md`).
//!
//! The old module writes its snapshot in a fork, a private view of the live memory, so that calling it changes nothing. Its chunks go
//! straight from there to the new module's input, in a memory of its own. Until all is done the live instance is what it was: whatever
//! goes wrong, the fork and the new instance are thrown away.

use std::sync::Arc;

use crate::{
    activation::ActivationRefusal,
    engine::Prepared,
    guest::{Failure, Guest},
    halt::Halt,
    limits::Limits,
    load::LoadError,
    memory::MemoryFile,
    outcome::{Trap, TrapKind},
};

/// Fuel that each byte of the state brings, beside the limits' own: what a large state may cost grows with it, and a call that doesn't end holds up
/// the service for no longer than on a small one.
pub(crate) const FUEL_PER_BYTE: u64 = 64;

/// The new instance, with all of the state.
pub(crate) struct Successor {
    pub(crate) live: Guest,
    pub(crate) file: Arc<MemoryFile>,
    /// Bytes of the logical snapshot.
    pub(crate) state_bytes: u64,
}

/// Why there is none.
pub(crate) enum Stopped {
    /// The modules' doing: a result.
    Refused(ActivationRefusal),
    /// The host's: none.
    Halt(Halt),
}

impl From<ActivationRefusal> for Stopped {
    fn from(refusal: ActivationRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Makes an instance of `incoming` that has the state of `fork`, which writes snapshots of `schema`.
pub(crate) fn successor(
    fork: &mut Guest,
    schema: u32,
    incoming: &Prepared,
    limits: &Limits,
    config: &[u8],
) -> Result<Successor, Stopped> {
    let (live, file) = begun(incoming, limits, config)?;
    let mut restore = Restore { live, schema, limits, fuel: limits.restore_fuel, done: 0, held: 0 };
    let state_bytes = for_each_chunk(fork, limits, |chunk| restore.take(chunk))?;
    Ok(Successor { live: restore.finish()?, file, state_bytes })
}

/// The state of `fork`, as its module writes it.
pub(crate) fn logical_state(fork: &mut Guest, limits: &Limits) -> Result<Vec<u8>, Stopped> {
    let mut state = Vec::new();
    for_each_chunk(fork, limits, |chunk| {
        state.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(state)
}

/// Has `fork` write its snapshot, and gives each chunk to `take`. Returns the bytes of all.
fn for_each_chunk(
    fork: &mut Guest,
    limits: &Limits,
    mut take: impl FnMut(&[u8]) -> Result<(), Stopped>,
) -> Result<u64, Stopped> {
    let (mut bytes, mut fuel) = (0, limits.snapshot_fuel);
    let max = limits.memory_bytes() as u64;
    loop {
        let chunk = fork.snapshot_chunk(limits.chunk_bytes as usize, &mut fuel);
        let chunk = chunk.map_err(|failure| snapshot_failed(failure, bytes, limits))?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        bytes += chunk.len() as u64;
        fuel = fuel.saturating_add(FUEL_PER_BYTE * chunk.len() as u64);
        if bytes > max {
            return Err(ActivationRefusal::SnapshotTooLong { max }.into());
        }
        take(chunk)?;
    }
}

/// An instance fresh from `rsm_init`.
fn begun(incoming: &Prepared, limits: &Limits, config: &[u8]) -> Result<(Guest, Arc<MemoryFile>), Stopped> {
    let (mut live, file) = Guest::live(&incoming.module, limits).map_err(refused_at_begin)?;
    match live.begin(limits, config) {
        Ok(()) => Ok((live, file)),
        Err(Halt::ModuleRefused(_)) if live.took_memory_limit() => Err(out_of_memory(0, limits)),
        Err(halt) => Err(refused_at_begin(halt)),
    }
}

fn refused_at_begin(halt: Halt) -> Stopped {
    match halt {
        Halt::ModuleRefused(LoadError::Call { call, reason }) => {
            ActivationRefusal::Begin { call: call.to_owned(), reason }.into()
        }
        Halt::ModuleRefused(error) => ActivationRefusal::from(error).into(),
        halt => Stopped::Halt(halt),
    }
}

fn snapshot_failed(failure: Failure, bytes: u64, limits: &Limits) -> Stopped {
    match failure {
        Failure::Trap(Trap { kind: TrapKind::OutOfFuel, .. }) => {
            ActivationRefusal::SnapshotOutOfFuel { bytes, fuel: limits.snapshot_fuel }.into()
        }
        Failure::Trap(trap) => ActivationRefusal::SnapshotTrapped { bytes, trap }.into(),
        Failure::Halt(halt) => Stopped::Halt(halt),
    }
}

fn out_of_memory(bytes: u64, limits: &Limits) -> Stopped {
    ActivationRefusal::OutOfMemory { bytes, pages: limits.memory_pages }.into()
}

/// The new instance, while it takes the state.
struct Restore<'a> {
    live: Guest,
    schema: u32,
    limits: &'a Limits,
    fuel: u64,
    /// Bytes that it has taken.
    done: u64,
    /// Bytes that lie in its input: only when there are more, or none, it is known whether they are the last.
    held: usize,
}

impl Restore<'_> {
    fn take(&mut self, chunk: &[u8]) -> Result<(), Stopped> {
        for piece in chunk.chunks(self.live.input_bytes()) {
            if self.held > 0 {
                self.restore_held(false)?;
            }
            self.live.put_piece(piece);
            self.held = piece.len();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Guest, Stopped> {
        self.restore_held(true)?;
        Ok(self.live)
    }

    fn restore_held(&mut self, last: bool) -> Result<(), Stopped> {
        let (bytes, limits) = (self.done, self.limits);
        self.done += self.held as u64;
        self.fuel = self.fuel.saturating_add(FUEL_PER_BYTE * self.held as u64);
        self.live.took_memory_limit(); // What was asked before, and lived with.
        let restored = self.live.restore_piece(self.held, self.schema, last, &mut self.fuel);
        match restored {
            Ok(Ok(())) => Ok(()),
            Ok(Err((code, reason))) => Err(ActivationRefusal::RestoreRefused { bytes, code, reason }.into()),
            Err(Failure::Halt(halt)) => Err(Stopped::Halt(halt)),
            Err(Failure::Trap(Trap { kind: TrapKind::OutOfFuel, .. })) => {
                Err(ActivationRefusal::RestoreOutOfFuel { bytes, fuel: limits.restore_fuel }.into())
            }
            Err(Failure::Trap(_)) if self.live.took_memory_limit() => Err(out_of_memory(bytes, limits)),
            Err(Failure::Trap(trap)) => Err(ActivationRefusal::RestoreTrapped { bytes, trap }.into()),
        }
    }
}
