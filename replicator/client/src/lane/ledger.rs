//! Who waits for what on a stream. No I/O.
//!
//! *Invariants:* the queue is in the order of its tickets, and each of its requests is waited for; a ticket below
//! `taken_below` has been handed to the transport. So the ledger is never larger than the calls under way, and the
//! marks of those given up, of which there are at most [`GIVEN_UP_MAX`] before the stream is left.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    task::Waker,
};

use tokio::{sync::oneshot, time::Instant};

use super::{End, Miss, Traffic};

/// The most requests in one message.
pub(super) const MESSAGE_REQUESTS_MAX: usize = 256;
/// A message is closed before its requests exceed this size, unless it is one request.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// The most marks of calls that were given up. A node that leaves more unanswered gets another stream.
pub(super) const GIVEN_UP_MAX: usize = 4_096;

/// Where a call's result goes.
pub(super) type Reply<T> = oneshot::Sender<Result<<T as Traffic>::Answer, Miss>>;

/// A result, and where it goes.
pub(super) type Ready<T> = (Reply<T>, Result<<T as Traffic>::Answer, Miss>);

/// Names a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket<K> {
    key: K,
    number: u64,
}

/// A request that was taken in.
pub(super) struct Submitted<K> {
    pub(super) ticket: Ticket<K>,
    /// Whom to wake, so that the request is sent.
    pub(super) writer: Option<Waker>,
    /// Nobody had waited for a while: wake the sweeper.
    pub(super) first: bool,
}

struct Waiter<T: Traffic> {
    number: u64,
    limit: Instant,
    /// `None`: the call was given up after its request was sent.
    reply: Option<Reply<T>>,
}

/// The calls of one stream.
pub(super) struct Ledger<T: Traffic> {
    queue: VecDeque<(u64, T::Request)>,
    waiters: HashMap<T::Key, Waiter<T>>,
    next: u64,
    taken_below: u64,
    given_up: usize,
    /// The transport's task, if it waits for requests.
    writer: Option<Waker>,
    /// How many calls the last message from the node answered.
    answered_last: usize,
    /// The key of the first request sent.
    first: Option<T::Key>,
    swept: bool,
    end: Option<End>,
}

