//! Numbers from a seed: splitmix64.

/// The numbers of one case.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, case: u64) -> Self {
        let mut random = Self(seed);
        random.0 ^= random.next().wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random
    }

    /// From the bytes of a case.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::new(xxhash_rust::xxh3::xxh3_64(bytes), 0)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Less than `bound`, which isn't 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// A number as programs have trouble with: near a power of two, or any.
    pub(crate) fn edgy(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(64) as u32,
            1 => (1u32 << self.below(32)).wrapping_add(self.below(5) as u32).wrapping_sub(2),
            2 => u32::MAX - self.below(64) as u32,
            _ => self.next() as u32,
        }
    }

    /// Damages bytes: flips, cuts, doubles or replaces some.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let len = self.below((bytes.len() - at).min(64)) + 1;
                    let copy = bytes[at..at + len].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                2 => {
                    let len = self.below((bytes.len() - at).min(16)) + 1;
                    bytes.drain(at..at + len);
                }
                3 => bytes[at] = self.next() as u8,
                4 => bytes[at] = bytes[at].wrapping_add(1),
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
    }
}
