//! Connections between nodes: what is sent on one arrives in order, or not at all once it is broken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator_chain::Message;
use replicator_types::DiskId;

pub(crate) type Way = (usize, usize);
/// A message, and the disk that it is from: a node may have another one by the time it arrives.
pub(crate) type Letter = (DiskId, Message);

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// By way, then by connection: a broken one may still bring something after its successor has begun.
    queues: BTreeMap<Way, VecDeque<VecDeque<Letter>>>,
    cut: BTreeSet<Way>,
}

/// Connections of one way that may still bring something.
const CONNECTIONS_MAX: usize = 3;

impl Network {
    pub(crate) fn send(&mut self, way: Way, letter: Letter) {
        let connections = self.queues.entry(way).or_default();
        if connections.is_empty() {
            connections.push_back(VecDeque::new());
        }
        connections.back_mut().expect("there is one").push_back(letter);
    }

    /// The ways on which something could arrive now, with the number of connections.
    pub(crate) fn ready(&self) -> Vec<(Way, usize)> {
        let some = |connections: &VecDeque<VecDeque<Letter>>| connections.iter().any(|queue| !queue.is_empty());
        self.queues
            .iter()
            .filter(|(way, connections)| some(connections) && !self.cut.contains(way))
            .map(|(way, connections)| (*way, connections.len()))
            .collect()
    }

    pub(crate) fn take(&mut self, way: Way, connection: usize) -> Option<Letter> {
        self.queues.get_mut(&way)?.get_mut(connection)?.pop_front()
    }

    /// The next message of a way, from its oldest connection that has one.
    pub(crate) fn take_first(&mut self, way: Way) -> Option<Letter> {
        self.queues.get_mut(&way)?.iter_mut().find_map(VecDeque::pop_front)
    }

    /// The connections between two nodes break, and are made anew. `keeps` says how much of what was under way still comes, late.
    pub(crate) fn reconnect(&mut self, a: usize, b: usize, mut keeps: impl FnMut(usize) -> usize) {
        for way in [(a, b), (b, a)] {
            let connections = self.queues.entry(way).or_default();
            for queue in connections.iter_mut() {
                queue.truncate(keeps(queue.len()));
            }
            connections.retain(|queue| !queue.is_empty());
            connections.push_back(VecDeque::new());
            while connections.len() > CONNECTIONS_MAX {
                connections.pop_front();
            }
        }
    }

    /// Nothing that was sent to a node that died arrives.
    pub(crate) fn forget_to(&mut self, node: usize) {
        self.queues.retain(|(_, to), _| *to != node);
    }

    pub(crate) fn cut(&mut self, way: Way) {
        self.cut.insert(way);
    }

    pub(crate) fn is_cut(&self, way: Way) -> bool {
        self.cut.contains(&way)
    }

    /// What waits on the way, and comes next, was only late.
    pub(crate) fn release(&mut self, way: Way) {
        self.cut.remove(&way);
    }

    /// Ends the cuts of both directions; whether there was one.
    pub(crate) fn heal(&mut self, a: usize, b: usize) -> bool {
        let there = self.cut.remove(&(a, b));
        self.cut.remove(&(b, a)) || there
    }
}
