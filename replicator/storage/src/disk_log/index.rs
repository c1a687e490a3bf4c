//! Where each entry of the log is, and the newest payloads.

use std::collections::VecDeque;

use bytes::Bytes;
use replicator_types::{Epoch, LogIndex, Position};

/// What an entry in the cache costs beside its payload.
const CACHED_ENTRY_BYTES: usize = 64;

/// An entry that is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    epoch: Epoch,
    /// The global offset of its record.
    pub(crate) offset: u64,
    /// The payload's size.
    pub(crate) length: u32,
}

/// The entries after the purged end: 24 bytes for each, and the payloads of the newest ones.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// The index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// The payloads of the last so many slots.
    cache: VecDeque<Bytes>,
    cached_bytes: usize,
}

impl Index {
    /// Adds an entry that is on the disk.
    ///
    /// # Panics
    /// If it doesn't follow the last one, or follows one that is cached.
    pub(crate) fn push(&mut self, position: Position, offset: u64, length: usize) {
        assert!(self.cache.is_empty(), "the cache holds the newest entries");
        self.push_slot(position, offset, length);
    }

    /// Adds an entry with its payload.
    ///
    /// # Panics
    /// If it doesn't follow the last one.
    pub(crate) fn push_cached(&mut self, position: Position, offset: u64, payload: Bytes) {
        self.push_slot(position, offset, payload.len());
        self.cached_bytes += cost(&payload);
        self.cache.push_back(payload);
    }

    fn push_slot(&mut self, Position { epoch, index }: Position, offset: u64, length: usize) {
        if self.slots.is_empty() {
            self.first = index.0;
        }
        assert_eq!(index.0, self.first + self.slots.len() as u64, "entries follow one another");
        let length = u32::try_from(length).expect("payloads are bounded");
        self.slots.push_back(Slot { epoch, offset, length });
    }

    /// The position of the entry with this index, if it is there.
    pub(crate) fn position(&self, index: LogIndex) -> Option<Position> {
        let at = usize::try_from(index.0.checked_sub(self.first)?).ok()?;
        self.slots.get(at).map(|slot| Position { epoch: slot.epoch, index })
    }

    /// The global offset of the first entry's record.
    pub(crate) fn first_offset(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.offset)
    }

    /// The entries of `from..to` that are there, in order; the payload if it is in memory. Those without one come first.
    pub(crate) fn range(
        &self,
        from: LogIndex,
        to: LogIndex,
    ) -> impl Iterator<Item = (Position, &Slot, Option<&Bytes>)> {
        let at = |index: LogIndex| {
            usize::try_from(index.0.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.slots.len())
        };
        let (begin, end) = (at(from), at(to));
        let uncached = self.slots.len() - self.cache.len();
        (begin..end.max(begin)).map(move |i| {
            let slot = &self.slots[i];
            let position = Position { epoch: slot.epoch, index: LogIndex(self.first + i as u64) };
            (position, slot, i.checked_sub(uncached).map(|i| &self.cache[i]))
        })
    }

    /// Drops the entries from `next` on.
    pub(crate) fn truncate(&mut self, next: LogIndex) {
        let kept = usize::try_from(next.0.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let dropped = self.slots.len().saturating_sub(kept);
        self.slots.truncate(kept);
        let cached = self.cache.len().saturating_sub(dropped);
        self.cached_bytes -= self.cache.drain(cached..).map(|payload| cost(&payload)).sum::<usize>();
    }

    /// Drops the entries up to `through`.
    pub(crate) fn purge(&mut self, through: LogIndex) {
        let Some(beyond) = through.next().0.checked_sub(self.first) else { return };
        let dropped = usize::try_from(beyond).unwrap_or(usize::MAX).min(self.slots.len());
        let uncached = self.slots.len() - self.cache.len();
        self.slots.drain(..dropped);
        self.first += dropped as u64;
        let dropped = self.cache.drain(..dropped.saturating_sub(uncached));
        self.cached_bytes -= dropped.map(|payload| cost(&payload)).sum::<usize>();
    }

    /// Takes the oldest payloads off until at most `bytes_max` are left, but only those of entries before `durable_end`: the others are
    /// not on the disk yet. They are returned, so that they can be dropped where nobody waits.
    pub(crate) fn evict(&mut self, bytes_max: usize, durable_end: u64) -> Vec<Bytes> {
        let uncached = self.slots.len() - self.cache.len();
        let mut evicted = 0;
        while self.cached_bytes > bytes_max && self.slots[uncached + evicted].offset < durable_end {
            self.cached_bytes -= cost(&self.cache[evicted]);
            evicted += 1;
        }
        self.cache.drain(..evicted).collect()
    }
}