impl<T: Traffic> Ledger<T> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            waiters: HashMap::new(),
            next: 0,
            taken_below: 0,
            given_up: 0,
            writer: None,
            answered_last: 0,
            first: None,
            swept: false,
            end: None,
        }
    }

    /// Takes in a request whose result is waited for until `limit`.
    pub(super) fn submit(
        &mut self,
        request: T::Request,
        limit: Instant,
        reply: Reply<T>,
    ) -> Result<Submitted<T::Key>, Miss> {
        if let Some(End { status, begun }) = self.end.clone() {
            return Err(Miss::Ended { status, begun, sent: false });
        }
        let number = self.next;
        let key = T::key(&request, number);
        let Entry::Vacant(vacant) = self.waiters.entry(key) else { return Err(Miss::Taken) };
        vacant.insert(Waiter { number, limit, reply: Some(reply) });
        self.next += 1;
        self.queue.push_back((number, request));
        let first = !std::mem::replace(&mut self.swept, true);
        Ok(Submitted { ticket: Ticket { key, number }, writer: self.writer.take(), first })
    }

    /// Forgets a call whose caller is gone. False: so many were that the stream should be left.
    pub(super) fn give_up(&mut self, ticket: Ticket<T::Key>) -> bool {
        let Entry::Occupied(mut waiter) = self.waiters.entry(ticket.key) else { return true };
        if waiter.get().number != ticket.number {
            return true; // a later call's
        }
        if ticket.number < self.taken_below && T::KEYS_COME_AGAIN {
            // Its result is still to come, and must not be taken for that of the next call under this key.
            if waiter.get_mut().reply.take().is_some() {
                self.given_up += 1;
            }
            return self.given_up <= GIVEN_UP_MAX;
        }
        waiter.remove();
        if let Ok(at) = self.queue.binary_search_by_key(&ticket.number, |&(number, _)| number) {
            self.queue.remove(at);
        }
        true
    }

    /// Whether others are likely to have requests ready in a moment: those just answered, or those under way.
    pub(super) fn is_busy(&self) -> bool {
        self.answered_last > 1 || self.waiters.len() > self.queue.len() + self.given_up
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// The transport's task waits for requests.
    pub(super) fn wait_for_requests(&mut self, writer: &Waker) {
        match &mut self.writer {
            Some(known) => known.clone_from(writer),
            none => *none = Some(writer.clone()),
        }
    }

    pub(super) fn take_writer(&mut self) -> Option<Waker> {
        self.writer.take()
    }

    /// What the next message carries; there must be some. From now on it may have reached the node.
    pub(super) fn take(&mut self) -> Vec<(u64, T::Request)> {
        let (mut count, mut bytes) = (0, 0);
        for (_, request) in self.queue.iter().take(MESSAGE_REQUESTS_MAX) {
            bytes += T::bytes(request);
            if count > 0 && bytes > MESSAGE_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let batch: Vec<_> = self.queue.drain(..count).collect();
        if let (Some((first, request)), Some((last, _))) = (batch.first(), batch.last()) {
            self.first.get_or_insert_with(|| T::key(request, *first));
            self.taken_below = last + 1;
        }
        batch
    }

    /// The key of the first request sent.
    pub(super) fn first(&self) -> Option<T::Key> {
        self.first
    }

    /// Takes in a message from the node: puts the results that are waited for into `ready`.
    pub(super) fn settle<R>(&mut self, results: R, ready: &mut Vec<Ready<T>>)
    where
        R: Iterator<Item = (T::Key, Result<T::Answer, Miss>)>,
    {
        self.answered_last = 0;
        for (key, result) in results {
            let Entry::Occupied(waiter) = self.waiters.entry(key) else { continue }; // comes too late, or twice
            if waiter.get().number >= self.taken_below {
                continue; // for an earlier call: this one hasn't been sent
            }
            self.answered_last += 1;
            match waiter.remove().reply {
                Some(reply) => ready.push((reply, result)),
                None => self.given_up -= 1,
            }
        }
    }

    /// Takes out the calls whose time is up at `now`. `None`: nobody waits.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Vec<(Reply<T>, Miss)>> {
        if self.waiters.len() == self.given_up {
            return None;
        }
        let is_over = |waiter: &Waiter<T>| waiter.limit <= now && waiter.reply.is_some();
        let over = self.waiters.iter().filter(|(_, waiter)| is_over(waiter));
        let over: Vec<_> = over.map(|(&key, waiter)| Ticket { key, number: waiter.number }).collect();
        let mut missed = Vec::with_capacity(over.len());
        for ticket in over {
            let sent = ticket.number < self.taken_below;
            let Some(waiter) = self.waiters.get_mut(&ticket.key) else { continue };
            let Some(reply) = waiter.reply.take() else { continue };
            missed.push((reply, Miss::TimedOut { sent }));
            if sent && T::KEYS_COME_AGAIN {
                self.given_up += 1;
            } else {
                self.give_up(ticket);
            }
        }
        Some(missed)
    }

    /// The sweeper stops if nobody waits, and is woken by the next call. False: somebody waits.
    pub(super) fn stop_sweeping(&mut self) -> bool {
        self.swept = self.waiters.len() > self.given_up;
        !self.swept
    }

    /// Whether so many calls were given up that the stream should be left.
    pub(super) fn is_littered(&self) -> bool {
        self.given_up > GIVEN_UP_MAX
    }

    /// How many requests are to be sent, and how many calls or marks of such there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.queue.len(), self.waiters.len())
    }

    /// The stream has ended: takes out all who wait.
    pub(super) fn close(&mut self, end: End) -> Vec<(Reply<T>, Miss)> {
        let End { status, begun } = self.end.get_or_insert(end).clone();
        self.queue.clear();
        self.given_up = 0;
        let taken_below = self.taken_below;
        let missed = self.waiters.drain().filter_map(|(_, waiter)| {
            let sent = waiter.number < taken_below;
            Some((waiter.reply?, Miss::Ended { status: status.clone(), begun, sent }))
        });
        missed.collect()
    }
}
