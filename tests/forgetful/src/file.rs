//! The bytes of one file: as a program reads them, and as they would be after a power loss.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::chance::Chance;

/// The unit of what is kept and of what is noted as not fsynced, in bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

type Block = [u8; BLOCK_BYTES];
/// By their numbers. One that isn't there is zeros: logs fill their files with zeros ahead.
type Blocks = BTreeMap<u64, Arc<Block>>;

/// A file. What is fsynced is in both halves; the blocks are shared until one is written again.
#[derive(Debug, Default)]
pub(crate) struct File {
    blocks: Blocks,
    bytes: u64,
    durable_blocks: Blocks,
    durable_bytes: u64,
    /// Blocks that the next fsync makes durable.
    unsynced: BTreeSet<u64>,
    /// Counts fsyncs.
    begun: u64,
    /// The last fsync that has ended.
    ended: u64,
}

/// What an fsync that has begun makes durable when it ends.
#[derive(Debug)]
pub(crate) struct Staged {
    number: u64,
    blocks: Vec<(u64, Option<Arc<Block>>)>,
    bytes: u64,
}

/// The block that holds a byte, and where in it.
fn place(at: u64) -> (u64, usize) {
    let block = BLOCK_BYTES as u64;
    (at / block, usize::try_from(at % block).expect("a block is small"))
}

impl File {
    /// Its size, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Up to `count` bytes from `at` on; fewer at the end.
    pub(crate) fn read(&self, at: u64, count: usize) -> Vec<u8> {
        let count = usize::try_from(self.bytes.saturating_sub(at)).map_or(count, |rest| rest.min(count));
        let mut read = Vec::with_capacity(count);
        while read.len() < count {
            let (number, begin) = place(at + read.len() as u64);
            let end = BLOCK_BYTES.min(begin + count - read.len());
            match self.blocks.get(&number) {
                Some(block) => read.extend_from_slice(&block[begin..end]),
                None => read.resize(read.len() + end - begin, 0),
            }
        }
        read
    }

    /// Writes, and makes the file longer if it must be.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut rest = bytes;
        let mut next = at;
        while !rest.is_empty() {
            let (number, begin) = place(next);
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - begin));
            if now.len() == BLOCK_BYTES && now.iter().all(|byte| *byte == 0) {
                self.blocks.remove(&number);
            } else {
                let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
                Arc::make_mut(block)[begin..begin + now.len()].copy_from_slice(now);
            }
            self.unsynced.insert(number);
            next += now.len() as u64;
            rest = later;
        }
        self.bytes = self.bytes.max(next);
    }

    /// Makes it shorter, or longer by zeros.
    pub(crate) fn resize(&mut self, bytes: u64) {
        self.unsynced.extend(cut(&mut self.blocks, bytes));
        self.bytes = bytes;
    }

    /// Begins an fsync: of what is written now. Nothing is durable yet.
    pub(crate) fn begin_sync(&mut self) -> Staged {
        self.begun += 1;
        let blocks = self.unsynced.iter().map(|number| (*number, self.blocks.get(number).cloned())).collect();
        Staged { number: self.begun, blocks, bytes: self.bytes }
    }

    /// Ends an fsync. What was written since it began isn't durable.
    pub(crate) fn end_sync(&mut self, staged: Staged) {
        if staged.number < self.ended {
            return; // One that began later has ended: it had all of this, or newer.
        }
        self.ended = staged.number;
        for (number, block) in staged.blocks {
            let now = self.blocks.get(&number);
            let same = match (&block, now) {
                (Some(staged), Some(now)) => Arc::ptr_eq(staged, now),
                (staged, now) => staged.is_none() && now.is_none(),
            };
            if same {
                self.unsynced.remove(&number);
            }
            match block {
                Some(block) => drop(self.durable_blocks.insert(number, block)),
                None => drop(self.durable_blocks.remove(&number)),
            }
        }
        self.durable_bytes = staged.bytes;
        // Blocks beyond the end may have stayed from before it was cut by an fsync that failed.
        cut(&mut self.durable_blocks, self.durable_bytes);
    }

    /// An fsync that fails as Linux's do: what was to be written counts as written from now on, so the next fsync neither writes it nor fails.
    pub(crate) fn fail_sync(&mut self) {
        self.unsynced.clear();
    }

    /// Whether an fsync would change anything.
    #[cfg(test)]
    pub(crate) fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty() || self.bytes != self.durable_bytes
    }

    /// A power loss. Of what was not fsynced nothing survives; or, if `torn`, some sectors in any order, and the size with or without them.
    /// Returns how many blocks were not fsynced.
    pub(crate) fn forget(&mut self, torn: Option<&mut Chance>) -> u64 {
        let unsynced = std::mem::take(&mut self.unsynced);
        if let Some(chance) = torn {
            self.tear(&unsynced, chance);
        }
        self.blocks.clone_from(&self.durable_blocks);
        self.bytes = self.durable_bytes;
        unsynced.len() as u64
    }

    fn tear(&mut self, unsynced: &BTreeSet<u64>, chance: &mut Chance) {
        // Nearly nothing, anything between, or nearly all of a file survives.
        let percent = [2, 20, 50, 80, 98][usize::try_from(chance.up_to(4)).expect("a small number")];
        let zeros = Arc::new([0; BLOCK_BYTES]);
        for number in unsynced {
            let written = self.blocks.get(number).unwrap_or(&zeros).clone();
            let survivor = Arc::make_mut(self.durable_blocks.entry(*number).or_insert_with(|| zeros.clone()));
            for (now, written) in survivor.chunks_mut(SECTOR_BYTES).zip(written.chunks(SECTOR_BYTES)) {
                if chance.happens(percent) {
                    now.copy_from_slice(written);
                }
            }
        }
        self.durable_bytes = match (self.bytes.checked_sub(self.durable_bytes), chance.up_to(2)) {
            (_, 0) => self.durable_bytes,
            // A file grows in steps while it is written out.
            (Some(growth), 1) => self.durable_bytes + chance.up_to(growth),
            _ => self.bytes,
        };
        cut(&mut self.durable_blocks, self.durable_bytes);
    }
}

