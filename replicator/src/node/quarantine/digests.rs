//! What this node's machine came to, entry by entry, as far as it is kept for comparison: the running digests of the last half million entries,
//! those and the states' hashes of many checkpoints before, and a few that a peer may want to know of for long, as its image is of there.
//!
//! At 150,000 entries a second the first reach back 3.5 seconds, seven rounds of comparison, and the second 7 minutes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use replicator_types::{Digest, LogIndex};

use crate::transport::DigestAt;

/// Entries whose running digests are kept: 4 MiB.
const ENTRIES: usize = 512 << 10;
/// Checkpoints that are kept: 0.6 MiB.
const CHECKPOINTS: usize = 16 << 10;
/// Indexes that are kept for peers.
const NOTED: usize = 128;
/// Places that are picked from each kind at once, to find a difference between two others.
const PICKED: usize = 24;

/// See the module. The apply loop adds a batch at a time.
#[derive(Debug, Default)]
pub(in crate::node) struct Digests(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Which machine it is of: raised when another takes its place.
    machine: u64,
    /// The index of the first of `entries`.
    first: LogIndex,
    /// One for each index, without gaps.
    entries: VecDeque<Digest>,
    /// In the order of their indexes.
    checkpoints: VecDeque<DigestAt>,
    noted: BTreeMap<LogIndex, DigestAt>,
}

impl Kept {
    fn last(&self) -> Option<LogIndex> {
        let count = self.entries.len() as u64;
        (count > 0).then(|| LogIndex(self.first.0 + count - 1))
    }

    fn at(&self, index: LogIndex) -> Option<DigestAt> {
        let checkpoint = self.checkpoints.binary_search_by_key(&index, |at| at.index).ok();
        if let Some(at) = checkpoint.map(|place| self.checkpoints[place]) {
            return Some(at);
        }
        let place = index.0.checked_sub(self.first.0).and_then(|place| usize::try_from(place).ok());
        let digest = place.and_then(|place| self.entries.get(place));
        let entry = digest.map(|digest| DigestAt { index, digest: *digest, state: None });
        entry.or_else(|| self.noted.get(&index).copied())
    }
}

impl Digests {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next entries' digests, and the checkpoints among them.
    pub(in crate::node) fn add(&self, entries: &[(LogIndex, Digest)], checkpoints: &[DigestAt]) {
        let mut kept = self.lock();
        for (index, digest) in entries {
            if kept.last().is_some_and(|last| last.next() != *index) {
                kept.entries.clear();
            }
            if kept.entries.is_empty() {
                kept.first = *index;
            } else if kept.entries.len() >= ENTRIES {
                kept.entries.pop_front();
                kept.first = kept.first.next();
            }
            kept.entries.push_back(*digest);
        }
        let excess = (kept.checkpoints.len() + checkpoints.len()).saturating_sub(CHECKPOINTS);
        let excess = excess.min(kept.checkpoints.len());
        kept.checkpoints.drain(..excess);
        kept.checkpoints.extend(checkpoints);
    }

    /// Another machine goes on from here: what its predecessor came to says nothing of it.
    pub(in crate::node) fn begin(&self, at: Option<(LogIndex, Digest)>) {
        let mut kept = self.lock();
        *kept = Kept { machine: kept.machine + 1, ..Kept::default() };
        if let Some((index, digest)) = at {
            kept.first = index;
            kept.entries.push_back(digest);
        }
    }

    /// Which machine they are of.
    pub(super) fn machine(&self) -> u64 {
        self.lock().machine
    }

    /// The last entry's index.
    pub(super) fn last(&self) -> Option<LogIndex> {
        self.lock().last()
    }

    /// What is known of one index.
    pub(super) fn at(&self, index: LogIndex) -> Option<DigestAt> {
        self.lock().at(index)
    }

    /// What is known of some, the first `kept` of which may be asked for again.
    pub(super) fn answer(&self, indexes: &[LogIndex], noted: &[LogIndex]) -> Vec<DigestAt> {
        let mut kept = self.lock();
        for index in noted {
            if let Some(at) = kept.at(*index) {
                kept.noted.insert(*index, at);
            }
        }
        while kept.noted.len() > NOTED {
            kept.noted.pop_first();
        }
        indexes.iter().filter_map(|index| kept.at(*index)).collect()
    }

    /// The newest checkpoints' indexes.
    pub(super) fn checkpoints(&self, count: usize) -> Vec<LogIndex> {
        self.lock().checkpoints.iter().rev().take(count).map(|at| at.index).collect()
    }