fn cost(payload: &Bytes) -> usize {
    payload.len() + CACHED_ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries 10 to 15, of one byte each, the later three cached.
    fn index() -> Index {
        let mut index = Index::default();
        for i in 10..13 {
            index.push(Position::new(1, i), i * 48, 1);
        }
        for i in 13..16 {
            index.push_cached(Position::new(2, i), i * 48, vec![i as u8].into());
        }
        index
    }

    fn found(index: &Index, from: u64, to: u64) -> Vec<(u64, bool)> {
        let found = index.range(LogIndex(from), LogIndex(to));
        found
            .map(|(position, slot, payload)| {
                assert_eq!(slot.offset, position.index.0 * 48);
                assert!(payload.is_none_or(|payload| payload[..] == [position.index.0 as u8]));
                (position.index.0, payload.is_some())
            })
            .collect()
    }

    #[test]
    fn ranges_are_cut_to_what_is_there() {
        let index = index();
        assert_eq!(found(&index, 12, 14), [(12, false), (13, true)]);
        assert_eq!(found(&index, 0, 11), [(10, false)]);
        assert_eq!(found(&index, 15, u64::MAX), [(15, true)]);
        assert_eq!(found(&index, 16, 99), []);
        assert_eq!(found(&index, 14, 12), []);
        assert_eq!(index.position(LogIndex(13)), Some(Position::new(2, 13)));
        assert_eq!([9, 16].map(|i| index.position(LogIndex(i))), [None, None]);
    }

    #[test]
    fn both_ends_are_cut_with_their_payloads() {
        for cut in 9..17 {
            let mut index = index();
            index.truncate(LogIndex(cut));
            assert_eq!(found(&index, 0, 99), (10..cut.min(16)).map(|i| (i, i > 12)).collect::<Vec<_>>());
            assert_eq!(index.cached_bytes, index.cache.len() * 65);
        }
        for through in 8..18 {
            let mut index = index();
            index.purge(LogIndex(through));
            assert_eq!(found(&index, 0, 99), ((through + 1).max(10)..16).map(|i| (i, i > 12)).collect::<Vec<_>>());
            assert_eq!(index.cached_bytes, index.cache.len() * 65);
            assert_eq!(index.first_offset(), (through < 15).then_some((through + 1).max(10) * 48));
        }
    }

    #[test]
    fn the_oldest_payloads_go_first_and_none_that_is_not_durable() {
        let mut index = index();
        assert_eq!(index.evict(130, u64::MAX), [Bytes::from(vec![13])]);
        assert_eq!(found(&index, 13, 15), [(13, false), (14, true)]);
        assert_eq!(index.evict(0, 15 * 48), [Bytes::from(vec![14])], "15 isn't durable");
        index.truncate(LogIndex(12));
        index.push_cached(Position::new(3, 12), 12 * 48, vec![12].into());
        assert_eq!(found(&index, 11, 99), [(11, false), (12, true)]);
    }

    #[test]
    fn an_empty_index_goes_on_anywhere() {
        let mut index = index();
        index.purge(LogIndex(40));
        index.push(Position::new(4, 41), 41 * 48, 1);
        assert_eq!(found(&index, 0, 99), [(41, false)]);
    }
}
