//! What the model remembers, packed small: a few million of these are in memory at once.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// Disks at most.
pub(crate) const DISKS: usize = 4;
/// Epochs at most.
pub(crate) const EPOCHS: usize = 3;
/// Attempts to leave one epoch at most.
pub(crate) const ATTEMPTS: usize = 2;

/// An entry: the epoch in which it was appended first, the index it was given there, and the life of the primary that made it. Two entries
/// at one position are told apart by that life. Six bits, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry(u8);

impl Entry {
    pub(crate) fn new(epoch: u8, index: u8, life: u8) -> Self {
        assert!((1..4).contains(&epoch) && (1..4).contains(&index) && life < 4, "entry {epoch}.{index} of life {life}");
        Self(epoch << 4 | index << 2 | life)
    }

    pub(crate) fn epoch(self) -> u8 {
        self.0 >> 4
    }

    pub(crate) fn index(self) -> u8 {
        self.0 >> 2 & 3
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.epoch(), self.index(), ["", "'", "''", "'''"][usize::from(self.0 & 3)])
    }
}

/// (epoch, index) of a log's end; (0, 0): empty.
pub(crate) type Position = (u8, u8);

/// At most three entries, a byte each, the first one lowest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Log(u32);

impl Log {
    pub(crate) fn len(self) -> u8 {
        (32 - self.0.leading_zeros()).div_ceil(8) as u8
    }

    pub(crate) fn get(self, index: u8) -> Option<Entry> {
        (1..=self.len()).contains(&index).then(|| Entry((self.0 >> (8 * (index - 1))) as u8))
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        assert!(self.len() < 3, "{self:?} is full");
        self.0 |= u32::from(entry.0) << (8 * self.len());
    }

    #[must_use]
    pub(crate) fn cut(self, len: u8) -> Self {
        Self(self.0 & ((1 << (8 * len)) - 1))
    }

    pub(crate) fn last(self) -> Position {
        self.get(self.len()).map_or((0, 0), |entry| (entry.epoch(), self.len()))
    }

    pub(crate) fn starts_with(self, beginning: Self) -> bool {
        self.cut(beginning.len()) == beginning
    }

    /// How many entries both begin with.
    pub(crate) fn common(self, other: Self) -> u8 {
        ((self.0 ^ other.0).trailing_zeros() / 8).min(u32::from(self.len().min(other.len()))) as u8
    }

    /// Invariant 5: where the positions are equal, all before is.
    pub(crate) fn agrees(self, other: Self) -> bool {
        (1..=self.len().min(other.len()))
            .rev()
            .find(|&i| self.get(i).map(Entry::epoch) == other.get(i).map(Entry::epoch))
            .is_none_or(|i| self.common(other) >= i)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((1..=self.len()).filter_map(|i| self.get(i))).finish()
    }
}

/// Who acknowledges: a disk, named by the life in which it was blank, and a start of it. Both count up within a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Life {
    pub(crate) disk: u8,
    pub(crate) life: u8,
}

/// A disk and the process on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Disk {
    pub(crate) life: Life,
    pub(crate) log: Log,
    /// Entries of the log that were fsynced.
    pub(crate) durable: u8,
    /// (epoch, attempt), in `meta`.
    pub(crate) promise: (u8, u8),
    /// The newest epoch that this process has heard of; 0: none since its start.
    pub(crate) known: u8,
    /// It was wiped, or an old copy was put back, and it has not been made equal since. Nobody in the model looks at it but the properties.
    pub(crate) lost: bool,
}

/// What a sealed disk told its coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Answer {
    pub(crate) life: Life,
    pub(crate) log: Log,
    pub(crate) lost: bool,
}

/// One epoch: its configuration, which the group keeps, and what was ever said in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Epoch {
    /// By slot; the first one is the primary.
    pub(crate) chain: [Option<Life>; DISKS],
    pub(crate) start: Log,
    /// The attempt that made it.
    pub(crate) by: u8,
    /// Attempts granted to leave it.
    pub(crate) granted: u8,
    /// Where its attempts want all logs to end: the `Equalise` that may arrive at any time.
    pub(crate) targets: [Option<Log>; ATTEMPTS],
    /// `Acknowledged` by slot, the greatest.
    pub(crate) acknowledged: [u8; DISKS],
    /// All that was ever committed when the primary of this epoch last committed; its clients were told.
    pub(crate) committed: Log,
}

impl Epoch {
    pub(crate) fn primary(&self) -> Option<usize> {
        self.chain.iter().position(Option::is_some)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = (usize, Life)> + '_ {
        self.chain.iter().enumerate().filter_map(|(slot, life)| life.map(|life| (slot, life)))
    }
}

/// A linearizable read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub(crate) epoch: u8,
    /// What the primary remembered when it sent the barrier.
    pub(crate) index: u8,
    /// All that had been acknowledged to anybody when the read came.
    pub(crate) least: u8,
    /// Slots that have passed the barrier.
    pub(crate) passed: [bool; DISKS],
    pub(crate) answered: bool,
}

/// Steps since the founding. No part of what a state is: breadth first, a state is met first by a shortest way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Steps(pub(crate) u8);

impl PartialEq for Steps {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Steps {}

impl Hash for Steps {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Everything. Of messages only that is kept which can still arrive: what was said once may arrive at any time, any number of times, or never.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct State {
    pub(crate) disks: [Disk; DISKS],
    /// The record: the last one is the current configuration.
    pub(crate) epochs: [Epoch; EPOCHS],
    pub(crate) epoch: u8,
    /// `Sealed` for the attempts of the current epoch; older ones are of no use to anybody.
    pub(crate) sealed: [[Option<Answer>; DISKS]; ATTEMPTS],
    /// `Equal` for the attempts of the current epoch.
    pub(crate) equal: [[Option<Life>; DISKS]; ATTEMPTS],
    /// `Append`: one bit for each entry.
    pub(crate) sent: u64,
    pub(crate) read: Option<Read>,
    /// A copy of a disk, kept aside.
    pub(crate) copy: Option<(usize, Disk)>,
    pub(crate) restarts: u8,
    pub(crate) wipes: u8,
    pub(crate) copies: u8,
    /// Invariants of single steps that were violated, one bit each.
    pub(crate) broken: u16,
    pub(crate) steps: Steps,
}

impl State {
    pub(crate) fn at(&self, epoch: u8) -> &Epoch {
        &self.epochs[usize::from(epoch) - 1]
    }

    pub(crate) fn at_mut(&mut self, epoch: u8) -> &mut Epoch {
        &mut self.epochs[usize::from(epoch) - 1]
    }

    /// Whether the log of a member of the epoch can end so: at the start, or with what the epoch appended.
    pub(crate) fn explains(&self, epoch: u8, log: Log) -> bool {
        let (last, start) = (log.last(), self.at(epoch).start.last());
        last == start || last >= start && last.0 >= epoch
    }

    pub(crate) fn send(&mut self, entry: Entry) {
        self.sent |= 1 << entry.0;
    }

    pub(crate) fn entries_sent(&self) -> impl Iterator<Item = Entry> + use<> {
        let sent = self.sent;
        (0..64).filter(move |bit| sent >> bit & 1 == 1).map(Entry)
    }
}
