//! Gets entries to the primary, wherever it is, in the order in which clients gave them.
//!
//! An entry stays pending until this node has applied it or its client has given up. After any doubt (a new primary, a
//! refusal, a lost answer, a long silence) every pending entry is proposed again, in order: the session table makes repeats
//! harmless, and order keeps a session's pipeline free of gaps.
//! Batches go at the pace of [`Pacer`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use replicator_types::Seed;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{pacer::Pacer, waiters::Waiters};
use crate::{
    replication::{Rejected, Strategy, View},
    seams::Clock,
    transport::{Envelope, Peers},
};

/// Entries in one batch.
const BATCH_ENTRIES_MAX: usize = 1_024;
/// Bytes in one batch, unless a single entry is larger.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// After a refusal, before the next try.
const BACKOFF: Duration = Duration::from_millis(20);
/// After this long without an answer, entries are proposed again; doubles with each time.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(8);

/// An entry on its way.
pub(super) struct Proposal {
    pub(super) seed: Seed,
    pub(super) encoded: Bytes,
}

pub(super) struct Proposer {
    pub(super) waiters: Arc<Waiters>,
    pub(super) strategy: Arc<dyn Strategy>,
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

    /// Whether there is a batch to give, and it need not wait.
    fn may_give(&self, under_way: &UnderWay, pacer: &Pacer) -> bool {
        match self.waiting() {
            0 => false,
            BATCH_ENTRIES_MAX.. => true,
            waiting => under_way.is_empty() && !pacer.holds(waiting),
        }
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

/// Batches that this node's own group has, until they are applied or refused; and how large they are.
type UnderWay = FuturesUnordered<BoxFuture<'static, (Rejected, usize)>>;

/// What became of a batch.
enum Given {
    /// The primary has it, or nobody wanted it any more.
    Taken,
    /// This node's own group has it, and may yet refuse it.
    UnderWay(BoxFuture<'static, Rejected>),
    /// It was not taken, for sure.
    Refused,
    /// Whether it was taken is unknown.
    Doubtful,
}

impl Proposer {
    pub(super) async fn run(self, mut incoming: mpsc::Receiver<Vec<Proposal>>) {
        let mut view: watch::Receiver<View> = self.strategy.view();
        let mut pending = Pending::default();
        let mut under_way = UnderWay::new();
        let mut pacer = Pacer::new(self.clock.clone());
        let mut fresh: Vec<Vec<Proposal>> = Vec::new();
        let mut silence = SILENCE;
        let mut repeat_at = Instant::now() + silence;
        let mut front = None;
        let mut give_at = Instant::now();
        loop {
            pending.prune(&self.waiters);
            let may_give = pending.may_give(&under_way, &pacer);
            let idle = pending.queue.is_empty();
            // Silence is the front entry's: others that come and go behind it say nothing of what became of it.
            let first = pending.queue.front().map(|proposal| proposal.seed);
            if first != front {
                (front, silence) = (first, SILENCE);
                repeat_at = Instant::now() + silence;
            }
            let room = pending.queue.len() < 16 * BATCH_ENTRIES_MAX;
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
                Some((Rejected(rejected), entries)) = under_way.next() => {
                    if rejected {
                        pending.repeat(&self.waiters);
                        under_way.clear();
                        give_at = Instant::now() + BACKOFF;
                    } else {
                        pacer.finished(entries, pending.waiting());
                    }
                }
                () = pacer.released() => {}
                taken = incoming.recv_many(&mut fresh, BATCH_ENTRIES_MAX), if room => {
                    if taken == 0 {
                        return;
                    }
                    pending.queue.extend(fresh.drain(..).flatten());
                }
                () = tokio::time::sleep_until(give_at), if may_give => {}
                () = tokio::time::sleep_until(repeat_at), if !idle => {
                    pending.repeat(&self.waiters);
                    under_way.clear();
                    silence = (2 * silence).min(SILENCE_MAX);
                    repeat_at = Instant::now() + silence;
                }
            }
            if pending.may_give(&under_way, &pacer) && Instant::now() >= give_at {
                let now = view.borrow().clone();
                let entries = pending.batch().count();
                pacer.given();
                match self.give(&mut pending, &now).await {
                    Given::Taken => pacer.finished(entries, pending.waiting()),
                    Given::UnderWay(result) => under_way.push(result.map(move |result| (result, entries)).boxed()),
                    Given::Refused | Given::Doubtful => {
                        pending.repeat(&self.waiters);
                        give_at = Instant::now() + BACKOFF;
                    }
                }
            }
        }
    }

    /// Gives the next batch to the primary.
    async fn give(&self, pending: &mut Pending, view: &View) -> Given {
        let Some(primary) = view.primary() else { return Given::Refused };
        let wanted = self.waiters.mark_proposed(pending.batch().map(|proposal| proposal.seed));
        let batch = pending.batch().zip(&wanted).filter(|(_, wanted)| **wanted);
        let batch: Vec<Bytes> = batch.map(|(proposal, _)| proposal.encoded.clone()).collect();
        let given = if batch.is_empty() {
            Given::Taken
        } else if primary.disk == self.envelope.from {
            match self.strategy.propose(batch).await {
                Ok(result) => Given::UnderWay(result),
                Err(error) => {
                    tracing::debug!(%error, "proposing failed");
                    Given::Refused
                }
            }
        } else {
            let envelope = Envelope { to: primary.disk, ..self.envelope };
            let proposed = match self.peers.channel(&primary.peer_address) {
                Ok(channel) => channel.propose(envelope, batch, SILENCE).await,
                Err(error) => Err(error),
            };
            match proposed {
                Ok(true) => Given::Taken,
                Ok(false) => Given::Refused,
                Err(error) => {
                    tracing::debug!(%error, primary = primary.node, "passing entries on failed");
                    Given::Doubtful
                }
            }
        };
        match given {
            Given::Taken | Given::UnderWay(_) => pending.given += wanted.len(),
            Given::Refused => self.waiters.unmark_proposed(pending.batch().map(|proposal| proposal.seed)),
            Given::Doubtful => {}
        }
        given
    }
}
