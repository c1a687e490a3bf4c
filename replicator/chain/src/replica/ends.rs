//! How far the log goes, and where positions of two logs meet.

use replicator_types::{Epoch, LogIndex, Position};

use super::LogView;
use crate::LogEntry;

/// The ends of the log.
///
/// Invariant (7): `commit <= durable <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ends {
    /// The last entry given to the log.
    pub(super) last: Option<Position>,
    pub(super) durable: Option<Position>,
    pub(super) commit: Option<Position>,
    /// A truncation isn't durable yet: until it is, nothing is appended, so that a late report can't be taken for another's.
    pub(super) truncating: bool,
}

impl Ends {
    /// The log is as it says, on the disk.
    pub(super) fn settled(&self) -> bool {
        self.durable == self.last && !self.truncating
    }

    /// `entries`, not empty, go to the log.
    pub(super) fn append(&mut self, entries: &[LogEntry]) {
        let (Some(first), Some(end)) = (entries.first(), entries.last()) else { return };
        assert!(
            !self.truncating,
            "an append at {} before the truncation to {:?} is durable",
            first.position, self.last
        );
        assert_eq!(first.position.index, next_index(self.last), "an append that doesn't follow {:?}", self.last);
        self.last = Some(end.position);
    }

    /// Drops everything after `position`, which the log holds.
    pub(super) fn truncate(&mut self, position: Option<Position>) {
        assert!(self.settled(), "a truncation to {position:?} while {:?} of {:?} is durable", self.durable, self.last);
        assert!(self.commit <= position, "a truncation to {position:?}, below the commit {:?} (7)", self.commit);
        self.last = position;
        self.durable = position;
        self.truncating = true;
    }

    /// An image of `position` takes the place of everything up to there; of all that the log has, unless it `holds` the position.
    pub(super) fn enter(&mut self, position: Position, holds: bool) {
        let image = Some(position);
        assert!(self.settled(), "an image of {position} while {:?} of {:?} is durable", self.durable, self.last);
        assert!(self.commit <= image, "an image of {position}, below the commit {:?} (7)", self.commit);
        if !holds {
            self.last = image;
            self.durable = image;
        }
        self.commit = image;
        self.truncating = true;
    }

    /// The log reports what is durable.
    pub(super) fn flushed(&mut self, position: Option<Position>) {
        if self.truncating {
            self.truncating = position != self.last;
            return;
        }
        assert!(position <= self.last, "the log says that {position:?} is durable, and ends at {:?} (7)", self.last);
        self.durable = self.durable.max(position);
    }

    /// Everything up to `position` of this log is committed. Returns the commit if that is new.
    pub(super) fn commit_to(&mut self, position: Option<Position>) -> Option<Position> {
        assert!(position <= self.durable, "a commit of {position:?} above the durable {:?} (7)", self.durable);
        if position <= self.commit {
            return None;
        }
        self.commit = position;
        position
    }
}

/// The index that follows `position`.
pub(super) fn next_index(position: Option<Position>) -> LogIndex {
    position.map_or(LogIndex(0), |position| position.index.next())
}

/// Whether the log has this very entry; everything has the beginning.
pub(super) fn holds(log: &dyn LogView, position: Option<Position>) -> bool {
    position.is_none_or(|position| log.position(position.index) == Some(position))
}

/// The last position of the log, or its purged end, whose epoch and index are not above `bound`'s; None: there is none, or the bound is the
/// beginning.
pub(super) fn last_not_above(log: &dyn LogView, bound: Option<Position>) -> Option<Position> {
    let (bound, end) = (bound?, log.last()?);
    // Epochs never decrease, so the entries wanted are the first ones: all below `above`.
    let mut below = log.purged().map_or(0, |purged| purged.index.0);
    let mut above = bound.index.min(end.index).0 + 1;
    while below < above {
        let middle = below + (above - below) / 2;
        match log.position(LogIndex(middle)) {
            Some(position) if position.epoch > bound.epoch => above = middle,
            _ => below = middle + 1,
        }
    }
    log.position(LogIndex(above.checked_sub(1)?))
        .filter(|found| found.epoch <= bound.epoch && found.index <= bound.index)
}

/// Whether `entries` continue a log after `previous` in `epoch` or before, as a sender's that obeys the protocol do.
pub(super) fn continues(previous: Option<Position>, entries: &[LogEntry], epoch: Epoch) -> bool {
    let mut before = previous;
    for entry in entries {
        let position = entry.position;
        if position.index != next_index(before) || before.is_some_and(|before| position.epoch < before.epoch) {
            return false;
        }
        before = Some(position);
    }
    before.is_none_or(|last| last.epoch <= epoch)
}
