//! Who waits for which entry: the meeting point of the service, the proposer and the apply loop.
//!
//! An entry is known by its seed until it has an index. Every node applies every entry; the node whose client waits for it finds
//! the seed here and answers with its own outcome.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use replicator_machine::Outcome;
use replicator_types::{Digest, Position, Seed};
use tokio::sync::oneshot;

/// What became of an entry on this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    /// Where it was applied.
    pub(crate) position: Position,
    /// The outcome.
    pub(crate) outcome: Outcome,
    /// The running digest after it.
    pub(crate) digest: Digest,
}

struct Waiter {
    done: oneshot::Sender<Done>,
    /// Whether the entry was given to a primary: from then on its outcome may be unknown (safety rule 14).
    proposed: bool,
}

/// The entries that somebody on this node waits for. Bounded by `waiters_max`.
pub(super) struct Waiters {
    waiting: Mutex<HashMap<Seed, Waiter>>,
    waiters_max: usize,
}

impl Waiters {
    pub(super) fn new(waiters_max: usize) -> Self {
        Self { waiting: Mutex::default(), waiters_max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Seed, Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait. None: the node waits for as many as it may.
    pub(super) fn add(&self, seed: Seed) -> Option<oneshot::Receiver<Done>> {
        let (done, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() >= self.waiters_max {
            return None;
        }
        waiting.insert(seed, Waiter { done, proposed: false });
        Some(receiver)
    }

    /// Gives up. Returns whether the entry was given to a primary.
    pub(super) fn give_up(&self, seed: Seed) -> bool {
        self.lock().remove(&seed).is_some_and(|waiter| waiter.proposed)
    }

    /// Whether somebody still waits.
    pub(super) fn contains(&self, seed: Seed) -> bool {
        self.lock().contains_key(&seed)
    }

    /// Marks those that somebody still waits for as proposed, and tells which they are.
    pub(super) fn mark_proposed(&self, seeds: impl Iterator<Item = Seed>) -> Vec<bool> {
        let mut waiting = self.lock();
        seeds
            .map(|seed| match waiting.get_mut(&seed) {
                Some(waiter) => {
                    waiter.proposed = true;
                    true
                }
                None => false,
            })
            .collect()
    }

    /// Answers those of a batch of applied entries that somebody waits for.
    pub(super) fn complete(&self, applied: impl Iterator<Item = (Seed, Done)>) {
        let mut waiting = self.lock();
        for (seed, done) in applied {
            if let Some(waiter) = waiting.remove(&seed) {
                let _ = waiter.done.send(done);
            }
        }
    }

    /// Drops all: the machine has halted, and nobody will be answered.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}
