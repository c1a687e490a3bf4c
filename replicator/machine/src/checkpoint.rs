//! Checkpoints: the places in the log at which replicas compare their states, not only what these have answered (safety rule 20).
//!
//! The running digest covers every answer and every push. What a module has written and not told yet, only its memory shows; at a checkpoint
//! the state's hash is made of what is cheap to have: the sum over the memory's pages ([`crate::page_sums`]), which costs a copy for rollback
//! (that was due soon anyway), the globals, a few numbers of each session, how much the retained pushes are, the clocks, which modules ran.
//! [`crate::Machine::state_hash`] reads every byte instead, and is for operators.
//!
//! Where they are follows from the log alone, so all replicas that apply an entry make the same ones.

use replicator_types::LogIndex;

use crate::entry::{Command, Entry};

/// There is one at every multiple of this index. At 150,000 entries a second, 37 a second.
pub const CHECKPOINT_ENTRIES: u64 = 4_096;

/// Sessions, if there are no more of them, are in every checkpoint.
pub(crate) const SESSIONS_MAX: usize = 16 << 10;
/// If there are more, only where the index is a multiple of this: reading all of 2^20 sessions takes some 50 ms.
pub(crate) const SESSIONS_ENTRIES: u64 = 256 * CHECKPOINT_ENTRIES;

/// Whether there is a checkpoint after the entry at `index`; none: it is the strategy's own.
///
/// After each tick, too, so that a cluster with sessions and little else to do has one a second; and after each activation, which made all of the state anew.
#[must_use]
pub fn is_checkpoint(index: LogIndex, entry: Option<&Entry>) -> bool {
    let is_one = |entry: &Entry| matches!(entry.command, Command::Tick | Command::Activate { .. });
    index.0.is_multiple_of(CHECKPOINT_ENTRIES) || entry.is_some_and(is_one)
}
