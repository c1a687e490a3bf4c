//! Entries on their way to the proposer: a queue that wakes it only when enough are there.
//!
//! While a batch is under way nothing can be done with the next entries but to let them gather. A channel would wake the proposer, on another
//! thread, for every one of them.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use replicator_types::Seed;
use tokio::sync::Notify;

/// Entries that may wait, about: one more batch is let in below it.
const ENTRIES_MAX: usize = 16_384;

/// An entry on its way.
pub(super) struct Proposal {
    pub(super) seed: Seed,
    pub(super) encoded: Bytes,
}

/// The queue. One proposer takes from it.
#[derive(Default)]
pub(super) struct Proposals {
    queue: Mutex<Queue>,
    enough: Notify,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Proposal>,
    /// The proposer wants to hear of so many; 0: of none.
    wanted: usize,
    closed: bool,
}

/// The proposer has ended: the node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

impl Proposals {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch, if there is room. Gives it back if there is none.
    pub(super) fn try_push(&self, batch: Vec<Proposal>) -> Result<Result<(), Vec<Proposal>>, Closed> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Closed);
        }
        if queue.entries.len() >= ENTRIES_MAX {
            return Ok(Err(batch));
        }
        queue.entries.extend(batch);
        let wake = queue.wanted > 0 && queue.entries.len() >= queue.wanted;
        if wake {
            queue.wanted = 0;
        }
        drop(queue);
        if wake {
            self.enough.notify_one();
        }
        Ok(Ok(()))
    }

    /// Adds a batch, as soon as there is room.
    pub(super) async fn push(&self, mut batch: Vec<Proposal>) -> Result<(), Closed> {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable(); // Before the look, so that no room made after it is missed.
            batch = match self.try_push(batch)? {
                Ok(()) => return Ok(()),
                Err(batch) => batch,
            };
            room.await;
        }
    }

    /// Waits until at least `wanted` entries are there.
    pub(super) async fn gathered(&self, wanted: usize) {
        loop {
            {
                let mut queue = self.lock();
                if queue.entries.len() >= wanted {
                    queue.wanted = 0;
                    return;
                }
                queue.wanted = wanted;
            }
            self.enough.notified().await;
        }
    }

    /// Moves all entries to the end of `taken`.
    pub(super) fn take(&self, taken: &mut VecDeque<Proposal>) {
        let mut queue = self.lock();
        let was_full = queue.entries.len() >= ENTRIES_MAX;
        taken.append(&mut queue.entries);
        drop(queue);
        if was_full {
            self.room.notify_waiters();
        }
    }

    /// Lets nothing in any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;

    fn batch(entries: usize) -> Vec<Proposal> {
        (0..entries).map(|_| Proposal { seed: Seed([0; 16]), encoded: Bytes::new() }).collect()
    }

    #[tokio::test]
    async fn the_proposer_hears_of_enough_and_not_of_fewer() {
        let proposals = Proposals::default();
        let mut gathered = pin!(proposals.gathered(3));
        assert_eq!(gathered.as_mut().now_or_never(), None);
        proposals.push(batch(2)).await.unwrap();
        assert_eq!(gathered.as_mut().now_or_never(), None);
        proposals.push(batch(1)).await.unwrap();
        assert_eq!(gathered.as_mut().now_or_never(), Some(()));
        let mut taken = VecDeque::new();
        proposals.take(&mut taken);
        assert_eq!(taken.len(), 3);
        assert_eq!(proposals.gathered(1).now_or_never(), None);
    }

    #[tokio::test]
    async fn who_meets_a_full_queue_waits_for_room() {
        let proposals = Arc::new(Proposals::default());
        proposals.push(batch(ENTRIES_MAX)).await.unwrap();
        let waiting = tokio::spawn({
            let proposals = proposals.clone();
            async move { proposals.push(batch(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        proposals.take(&mut VecDeque::new());
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(proposals.gathered(1).now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn a_closed_queue_refuses_even_those_who_wait() {
        let proposals = Arc::new(Proposals::default());
        proposals.push(batch(ENTRIES_MAX)).await.unwrap();
        let waiting = tokio::spawn({
            let proposals = proposals.clone();
            async move { proposals.push(batch(1)).await }
        });
        tokio::task::yield_now().await;
        proposals.close();
        assert_eq!(waiting.await.unwrap(), Err(Closed));
    }
}
