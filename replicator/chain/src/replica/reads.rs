//! Linearizable reads: barriers through the epoch (safety rule 11).

use replicator_types::LogIndex;

use super::Effect;

/// Reads that wait for an index, beyond which more are refused.
const READS_MAX: usize = 1 << 16;

/// The reads that a primary was asked for. One barrier is under way at a time; those that come meanwhile share the next one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reads {
    waiting: Vec<u64>,
    asked: Vec<u64>,
    /// The commit index when the barrier under way began: at least what it was when each of its reads came.
    index: LogIndex,
}

impl Reads {
    /// False: there are too many.
    pub(super) fn add(&mut self, number: u64) -> bool {
        let room = self.waiting.len() + self.asked.len() < READS_MAX;
        if room {
            self.waiting.push(number);
        }
        room
    }

    /// No barrier is under way.
    pub(super) fn idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// A barrier begins for all that wait. False: nothing waits.
    pub(super) fn begin(&mut self, commit: LogIndex) -> bool {
        std::mem::swap(&mut self.waiting, &mut self.asked);
        self.index = commit;
        !self.asked.is_empty()
    }

    /// All behind the primary have passed `passed`; the one under way is `barrier`. Returns whether it is over.
    pub(super) fn passed(&mut self, barrier: u64, passed: u64, effects: &mut Vec<Effect>) -> bool {
        if self.asked.is_empty() || passed < barrier {
            return false;
        }
        let index = self.index;
        effects.extend(self.asked.drain(..).map(|number| Effect::ReadConfirmed { number, index }));
        true
    }

    /// No barrier of this epoch will pass any more.
    pub(super) fn refuse(self, effects: &mut Vec<Effect>) {
        let all = self.asked.into_iter().chain(self.waiting);
        effects.extend(all.map(|number| Effect::ReadRefused { number }));
    }
}