    /// Whether this machine's checkpoints have the states' hashes.
    pub(super) fn has_states(&self) -> bool {
        self.lock().checkpoints.back().is_some_and(|at| at.state.is_some())
    }

    /// Some indexes between two others that are known here, evenly spread; with `states`, of checkpoints alone.
    pub(super) fn between(&self, after: Option<LogIndex>, before: LogIndex, states: bool) -> Vec<LogIndex> {
        let kept = self.lock();
        let least = after.map_or(0, |after| after.0 + 1);
        let mut picked = Vec::new();
        if !states && let Some(last) = kept.last() {
            let range = least.max(kept.first.0)..before.0.min(last.0 + 1);
            let count = range.end.saturating_sub(range.start);
            let step = count.div_ceil(PICKED as u64).max(1);
            picked.extend(range.clone().step_by(usize::try_from(step).unwrap_or(usize::MAX)).map(LogIndex));
            picked.extend(range.last().map(LogIndex));
        }
        let within = |at: &&DigestAt| at.index.0 >= least && at.index < before && (!states || at.state.is_some());
        let checkpoints: Vec<LogIndex> = kept.checkpoints.iter().filter(within).map(|at| at.index).collect();
        let step = checkpoints.len().div_ceil(PICKED).max(1);
        picked.extend(checkpoints.iter().step_by(step).chain(checkpoints.last()));
        picked.sort_unstable();
        picked.dedup();
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(range: std::ops::Range<u64>) -> Vec<(LogIndex, Digest)> {
        range.map(|index| (LogIndex(index), Digest(1_000 + index))).collect()
    }

    #[test]
    fn the_newest_are_kept_and_answer() {
        let digests = Digests::default();
        assert_eq!((digests.last(), digests.at(LogIndex(0))), (None, None));
        digests.add(&run(5..10), &[]);
        assert_eq!(digests.last(), Some(LogIndex(9)));
        assert_eq!(digests.at(LogIndex(4)), None);
        assert_eq!(digests.at(LogIndex(7)).expect("it is kept").digest, Digest(1_007));
        let count = ENTRIES as u64;
        digests.add(&run(10..10 + count), &[]);
        assert_eq!(digests.at(LogIndex(9)), None);
        assert_eq!(digests.at(LogIndex(10)).expect("it is kept").digest, Digest(1_010));
        // A gap: what was before can't be counted from any more.
        digests.add(&run(2 * count..2 * count + 3), &[]);
        assert_eq!(digests.at(LogIndex(count)), None);
        assert_eq!(digests.at(LogIndex(2 * count + 1)).expect("it is kept").digest, Digest(1_001 + 2 * count));
    }

    #[test]
    fn what_is_noted_outlives_the_others_but_not_the_machine() {
        let digests = Digests::default();
        digests.add(&run(0..10), &[]);
        assert_eq!(digests.answer(&[LogIndex(3)], &[LogIndex(3), LogIndex(99)]).len(), 1);
        digests.add(&run(10..20 + ENTRIES as u64), &[]);
        assert_eq!(digests.answer(&[LogIndex(2), LogIndex(3)], &[]).len(), 1);
        let machine = digests.machine();
        digests.begin(Some((LogIndex(7), Digest(4))));
        assert_ne!(digests.machine(), machine);
        assert_eq!(digests.answer(&[LogIndex(3), LogIndex(7)], &[]).len(), 1);
        digests.add(&[(LogIndex(8), Digest(5))], &[]);
        assert_eq!(digests.at(LogIndex(7)).expect("where it began").digest, Digest(4));
    }

    #[test]
    fn picks_come_to_every_index_in_the_end() {
        let digests = Digests::default();
        let checkpoint = |index| DigestAt { index: LogIndex(index), digest: Digest(0), state: Some(Digest(1)) };
        digests.add(&run(100..200_000), &[checkpoint(40), checkpoint(90), checkpoint(150_000)]);
        for wanted in [101, 4_711, 149_999, 150_000, 199_999] {
            let (mut low, mut high) = (None, LogIndex(200_000));
            let mut rounds = 0;
            while low != Some(LogIndex(wanted - 1)) || high != LogIndex(wanted) {
                let picked = digests.between(low, high, false);
                assert!(!picked.is_empty(), "stuck between {low:?} and {high}");
                low = picked.iter().copied().filter(|at| at.0 < wanted).max().or(low);
                high = picked.iter().copied().filter(|at| at.0 >= wanted).min().unwrap_or(high);
                rounds += 1;
                assert!(rounds < 8);
            }
        }
        assert_eq!(digests.between(None, LogIndex(200_000), true), [40, 90, 150_000].map(LogIndex));
    }
}