/// Drops what is beyond `bytes`; returns the numbers of the blocks that this changed.
fn cut(blocks: &mut Blocks, bytes: u64) -> Vec<u64> {
    let (last, kept) = place(bytes);
    let mut changed: Vec<u64> = blocks.split_off(&(last + u64::from(kept > 0))).into_keys().collect();
    if let Some(block) = blocks.get_mut(&last)
        && block[kept..].iter().any(|byte| *byte != 0)
    {
        Arc::make_mut(block)[kept..].fill(0);
        changed.push(last);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(file: &File) -> Vec<u8> {
        file.read(0, usize::MAX)
    }

    impl File {
        fn sync(&mut self) {
            let staged = self.begin_sync();
            self.end_sync(staged);
        }
    }

    #[test]
    fn write_during_an_fsync_is_not_covered_by_it() {
        let mut file = File::default();
        file.write(0, &[1; 5000]);
        let staged = file.begin_sync();
        file.write(0, &[2; 10]);
        file.write(5000, &[2; 10]);
        file.end_sync(staged);
        assert!(file.is_unsynced());
        assert_eq!(whole(&file)[..10], [2; 10]);
        assert!(file.forget(None) > 0);
        assert_eq!(whole(&file), [1; 5000]);
    }

    #[test]
    fn fsyncs_that_end_in_the_other_order_keep_the_newest() {
        let mut file = File::default();
        file.write(0, &[1; 10]);
        let first = file.begin_sync();
        file.write(0, &[2; 10]);
        let second = file.begin_sync();
        file.end_sync(second);
        file.end_sync(first);
        assert!(!file.is_unsynced());
        file.forget(None);
        assert_eq!(whole(&file), [2; 10]);
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_does_not() {
        let mut file = File::default();
        file.write(0, &[1; 6000]);
        file.sync();
        file.write(5000, &[2; 6000]);
        assert_eq!(file.bytes(), 11_000);
        assert!(file.forget(None) > 0);
        assert_eq!(whole(&file), [1; 6000]);
        file.resize(10);
        assert_eq!(whole(&file), [1; 10]);
        file.forget(None);
        assert_eq!(whole(&file), [1; 6000]);
        file.resize(10);
        file.sync();
        file.resize(6000);
        file.sync();
        file.forget(None);
        assert_eq!(whole(&file), [&[1; 10][..], &[0; 5990]].concat(), "what was cut off came back");
    }

    #[test]
    fn block_of_zeros_replaces_what_was_there() {
        let mut file = File::default();
        file.write(0, &[1; 3 * BLOCK_BYTES]);
        file.sync();
        file.write(0, &[0; 2 * BLOCK_BYTES]);
        assert_eq!(file.read(0, 2 * BLOCK_BYTES), [0; 2 * BLOCK_BYTES]);
        file.sync();
        file.forget(None);
        assert_eq!(file.read(0, 2 * BLOCK_BYTES), [0; 2 * BLOCK_BYTES]);
        assert_eq!(file.read(2 * BLOCK_BYTES as u64, usize::MAX), [1; BLOCK_BYTES]);
    }

    #[test]
    fn torn_sectors_are_old_or_new_and_both_come_up() {
        let (mut old, mut new, mut sizes) = (0, 0, BTreeSet::new());
        for seed in 0..200 {
            let mut file = File::default();
            file.write(0, &[1; 4 * BLOCK_BYTES]);
            file.sync();
            file.write(100, &[2; 8 * BLOCK_BYTES]);
            let written = whole(&file);
            file.forget(Some(&mut Chance::new(seed)));
            sizes.insert(file.bytes());
            let found = whole(&file);
            for (at, sector) in found.chunks(SECTOR_BYTES).enumerate() {
                let begin = at * SECTOR_BYTES;
                let was = if begin < 4 * BLOCK_BYTES { 1 } else { 0 };
                // The new part of a sector that the end of the file cuts is new as far as the file goes.
                if sector == &written[begin..begin + sector.len()] {
                    new += 1;
                } else {
                    assert!(sector.iter().all(|byte| *byte == was), "seed {seed}: sector {at} is neither old nor new");
                    old += 1;
                }
            }
        }
        assert!(old > 1_000 && new > 1_000, "{old} old, {new} new");
        assert!(sizes.len() > 10, "{sizes:?}");
    }

    #[test]
    fn second_fsync_after_a_failed_one_succeeds_and_keeps_nothing() {
        let mut file = File::default();
        file.write(0, &[1; 10]);
        file.sync();
        file.write(0, &[2; 10]);
        file.fail_sync();
        file.sync();
        assert_eq!(whole(&file), [2; 10], "it is read as written");
        file.forget(None);
        assert_eq!(whole(&file), [1; 10]);
    }
}
