//! Gets entries to the primary, wherever it is, in the order in which clients gave them.
//!
//! An entry stays pending until this node has applied it or its client has given up. After any doubt (a new primary, a
//! refusal, a lost answer, a long silence) every pending entry is proposed again, in order: the session table makes repeats
//! harmless, and order keeps a session's pipeline free of gaps.
//!
//! Batches go at the pace of [`Pacer`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use replicator_storage::Log;
use replicator_types::Seed;
use tokio::{sync::watch, time::Instant};

use super::{
    NodeError,
    pacer::Pacer,
    proposals::{Proposal, Proposals},
    waiters::Waiters,
};
use crate::{
    replication::{Fate, Strategy, View},
    seams::Clock,
    transport::{Envelope, Peers, Proposed},
};

/// Entries in one batch.
const BATCH_ENTRIES_MAX: usize = 1_024;
/// A batch of so many doesn't wait for the one before, if this node is the primary: its fixed price is small for each entry, and the next one can
/// be worked on meanwhile. To another node, batches go one after the other: two calls might overtake each other.
const BATCH_ENTRIES_FULL: usize = 256;
/// Bytes in one batch, unless a single entry is larger.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// After a refusal, before the next try.
const BACKOFF: Duration = Duration::from_millis(20);
/// After this long without an answer, entries are proposed again; doubles with each time.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(8);

pub(super) struct Proposer {
    pub(super) proposals: Arc<Proposals>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) strategy: Arc<dyn Strategy>,
    /// Says whether there is room for more.
    pub(super) log: Arc<dyn Log>,
    pub(super) peers: Peers,
    pub(super) clock: Arc<dyn Clock>,
    /// With this node as sender; the receiver is filled in.
    pub(super) envelope: Envelope,
}

/// What is pending, and how much of it has been given to the current primary.
#[derive(Default)]
struct Pending {
    queue: VecDeque<Proposal>,
    given: usize,
}

impl Pending {
    /// Drops what nobody waits for: at the front, and everywhere before a repeat.
    fn prune(&mut self, waiters: &Waiters) {
        while self.queue.front().is_some_and(|proposal| !waiters.contains(proposal.seed)) {
            self.queue.pop_front();
            self.given = self.given.saturating_sub(1);
        }
    }

    fn repeat(&mut self, waiters: &Waiters) {
        self.queue.retain(|proposal| waiters.contains(proposal.seed));
        self.given = 0;
    }

    /// How many entries have not been given yet.
    fn waiting(&self) -> usize {
        self.queue.len() - self.given
    }

    /// How many entries are missing before the next batch may go; 0: it may.
    fn missing(&self, under_way: &UnderWay, pacer: &Pacer, primary: bool) -> usize {
        let enough = match (under_way.is_empty(), primary) {
            (true, _) => pacer.enough().min(BATCH_ENTRIES_FULL),
            (false, true) => BATCH_ENTRIES_FULL,
            (false, false) => usize::MAX,
        };
        enough.saturating_sub(self.waiting())
    }

    /// The next batch to give, still in the queue.
    fn batch(&self) -> impl Iterator<Item = &Proposal> {
        let mut bytes = 0;
        self.queue.iter().skip(self.given).take(BATCH_ENTRIES_MAX).take_while(move |proposal| {
            let first = bytes == 0;
            bytes += proposal.encoded.len();
            first || bytes <= BATCH_BYTES_MAX
        })
    }
}

/// Batches that a primary has, until they are applied or refused.
type UnderWay = FuturesUnordered<BoxFuture<'static, (Fate, Vec<Seed>)>>;

impl Proposer {
    pub(super) async fn run(self) {
        self.propose().await;
        self.proposals.close();
    }

