//! Numbers the requests of a session and remembers those without an outcome. No I/O: [`crate::Session`] and
//! [`crate::Pipeline`] share one of these, and never use it at the same time.
//!
//! *Invariants*, after every step: the unsettled numbers are contiguous and end at `next - 1`; a number never changes
//! its payload while an attempt to execute it may be under way.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use replicator_types::Sequence;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    error::{Error, Result},
    session::Executed,
};

/// Somebody who waits for an outcome.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) sender: oneshot::Sender<Result<Executed>>,
    pub(crate) began: Instant,
    pub(crate) deadline: Instant,
}

/// A request without an outcome.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) sequence: u64,
    pub(crate) request: Bytes,
    /// Who waits; nobody after the deadline, or if an earlier caller gave up.
    pub(crate) reply: Option<Reply>,
    /// Has its outcome, but one before it hasn't.
    settled: bool,
    /// Its place in the pipeline's window.
    _permit: Option<OwnedSemaphorePermit>,
}

/// What the outcome of one request means for the others.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing. The outcome itself, if nobody waited for it here.
    Settled(Option<Result<Executed>>),
    /// Send all unsettled requests again, in order.
    Resend,
    /// No other will do better.
    Failed(Error),
}

/// The numbers of one session.
#[derive(Debug)]
pub(crate) struct Sequencer {
    next: u64,
    unsettled: VecDeque<Unsettled>,
    /// Why no request can follow.
    broken: Option<Error>,
    /// Every number below this has its outcome. Readable while the sequencer is in use.
    settled_below: Arc<AtomicU64>,
}

impl Sequencer {
    pub(crate) fn new(next: Sequence, settled_below: Arc<AtomicU64>) -> Self {
        // 0 isn't a number of a session; a saved 0 can only mean that nothing was sent yet.
        let mut sequencer = Self { next: next.0.max(1), unsettled: VecDeque::new(), broken: None, settled_below };
        sequencer.tidy();
        sequencer
    }

