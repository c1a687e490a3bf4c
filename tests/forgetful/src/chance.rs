//! Numbers that a seed decides.

/// A small generator (splitmix64): the same numbers for the same seed, on every machine.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `most`, that included.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        most.checked_add(1).map_or(0, |count| self.next() % count)
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn happens(&mut self, percent: u64) -> bool {
        self.up_to(99) < percent
    }
}
