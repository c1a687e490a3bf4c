//! Who waits for which entry: the meeting point of the service, the proposer and the apply loop.
//!
//! An entry is known by its seed until it has an index. Every node applies every entry; the node whose client waits for it finds
//! the seed here and answers with its own outcome.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use replicator_machine::{Outcome, Refusal};
use replicator_types::{Digest, Position, Seed};
use tokio::sync::{mpsc, oneshot};

use super::NodeError;

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

/// The outcome, or why there won't be one here.
pub(super) type Finished = Result<Done, NodeError>;

/// Where an outcome goes.
pub(super) enum Reply {
    /// To who waits for this one.
    One(oneshot::Sender<Finished>),
    /// To who waits for many, with the ticket of this one.
    Many(mpsc::UnboundedSender<(u64, Finished)>, u64),
}

/// An outcome on its way to who waits for that one. To be sent on the runtime that serves clients: there, the answers of a batch are ready
/// before the connections that they go out by, which then send them all in one go.
pub(super) struct Answer {
    reply: oneshot::Sender<Finished>,
    done: Done,
}

impl Answer {
    pub(super) fn send(self) {
        let _ = self.reply.send(Ok(self.done)); // Fails only if nobody waits any more.
    }
}

struct Waiter {
    reply: Reply,
    bytes: usize,
    /// How often the entry was given to a primary. From the first time on, its outcome may be unknown (safety rule 14).
    proposed: u32,
}

/// Takes a seed's last 8 bytes as its hash: it comes from this node's own generator.
#[derive(Default)]
struct SeedHasher(u64);

impl Hasher for SeedHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    /// `[u8; 16]` hashes its length too, which says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default)]
struct Waiting {
    entries: HashMap<Seed, Waiter, BuildHasherDefault<SeedHasher>>,
    bytes: usize,
}

impl Waiting {
    fn add(&mut self, seed: Seed, bytes: usize, reply: Reply) {
        self.bytes += bytes;
        self.entries.insert(seed, Waiter { reply, bytes, proposed: 0 });
    }

    fn remove(&mut self, seed: Seed) -> Option<Waiter> {
        let waiter = self.entries.remove(&seed)?;
        self.bytes -= waiter.bytes;
        Some(waiter)
    }
}

/// The entries that somebody on this node waits for, bounded in number and in bytes.
pub(super) struct Waiters {
    waiting: Mutex<Waiting>,
    entries_max: usize,
    bytes_max: usize,
}

impl Waiters {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { waiting: Mutex::default(), entries_max, bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for an entry of that many bytes. None: the node waits for as much as it may.
    pub(super) fn add(&self, seed: Seed, bytes: usize) -> Option<oneshot::Receiver<Finished>> {
        let (done, receiver) = oneshot::channel();
        (self.add_all([(seed, bytes, Reply::One(done))].into_iter()) == 1).then_some(receiver)
    }

    /// Begins to wait for entries: those from the front on that there is room for. Returns how many.
    pub(super) fn add_all(&self, entries: impl Iterator<Item = (Seed, usize, Reply)>) -> usize {
        let mut waiting = self.lock();
        let mut added = 0;
        for (seed, bytes, reply) in entries {
            if waiting.entries.len() >= self.entries_max || waiting.bytes + bytes > self.bytes_max {
                break;
            }
            waiting.add(seed, bytes, reply);
            added += 1;
        }
        added
    }

    /// Gives up. Returns whether the entry was given to a primary; None if it is answered, or was dropped with all others.
    pub(super) fn give_up(&self, seed: Seed) -> Option<bool> {
        self.lock().remove(seed).map(|waiter| waiter.proposed > 0)
    }

    /// Gives up several.
    pub(super) fn give_up_all(&self, seeds: impl Iterator<Item = Seed>) {
        let mut waiting = self.lock();
        seeds.for_each(|seed| drop(waiting.remove(seed)));
    }

    /// Whether somebody still waits.
    pub(super) fn contains(&self, seed: Seed) -> bool {
        self.lock().entries.contains_key(&seed)
    }

    /// Marks those that somebody still waits for as proposed, and tells which they are.
    pub(super) fn mark_proposed(&self, seeds: impl Iterator<Item = Seed>) -> Vec<bool> {
        let mut waiting = self.lock();
        seeds
            .map(|seed| match waiting.entries.get_mut(&seed) {
                Some(waiter) => {
                    waiter.proposed = waiter.proposed.saturating_add(1);
                    true
                }
                None => false,
            })
            .collect()
    }

    /// Takes back one mark: those entries were not given to a primary after all.
    pub(super) fn unmark_proposed(&self, seeds: impl Iterator<Item = Seed>) {
        let mut waiting = self.lock();
        for seed in seeds {
            if let Some(waiter) = waiting.entries.get_mut(&seed) {
                waiter.proposed = waiter.proposed.saturating_sub(1);
            }
        }
    }

    /// Takes back one mark, and tells those who wait for what was given to no primary at all why it won't be now.
    pub(super) fn refuse(&self, seeds: impl Iterator<Item = Seed>, why: &NodeError) {
        let mut waiting = self.lock();
        for seed in seeds {
            let Some(waiter) = waiting.entries.get_mut(&seed) else { continue };
            waiter.proposed = waiter.proposed.saturating_sub(1);
            if waiter.proposed > 0 {
                continue; // An earlier copy may yet be executed.
            }
            match waiting.remove(seed).map(|waiter| waiter.reply) {
                Some(Reply::One(reply)) => drop(reply.send(Err(why.clone()))), // Fails only if nobody waits any more.
                Some(Reply::Many(reply, ticket)) => drop(reply.send((ticket, Err(why.clone())))),
                None => {}
            }
        }
    }

