//! What becomes of proposals: the protocol tells of positions, and clients want to know of theirs.

use std::collections::{BTreeMap, VecDeque};

use replicator_types::{Epoch, LogIndex, Position};
use tokio::sync::oneshot;

use crate::replication::Fate;

/// Proposals that were accepted, in order, until they are applied or lost.
#[derive(Default)]
pub(super) struct Proposals {
    next: u64,
    asked: BTreeMap<u64, oneshot::Sender<Fate>>,
    accepted: VecDeque<(Position, oneshot::Sender<Fate>)>,
}

impl Proposals {
    /// Takes note of a proposal. Returns the number under which the replica is to answer.
    pub(super) fn ask(&mut self, fate: oneshot::Sender<Fate>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.asked.insert(number, fate);
        number
    }

    pub(super) fn accepted(&mut self, number: u64, last: Position) {
        if let Some(fate) = self.asked.remove(&number) {
            self.accepted.push_back((last, fate));
        }
    }

    pub(super) fn refused(&mut self, number: u64) {
        if let Some(fate) = self.asked.remove(&number) {
            let _ = fate.send(Fate::Refused);
        }
    }

    pub(super) fn applied(&mut self, index: LogIndex) {
        while self.accepted.front().is_some_and(|(last, _)| last.index <= index) {
            let (_, fate) = self.accepted.pop_front().expect("there is a front");
            let _ = fate.send(Fate::Applied);
        }
    }

    /// A new configuration keeps the log up to `start`. What was accepted in its own epoch stays, and what the start's epoch has below it; of
    /// everything else it is unknown whether the start's log has it.
    pub(super) fn lost_after(&mut self, start: Option<Position>, epoch: Epoch) {
        let kept = |last: Position| {
            last.epoch == epoch || start.is_some_and(|start| start.epoch == last.epoch && last.index <= start.index)
        };
        let (kept, unknown): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.accepted).into_iter().partition(|(last, _)| kept(*last));
        self.accepted = kept;
        for (_, fate) in unknown {
            let _ = fate.send(Fate::Unknown);
        }
    }
}