    async fn propose(&self) {
        let mut view: watch::Receiver<View> = self.strategy.view();
        let mut pending = Pending::default();
        let mut under_way = UnderWay::new();
        let mut pacer = Pacer::new(self.clock.clone());
        let mut silence = SILENCE;
        let mut repeat_at = Instant::now() + silence;
        let mut front = None;
        let mut give_at = Instant::now();
        loop {
            pending.prune(&self.waiters);
            let primary = view.borrow().primary == Some(self.envelope.from);
            let missing = pending.missing(&under_way, &pacer, primary);
            let idle = pending.queue.is_empty();
            // Silence is the front entry's: others that come and go behind it say nothing of what became of it.
            let first = pending.queue.front().map(|proposal| proposal.seed);
            if first != front {
                (front, silence) = (first, SILENCE);
                repeat_at = Instant::now() + silence;
            }
            let room = pending.queue.len() < 16 * BATCH_ENTRIES_MAX;
            let mut answered = None;
            tokio::select! {
                biased;
                changed = view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pending.repeat(&self.waiters);
                    under_way.clear();
                    give_at = Instant::now();
                }
                Some((fate, entries)) = under_way.next() => {
                    if fate == Fate::Applied {
                        answered = Some(entries.len());
                    } else {
                        match fate {
                            Fate::Refused => self.waiters.unmark_proposed(entries.into_iter()),
                            Fate::NoRoom => self.waiters.refuse(entries.into_iter(), &self.disk_full(&view)),
                            Fate::Applied | Fate::Unknown => {}
                        }
                        pending.repeat(&self.waiters);
                        under_way.clear();
                        give_at = Instant::now() + BACKOFF;
                    }
                }
                () = pacer.released() => {}
                () = self.proposals.gathered(missing.max(1)), if room => {}
                () = tokio::time::sleep_until(give_at), if missing == 0 => {}
                () = tokio::time::sleep_until(repeat_at), if !idle => {
                    pending.repeat(&self.waiters);
                    under_way.clear();
                    silence = (2 * silence).min(SILENCE_MAX);
                    repeat_at = Instant::now() + silence;
                }
            }
            if room {
                self.proposals.take(&mut pending.queue);
            }
            if let Some(answered) = answered {
                pacer.finished(answered, pending.waiting());
            }
            if pending.missing(&under_way, &pacer, primary) == 0 && Instant::now() >= give_at {
                let now = view.borrow().clone();
                pacer.given();
                if let Some(given) = self.give(&mut pending, &now).await {
                    under_way.push(given);
                } else {
                    give_at = Instant::now() + BACKOFF;
                }
            }
        }
    }

    /// Gives the next batch to the primary. None: there is none.
    async fn give(&self, pending: &mut Pending, view: &View) -> Option<BoxFuture<'static, (Fate, Vec<Seed>)>> {
        let primary = view.primary()?;
        let wanted = self.waiters.mark_proposed(pending.batch().map(|proposal| proposal.seed));
        let batch = pending.batch().zip(&wanted).filter(|(_, wanted)| **wanted);
        let (seeds, batch): (Vec<Seed>, Vec<Bytes>) =
            batch.map(|(proposal, _)| (proposal.seed, proposal.encoded.clone())).unzip();
        pending.given += wanted.len();
        let given = if batch.is_empty() {
            std::future::ready(Fate::Applied).boxed() // Nobody waits for any of them.
        } else if primary.disk == self.envelope.from && !self.log.room().open {
            std::future::ready(Fate::NoRoom).boxed()
        } else if primary.disk == self.envelope.from {
            // The group has them, in order, before the next batch is given.
            self.strategy.propose(batch).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "proposing failed");
                std::future::ready(Fate::Refused).boxed()
            })
        } else {
            let envelope = Envelope { to: primary.disk, ..self.envelope };
            pass_on(self.peers.clone(), primary.peer_address.clone(), envelope, batch).boxed()
        };
        Some(given.map(|fate| (fate, seeds)).boxed())
    }

    fn disk_full(&self, view: &watch::Receiver<View>) -> NodeError {
        NodeError::DiskFull { node: view.borrow().primary().map(|primary| primary.node.clone()).unwrap_or_default() }
    }
}

async fn pass_on(peers: Peers, address: String, envelope: Envelope, batch: Vec<Bytes>) -> Fate {
    let proposed = match peers.channel(&address) {
        Ok(channel) => channel.propose(envelope, batch, SILENCE).await,
        Err(error) => Err(error),
    };
    match proposed {
        Ok(Proposed::Taken) => Fate::Applied,
        Ok(Proposed::NotPrimary) => Fate::Refused,
        Ok(Proposed::NoRoom) => Fate::NoRoom,
        Err(error) => {
            tracing::debug!(%error, address, "passing entries on failed");
            Fate::Unknown
        }
    }
}
