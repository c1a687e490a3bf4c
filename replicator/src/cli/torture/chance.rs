//! Choices that a seed decides.

use std::{ops::RangeInclusive, time::Duration};

/// A generator (SplitMix64): the same seed makes the same choices on every machine.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// The generator of one part of a run, say a round: what one part draws doesn't change what another will.
    pub(super) fn new(seed: u64, part: u64) -> Self {
        let mut mixed = Self(seed ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        mixed.next();
        mixed
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. Slightly uneven, which does no harm here.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is below a usize")
    }

    pub(super) fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        let (low, high) = range.into_inner();
        Duration::from_millis(low + self.next() % (high - low + 1))
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// `count` different ones of 0, 1, … below `of`, in any order.
    pub(super) fn some(&mut self, count: usize, of: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        (0..count.min(of)).map(|_| all.swap_remove(self.below(all.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_and_parts_differ() {
        let draw = |seed, part| {
            let mut chance = Chance::new(seed, part);
            (chance.some(2, 5), chance.millis(1..=1_000), chance.coin(), chance.below(1 << 20))
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn victims_are_different_ones() {
        let mut chance = Chance::new(1, 0);
        for _ in 0..100 {
            let mut some = chance.some(3, 5);
            some.sort_unstable();
            some.dedup();
            assert_eq!(some.len(), 3);
            assert!(some.iter().all(|index| *index < 5));
        }
    }
}
