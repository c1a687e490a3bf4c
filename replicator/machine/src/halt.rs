//! Why a node stops applying.

use replicator_types::{ModuleHash, Position};

use crate::{limits::LimitsError, load::LoadError};

/// Fatal to this node, and never a logged result: the node stops applying, and says so.
///
/// After [`Halt::ModuleMissing`], [`Halt::ModuleDamaged`], [`Halt::IndexBackwards`], [`Halt::AwaitsEngine`] and every other halt at genesis
/// the machine is as it was, and the same entry may be applied again once the cause is gone. After the others it answers
/// [`Halt::Halted`] for good: rebuild it, from an image or a peer.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The module store doesn't have the module. Fetch it from a peer, and apply the same entry again.
    #[error("module {0} isn't in the module store; fetch it from a peer")]
    ModuleMissing(ModuleHash),
    /// The module store gave other bytes than asked for. Fetch the module again.
    #[error("the module store gave {found} for module {wanted}; fetch it again from a peer")]
    ModuleDamaged {
        /// The hash asked for.
        wanted: ModuleHash,
        /// The hash of what was given.
        found: ModuleHash,
    },
    /// The module that the genesis entry names can't run, here or anywhere.
    #[error("the cluster's module is refused: {0}")]
    ModuleRefused(#[from] LoadError),
    /// The genesis entry's limits are out of range.
    #[error("the cluster's limits are refused: {0}")]
    LimitsRefused(#[from] LimitsError),
    /// The history, or the image, is to go on with another engine than this program has.
    #[error(
        "the cluster's engine is {logged:?}, this program's is {ours:?}; start the program that the cluster runs (after an upgrade the new \
         program goes on from an image that the old one took at the upgrade or later)"
    )]
    EngineMismatch {
        /// The engine of the genesis entry; the one in force at the image.
        logged: String,
        /// The engine of this program.
        ours: String,
    },
    /// An engine barrier was applied: from there on the log is for programs of another engine. What was applied can still be imaged and read.
    #[error(
        "the cluster was upgraded to the engine {awaited:?}, this program's is {ours:?}; start the program of the new engine, which goes on \
         from an image that was taken at the upgrade or later"
    )]
    AwaitsEngine {
        /// The engine in force.
        awaited: String,
        /// The engine of this program.
        ours: String,
    },
    /// An entry came that isn't after the last one applied: a bug of the caller.
    #[error("entry {given} comes after {applied} was applied")]
    IndexBackwards {
        /// What was applied last.
        applied: Position,
        /// What was given.
        given: Position,
    },
    /// The host can't give memory that the logged limit allows.
    #[error("host memory: {0}; give the node more memory and start it again")]
    HostMemory(String),
    /// wasmtime failed in a way that is no trap.
    #[error("wasm engine: {0}")]
    Engine(String),
    /// Calls needed more native stack than they are counted for (`docs/adr/0018`): the code that this host's compiler made is larger than any
    /// that was thought of.
    #[error(
        "the native stack ended before the module's calls had used up what they have (docs/adr/0018); keep the module and report it, and start \
         this node with a newer program"
    )]
    NativeStack,
    /// Replaying entries after a trap came to something else than the first time: the host or its memory is broken, or
    /// the module is not deterministic.
    #[error("rollback after a trap: entry {index} came to something else than the first time; rebuild this node")]
    RollbackDiffers {
        /// The entry's index.
        index: u64,
    },
    /// The machine halted before, and can't go on.
    #[error("halted earlier: {0}")]
    Halted(String),
}