    /// The error that every further request gets, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Gives `request` the next number.
    pub(crate) fn push(&mut self, request: Bytes, reply: Option<Reply>, permit: Option<OwnedSemaphorePermit>) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.unsettled.push_back(Unsettled { sequence, request, reply, settled: false, _permit: permit });
        sequence
    }

    /// Takes the last number back: no attempt under it has reached a node.
    pub(crate) fn withdraw(&mut self, sequence: u64) {
        let last = self.unsettled.pop_back().expect("a withdrawn request is the last unsettled one");
        assert_eq!(last.sequence, sequence, "only the last request can be withdrawn");
        self.next = sequence;
        self.tidy();
    }

    /// Every number below this has its outcome: `acked_below`.
    pub(crate) fn floor(&self) -> u64 {
        self.unsettled.front().map_or(self.next, |first| first.sequence)
    }

    /// The number that the next request gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether all have their outcomes.
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// The requests to send, in order.
    pub(crate) fn to_send(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.unsettled.iter().filter(|one| !one.settled).map(|one| (one.sequence, &one.request))
    }

    /// The earliest time at which somebody stops waiting.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.unsettled.iter().filter_map(|one| one.reply.as_ref()).map(|reply| reply.deadline).min()
    }

    /// Takes out those who wait no longer than until `now`.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<(u64, Reply)> {
        let expired = self.unsettled.iter_mut().filter(|one| one.reply.as_ref().is_some_and(|r| r.deadline <= now));
        expired.filter_map(|one| Some((one.sequence, one.reply.take()?))).collect()
    }

    /// Tells all who wait that they will get no outcome. The requests stay, to be resolved later.
    pub(crate) fn abandon(&mut self, error: &Error) {
        for reply in self.unsettled.iter_mut().filter_map(|one| one.reply.take()) {
            let _ = reply.sender.send(Err(error.clone())); // fails only if nobody waits
        }
    }

    /// Nobody waits for `sequence` any more: its pipeline has ended.
    pub(crate) fn disown(&mut self, sequence: u64) {
        if let Some(one) = self.unsettled.iter_mut().find(|one| one.sequence == sequence) {
            one.reply = None;
        }
    }

    /// Takes in what a node said about `sequence`. `first`: it was the first request of its stream, or the only one.
    pub(crate) fn settle(&mut self, sequence: u64, result: Result<Executed>, first: bool) -> Step {
        let Some(at) = self.unsettled.iter().position(|one| one.sequence == sequence && !one.settled) else {
            return Step::Settled(None); // a second answer
        };
        let last = at + 1 == self.unsettled.len();
        let unclaimed = match result {
            // The number is used up: by this request, or by somebody else's.
            Ok(_) | Err(Error::ModuleTrapped { .. }) => self.finish(at, result),
            Err(Error::SequenceStale { last_sequence, .. }) => {
                self.follow(last, Some(last_sequence));
                self.finish(at, result)
            }
            Err(Error::SequenceReused { last_sequence, .. }) => {
                self.follow(last, last_sequence);
                self.finish(at, result)
            }
            // In a stream, the request before it may have been refused and be about to be sent again.
            Err(Error::SequenceGap { .. } | Error::WindowFull { .. }) if !first => return Step::Resend,
            Err(Error::SequenceGap { last_sequence, .. }) if self.unsettled.len() == 1 => {
                let unclaimed = self.refuse_last(result);
                self.next = last_sequence.0 + 1;
                unclaimed
            }
            Err(Error::WindowFull { .. } | Error::InvalidRequest { .. } | Error::RequestTooLarge { .. }) if last => {
                self.refuse_last(result)
            }
            Err(
                Error::SequenceGap { .. }
                | Error::WindowFull { .. }
                | Error::InvalidRequest { .. }
                | Error::RequestTooLarge { .. },
            ) => self.break_at(at, result),
            Err(error @ (Error::SessionExpired { .. } | Error::LineageMismatch { .. })) => {
                self.broken = Some(error.clone());
                self.abandon(&error);
                self.unsettled.clear();
                self.tidy();
                return Step::Failed(error);
            }
            Err(error) => return Step::Failed(error),
        };
        self.tidy();
        Step::Settled(unclaimed)
    }

    /// Somebody else used the session, up to `reached`. `last`: none of our own requests comes after the one settled.
    fn follow(&mut self, last: bool, reached: Option<Sequence>) {
        if let (true, Some(reached)) = (last, reached) {
            self.next = self.next.max(reached.0.saturating_add(1));
        }
    }

    /// A request has its outcome. Returns it if nobody waits for it here.
    fn finish(&mut self, at: usize, result: Result<Executed>) -> Option<Result<Executed>> {
        let one = &mut self.unsettled[at];
        one.settled = true;
        one.request = Bytes::new();
        match one.reply.take() {
            Some(reply) => {
                let _ = reply.sender.send(result); // fails only if nobody waits
                None
            }
            None => Some(result),
        }
    }

    /// The last request was refused without effect and nothing was sent after it: its number is free again.
    fn refuse_last(&mut self, result: Result<Executed>) -> Option<Result<Executed>> {
        let unclaimed = self.finish(self.unsettled.len() - 1, result);
        let refused = self.unsettled.pop_back().expect("the refused request is the last one");
        self.next = refused.sequence;
        unclaimed
    }

    /// A request was refused without effect, but later ones are on their way. They can't run while its number is free;
    /// if it were given to another request, they would, after they had been reported as failed. So it never is.
    fn break_at(&mut self, at: usize, result: Result<Executed>) -> Option<Result<Executed>> {
        let unclaimed = self.finish(at, result);
        for mut later in self.unsettled.split_off(at).into_iter().skip(1) {
            if let Some(reply) = later.reply.take() {
                let _ = reply.sender.send(Err(Error::PipelineBroken)); // fails only if nobody waits
            }
        }
        self.broken = Some(Error::PipelineBroken);
        unclaimed
    }

    /// Drops what is settled and publishes the floor.
    fn tidy(&mut self) {
        while self.unsettled.front().is_some_and(|first| first.settled) {
            self.unsettled.pop_front();
        }
        self.settled_below.store(self.floor(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use replicator_types::{Digest, Epoch, LogIndex};

    use super::*;

    fn executed(sequence: u64) -> Result<Executed> {
        Ok(Executed {
            sequence: Sequence(sequence),
            response: Bytes::new(),
            log_index: LogIndex(sequence),
            epoch: Epoch(1),
            node_id: "n".into(),
            state_digest: Digest(0),
        })
    }

    fn sequencer(requests: u64) -> Sequencer {
        let mut sequencer = Sequencer::new(Sequence(1), Arc::default());
        for _ in 0..requests {
            sequencer.push(Bytes::from_static(b"x"), None, None);
        }
        sequencer
    }

    fn unsent(sequencer: &Sequencer) -> Vec<u64> {
        sequencer.to_send().map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn outcomes_out_of_order_keep_the_floor() {
        let mut sequencer = sequencer(3);
        assert!(matches!(sequencer.settle(2, executed(2), false), Step::Settled(_)));
        assert_eq!((sequencer.floor(), unsent(&sequencer)), (1, vec![1, 3]));
        assert!(matches!(sequencer.settle(1, executed(1), true), Step::Settled(_)));
        assert_eq!((sequencer.floor(), unsent(&sequencer)), (3, vec![3]));
        assert!(matches!(sequencer.settle(1, executed(1), true), Step::Settled(_)), "a second answer is nothing new");
    }

    #[test]
    fn a_gap_behind_another_request_is_sent_again() {
        let mut sequencer = sequencer(2);
        let gap = || Err(Error::SequenceGap { sequence: Sequence(2), last_sequence: Sequence(0) });
        assert!(matches!(sequencer.settle(2, gap(), false), Step::Resend));
        assert_eq!(unsent(&sequencer), [1, 2]);
    }

    #[test]
    fn a_gap_of_the_only_request_brings_the_session_back_in_step() {
        let mut sequencer = Sequencer::new(Sequence(9), Arc::default());
        sequencer.push(Bytes::new(), None, None);
        let gap = Err(Error::SequenceGap { sequence: Sequence(9), last_sequence: Sequence(4) });
        assert!(matches!(sequencer.settle(9, gap, true), Step::Settled(_)));
        assert_eq!(sequencer.push(Bytes::new(), None, None), 5);
    }

    #[test]
    fn a_stale_and_a_reused_number_are_used_up() {
        let mut sequencer = sequencer(1);
        let stale = Err(Error::SequenceStale { sequence: Sequence(1), last_sequence: Sequence(6) });
        sequencer.settle(1, stale, true);
        assert_eq!(sequencer.push(Bytes::new(), None, None), 7);
        sequencer.settle(7, Err(Error::SequenceReused { sequence: Sequence(7), last_sequence: None }), true);
        assert_eq!(sequencer.push(Bytes::new(), None, None), 8);
        let reused = Err(Error::SequenceReused { sequence: Sequence(8), last_sequence: Some(Sequence(11)) });
        sequencer.settle(8, reused, true);
        assert_eq!(sequencer.push(Bytes::new(), None, None), 12);
    }

    #[test]
    fn a_refused_last_request_frees_its_number() {
        let mut sequencer = sequencer(2);
        sequencer.settle(2, Err(Error::RequestTooLarge { message: String::new() }), false);
        assert_eq!(unsent(&sequencer), [1]);
        assert_eq!(sequencer.push(Bytes::new(), None, None), 2);
    }

    #[test]
    fn a_request_refused_in_the_middle_breaks_the_session_and_never_frees_its_number() {
        let mut sequencer = sequencer(3);
        sequencer.settle(2, Err(Error::InvalidRequest { message: String::new() }), false);
        assert_eq!(unsent(&sequencer), [1], "the one before it is unharmed");
        assert!(matches!(sequencer.check(), Err(Error::PipelineBroken)));
    }

    #[test]
    fn an_expired_session_forgets_all() {
        let mut sequencer = sequencer(2);
        let expired = Err(Error::SessionExpired { message: String::new() });
        assert!(matches!(sequencer.settle(1, expired, true), Step::Failed(Error::SessionExpired { .. })));
        assert!(sequencer.is_settled() && sequencer.check().is_err());
    }
}