    /// Finds those of a batch of applied entries that somebody waits for, and tells who waits for many. The others' answers are to be sent.
    ///
    /// A refusal that a later copy of the same entry might not meet is no outcome yet if there may be such a copy: its waiter goes on.
    #[must_use]
    pub(super) fn complete(&self, applied: impl Iterator<Item = (Seed, Done)>) -> Vec<Answer> {
        let mut waiting = self.lock();
        let mut answers = Vec::new();
        for (seed, done) in applied {
            let copies = waiting.entries.get(&seed).map_or(0, |waiter| waiter.proposed);
            if copies > 1 && is_transient(&done.outcome) {
                continue;
            }
            match waiting.remove(seed).map(|waiter| waiter.reply) {
                Some(Reply::One(reply)) => answers.push(Answer { reply, done }),
                Some(Reply::Many(reply, ticket)) => drop(reply.send((ticket, Ok(done)))), // Fails only if nobody waits.
                None => {}
            }
        }
        answers
    }

    /// Drops all: the machine has halted, or went on from an image, and nobody will be answered. Those who wait ask again.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        for waiter in waiting.entries.into_values() {
            if let Reply::Many(reply, ticket) = waiter.reply {
                let _ = reply.send((ticket, Err(NodeError::OutcomeUnknown))); // Fails only if nobody waits any more.
            }
        }
    }
}

const fn is_transient(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal::Gap { .. } | Refusal::WindowFull { .. } | Refusal::SessionsFull { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed([7; 16]);

    fn done(outcome: Outcome) -> Done {
        Done { position: Position::new(1, 2), outcome, digest: Digest(3) }
    }

    #[test]
    fn an_entry_never_given_to_a_primary_is_known_to_have_done_nothing() {
        let waiters = Waiters::new(10, 1_000);
        let _done = waiters.add(SEED, 10).unwrap();
        assert_eq!(waiters.give_up(SEED), Some(false));
        let _done = waiters.add(SEED, 10).unwrap();
        assert_eq!(waiters.mark_proposed([SEED].into_iter()), [true]);
        waiters.unmark_proposed([SEED].into_iter());
        assert_eq!(waiters.give_up(SEED), Some(false));
        let _done = waiters.add(SEED, 10).unwrap();
        assert_eq!(waiters.mark_proposed([SEED].into_iter()), [true]);
        assert_eq!(waiters.give_up(SEED), Some(true));
        assert_eq!(waiters.mark_proposed([SEED].into_iter()), [false]);
    }

    #[test]
    fn an_answer_and_giving_up_race_without_losing_the_answer() {
        let waiters = Waiters::new(10, 1_000);
        let mut receiver = waiters.add(SEED, 10).unwrap();
        waiters.mark_proposed([SEED].into_iter());
        waiters.complete([(SEED, done(Outcome::Genesis))].into_iter()).into_iter().for_each(Answer::send);
        assert_eq!(waiters.give_up(SEED), None);
        assert_eq!(receiver.try_recv().unwrap().unwrap().outcome, Outcome::Genesis);
    }

    #[test]
    fn a_gap_is_no_outcome_while_another_copy_may_come() {
        let waiters = Waiters::new(10, 1_000);
        let mut receiver = waiters.add(SEED, 10).unwrap();
        waiters.mark_proposed([SEED].into_iter());
        waiters.mark_proposed([SEED].into_iter());
        let gap = Outcome::Refused(Refusal::Gap { last: replicator_types::Sequence(1) });
        assert!(waiters.complete([(SEED, done(gap))].into_iter()).is_empty());
        assert!(receiver.try_recv().is_err());
        waiters.complete([(SEED, done(Outcome::Genesis))].into_iter()).into_iter().for_each(Answer::send);
        assert_eq!(receiver.try_recv().unwrap().unwrap().outcome, Outcome::Genesis);
    }

    #[test]
    fn what_may_have_been_proposed_before_is_not_refused() {
        let waiters = Waiters::new(10, 1_000);
        let full = NodeError::DiskFull { node: "n1".into() };
        let mut receiver = waiters.add(SEED, 10).unwrap();
        waiters.mark_proposed([SEED].into_iter());
        waiters.mark_proposed([SEED].into_iter());
        waiters.refuse([SEED].into_iter(), &full);
        assert!(receiver.try_recv().is_err() && waiters.contains(SEED));
        waiters.refuse([SEED].into_iter(), &full);
        assert!(matches!(receiver.try_recv(), Ok(Err(NodeError::DiskFull { node })) if node == "n1"));
        assert!(!waiters.contains(SEED));
    }

    #[test]
    fn entries_and_bytes_are_bounded_and_freed() {
        let waiters = Waiters::new(2, 100);
        let one = waiters.add(SEED, 90);
        assert!(one.is_some() && waiters.add(Seed([8; 16]), 20).is_none());
        waiters.give_up(SEED);
        assert!(waiters.add(Seed([8; 16]), 20).is_some() && waiters.add(Seed([9; 16]), 20).is_some());
        assert!(waiters.add(SEED, 1).is_none());
    }
}
