//! Pushes on their way to subscribers.
//!
//! The apply loop owns the hub. A subscription begins with what is retained after its cursor and goes on with what is applied, without a gap,
//! as both happen on that one thread. A subscriber that doesn't keep up is dropped, and begins again after its last cursor.

use std::collections::{BTreeMap, HashMap, HashSet};

use replicator_machine::{Machine, Push, PushCursor, RetainedPush};
use replicator_types::LogIndex;
use tokio::sync::{mpsc, oneshot};

use super::NodeError;

/// How many pushes may wait for one subscriber.
const BACKLOG_MAX: usize = 1_024;
/// How many retained pushes are looked at in one go: the apply loop does it between batches.
const SCAN_MAX: usize = 8_192;
/// Subscriptions of one node.
const SUBSCRIBERS_MAX: usize = 16_384;

/// To whom a push goes: a session, or the hash of a topic.
pub type Target = [u8; 16];

/// Asks the hub for a subscription.
pub(super) struct Subscribe {
    pub(super) targets: HashSet<Target>,
    /// None: from now on.
    pub(super) after: Option<PushCursor>,
    pub(super) answer: oneshot::Sender<Result<Subscribed, NodeError>>,
}

/// What comes to a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A push of the log.
    Retained(RetainedPush),
    /// A push of a query.
    Ephemeral(Push),
}

/// A running subscription.
pub struct Subscribed {
    /// Everything after this place will come.
    pub from: PushCursor,
    /// What comes. Ends when the subscriber falls too far behind, or isn't caught up yet.
    pub events: mpsc::Receiver<Event>,
    /// When `events` ends, all up to here has been in it: begin again after this, or the last one that came.
    pub scanned: PushCursor,
}

struct Subscriber {
    targets: HashSet<Target>,
    events: mpsc::Sender<Event>,
}

/// All subscriptions of this node.
#[derive(Default)]
pub(super) struct Hub {
    subscribers: BTreeMap<u64, Subscriber>,
    by_target: HashMap<Target, Vec<u64>>,
    next_id: u64,
}

impl Hub {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe, machine: &Machine) {
        let Subscribe { targets, after, answer } = subscribe;
        let _ = answer.send(self.begin(targets, after, machine));
    }

    fn begin(
        &mut self,
        targets: HashSet<Target>,
        after: Option<PushCursor>,
        machine: &Machine,
    ) -> Result<Subscribed, NodeError> {
        if self.subscribers.len() >= SUBSCRIBERS_MAX {
            self.forget_gone();
        }
        if self.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(NodeError::Overloaded);
        }
        let now = PushCursor::end_of(machine.applied().map_or(LogIndex(0), |at| at.index));
        let from = after.unwrap_or(now);
        let (events, receiver) = mpsc::channel(BACKLOG_MAX);
        let retained = machine.pushes_after(from, SCAN_MAX)?;
        let mut caught_up = retained.len() < SCAN_MAX;
        let mut scanned = from;
        for retained in retained {
            let at = retained.cursor;
            if targets.contains(&retained.push.to) && events.try_send(Event::Retained(retained)).is_err() {
                caught_up = false; // The rest follows when the subscriber begins again after these.
                break;
            }
            scanned = at;
        }
        if caught_up {
            let id = self.next_id;
            self.next_id += 1;
            for target in &targets {
                self.by_target.entry(*target).or_default().push(id);
            }
            self.subscribers.insert(id, Subscriber { targets, events });
        }
        Ok(Subscribed { from, events: receiver, scanned })
    }

    pub(super) fn publish(&mut self, index: LogIndex, pushes: &[Push]) {
        if self.subscribers.is_empty() {
            return;
        }
        let mut behind = HashSet::new();
        for (push, ordinal) in pushes.iter().zip(0..) {
            for id in self.by_target.get(&push.to).into_iter().flatten() {
                if behind.contains(id) {
                    continue; // No gap: what follows a push that was left out is left out too.
                }
                let retained = RetainedPush { cursor: PushCursor { index, ordinal }, push: push.clone() };
                let event = Event::Retained(retained);
                let sent = self.subscribers.get(id).map(|subscriber| subscriber.events.try_send(event));
                if !matches!(sent, Some(Ok(()))) {
                    behind.insert(*id);
                }
            }
        }
        behind.into_iter().for_each(|id| self.forget(id));
    }

    /// Delivers what a query pushed to those who listen now. One who is behind misses it: events of the log go first.
    pub(super) fn publish_ephemeral(&self, pushes: &[Push]) {
        for push in pushes {
            for id in self.by_target.get(&push.to).into_iter().flatten() {
                let Some(subscriber) = self.subscribers.get(id) else { continue };
                if subscriber.events.capacity() > BACKLOG_MAX / 2 {
                    let _ = subscriber.events.try_send(Event::Ephemeral(push.clone())); // Gone: the hub finds out later.
                }
            }
        }
    }

    fn forget(&mut self, id: u64) {
        let Some(subscriber) = self.subscribers.remove(&id) else { return };
        for target in subscriber.targets {
            if let Some(ids) = self.by_target.get_mut(&target) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_target.remove(&target);
                }
            }
        }
    }

    fn forget_gone(&mut self) {
        let gone: Vec<u64> = self.subscribers.iter().filter(|(_, s)| s.events.is_closed()).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }
}
