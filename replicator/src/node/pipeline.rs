//! Many requests of one client under way at once.
//!
//! What [`Node::begin_execute`] does for one, done for a batch: one lock of the waiters, one message to the proposer, and one timer for all.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use replicator_types::Seed;
use tokio::sync::mpsc;

use super::{
    Executed, Node, NodeError,
    requests::{Request, outcome_of},
    waiters::{self, Reply},
};

/// Outcomes that are taken up at once.
const OUTCOMES_MAX: usize = 1_024;

/// A request that has its place among the node's proposals.
struct UnderWay<T> {
    tag: T,
    seed: Seed,
    deadline: Instant,
}

/// Requests under way. Dropped, they are given up: they may still be executed.
pub struct Pipeline<T> {
    node: Arc<Node>,
    finished: mpsc::UnboundedSender<(u64, waiters::Finished)>,
    outcomes: mpsc::UnboundedReceiver<(u64, waiters::Finished)>,
    /// By ticket.
    under_way: HashMap<u64, UnderWay<T>>,
    /// The tickets, in the order of their deadlines.
    tickets: VecDeque<u64>,
    next_ticket: u64,
}

/// What became of the request with this tag.
pub type Finished<T> = (T, Result<Executed, NodeError>);

impl Node {
    /// Makes a pipeline without requests.
    #[must_use]
    pub fn pipeline<T>(self: &Arc<Self>) -> Pipeline<T> {
        let (finished, outcomes) = mpsc::unbounded_channel(); // Holds no more than is under way.
        let (under_way, tickets) = (HashMap::new(), VecDeque::new());
        Pipeline { node: self.clone(), finished, outcomes, under_way, tickets, next_ticket: 0 }
    }
}

impl<T> Pipeline<T> {
    /// How many requests are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Begins requests, in order: on return they have their places among this node's proposals. Returns those that could not begin.
    ///
    /// Of two calls, the second's deadline must not be the earlier.
    pub async fn begin(&mut self, requests: impl Iterator<Item = (T, Request)>, deadline: Instant) -> Vec<Finished<T>> {
        let mut failed = Vec::new();
        let running = match self.node.running().and_then(|running| self.node.check_halted().map(|()| running)) {
            Ok(running) => running,
            Err(error) => return requests.map(|(tag, _)| (tag, Err(error.clone()))).collect(),
        };
        let mut proposals = Vec::new();
        for (tag, request) in requests {
            match self.node.entry_of(request) {
                Ok(proposal) => {
                    let (seed, ticket) = (proposal.seed, self.next_ticket);
                    self.next_ticket += 1;
                    self.under_way.insert(ticket, UnderWay { tag, seed, deadline });
                    self.tickets.push_back(ticket);
                    proposals.push((ticket, proposal));
                }
                Err(error) => failed.push((tag, Err(error))),
            }
        }
        let reply = |ticket: &u64| Reply::Many(self.finished.clone(), *ticket);
        let added =
            self.node.waiters.add_all(proposals.iter().map(|(ticket, p)| (p.seed, p.encoded.len(), reply(ticket))));
        for (ticket, _) in proposals.drain(added..) {
            failed.extend(self.under_way.remove(&ticket).map(|request| (request.tag, Err(NodeError::Overloaded))));
        }
        let tickets: Vec<u64> = proposals.iter().map(|(ticket, _)| *ticket).collect();
        let batch = proposals.into_iter().map(|(_, proposal)| proposal).collect();
        if let Err(error) = self.node.give(&running, batch, deadline).await {
            for request in tickets.iter().filter_map(|ticket| self.under_way.remove(ticket)) {
                self.node.waiters.give_up(request.seed);
                failed.push((request.tag, Err(error.clone())));
            }
        }
        failed
    }

    /// Waits for requests to finish, or to pass their deadlines. Never ends while there are none.
    pub async fn finished(&mut self) -> Vec<Finished<T>> {
        let mut outcomes = Vec::new();
        loop {
            while self.tickets.front().is_some_and(|ticket| !self.under_way.contains_key(ticket)) {
                self.tickets.pop_front();
            }
            let first = self.tickets.front().and_then(|ticket| self.under_way.get(ticket));
            let deadline = first.map_or_else(|| Instant::now() + super::requests::ASK_MAX, |first| first.deadline);
            let taken = self.outcomes.recv_many(&mut outcomes, OUTCOMES_MAX);
            let finished = match tokio::time::timeout_at(deadline.into(), taken).await {
                Ok(_) => self.take(outcomes.drain(..)),
                Err(_) => self.expire(),
            };
            if !finished.is_empty() {
                return finished;
            }
        }
    }

    fn take(&mut self, outcomes: impl Iterator<Item = (u64, waiters::Finished)>) -> Vec<Finished<T>> {
        let known = outcomes.filter_map(|(ticket, done)| Some((self.under_way.remove(&ticket)?.tag, done)));
        known.map(|(tag, done)| (tag, done.and_then(outcome_of))).collect()
    }

    fn expire(&mut self) -> Vec<Finished<T>> {
        let now = Instant::now();
        let mut expired = Vec::new();
        while let Some(&ticket) = self.tickets.front() {
            if self.under_way.get(&ticket).is_some_and(|request| request.deadline > now) {
                break;
            }
            self.tickets.pop_front();
            let Some(request) = self.under_way.remove(&ticket) else { continue };
            match self.node.given_up(request.seed) {
                Some(error) => expired.push((request.tag, Err(error))),
                None => drop(self.under_way.insert(ticket, request)), // Its outcome is in the queue already.
            }
        }
        expired
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        self.node.waiters.give_up_all(self.under_way.values().map(|request| request.seed));
    }
}
