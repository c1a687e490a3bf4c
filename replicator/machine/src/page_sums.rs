//! A hash of the module's memory that is kept up to date by what was written: the sum of a hash of every page.
//!
//! It describes the shadow ([`crate::shadow`]), and is brought up to date with each copy, by the pages that the copy takes: 0.2 µs for each,
//! which was read just now anyway. Equal memories have equal sums, whatever was copied when: a page counts by its bytes and its place, and one
//! of zeros counts nothing, as it may not be there at all.
//!
//! It guards against accidents, not against anybody who chooses bytes.

use std::{ops::Range, sync::LazyLock};

use xxhash_rust::xxh3::xxh3_64;

use crate::shadow::PAGE_BYTES;

/// What one page counts, for every page, and their sum.
#[derive(Debug, Default)]
pub(crate) struct PageSums {
    pages: Vec<u64>,
    /// Invariant: the wrapping sum of `pages`.
    sum: u64,
}

impl PageSums {
    /// Takes `ranges` of `memory`, which are whole pages. A memory that has grown since the last time is zeros where it wasn't.
    pub(crate) fn take(&mut self, memory: &[u8], ranges: &[Range<usize>]) {
        self.pages.resize(memory.len() / PAGE_BYTES, 0);
        for range in ranges {
            for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
                let counts = count(page, &memory[page * PAGE_BYTES..][..PAGE_BYTES]);
                self.sum = self.sum.wrapping_sub(self.pages[page]).wrapping_add(counts);
                self.pages[page] = counts;
            }
        }
    }

    /// The sum over all pages.
    pub(crate) const fn sum(&self) -> u64 {
        self.sum
    }
}

/// What a page counts in its place.
fn count(page: usize, bytes: &[u8]) -> u64 {
    static ZEROS: LazyLock<u64> = LazyLock::new(|| xxh3_64(&[0; PAGE_BYTES]));
    let hash = xxh3_64(bytes);
    if hash == *ZEROS { 0 } else { hash.wrapping_mul(factor(page)) }
}

/// An odd number for each place, so that two pages that change places change the sum (the finalizer of splitmix64).
const fn factor(page: usize) -> u64 {
    let mut mixed = (page as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::single_range_in_vec_init, reason = "one range of bytes is what is meant")]
    fn sum_of(memory: &[u8]) -> u64 {
        let mut sums = PageSums::default();
        sums.take(memory, &[0..memory.len()]);
        sums.sum()
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "as above")]
    fn taken_in_parts_or_as_a_whole_equal_memories_have_equal_sums() {
        let mut memory = vec![0; 64 << 10];
        memory[5] = 1;
        memory[40 << 10] = 2;
        let mut sums = PageSums::default();
        sums.take(&memory, &[0..4_096]);
        sums.take(&memory, &[36 << 10..44 << 10]);
        assert_eq!(sums.sum(), sum_of(&memory));
        memory[5] = 7;
        sums.take(&memory, &[0..8_192]);
        assert_eq!(sums.sum(), sum_of(&memory));
        // A page that becomes zeros is as if it had never been written; one that only seemed to be written changes nothing.
        memory[5] = 0;
        sums.take(&memory, &[0..4_096, 60 << 10..64 << 10]);
        memory.resize(128 << 10, 0);
        sums.take(&memory, &[]);
        assert_eq!(sums.sum(), sum_of(&memory));
    }

    #[test]
    fn any_byte_and_any_place_counts() {
        let mut memory = vec![0; 16 << 10];
        assert_eq!(sum_of(&memory), 0);
        memory[4_096] = 1;
        let one = sum_of(&memory);
        memory[4_096] = 0;
        memory[8_192] = 1;
        assert_ne!(sum_of(&memory), one, "the page has moved");
        memory[8_193] = 1;
        let before = sum_of(&memory);
        memory[8_193] = 0;
        assert_ne!(sum_of(&memory), before);
    }
}
