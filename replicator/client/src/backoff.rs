//! Pauses between attempts: exponential, with jitter, so that clients of a failed node don't return in step.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(10);
/// The longest pause. An election takes 450 to 600 ms, so a longer one would only delay the recovery.
const LONGEST: Duration = Duration::from_millis(250);

/// A small generator (splitmix64). Jitter and shuffling need spread, not secrecy.
#[derive(Debug)]
pub(crate) struct Spread(u64);

impl Spread {
    /// Seeded by the operating system.
    pub(crate) fn new() -> Self {
        // Without entropy all clients would use one order: worse spread, still correct.
        Self(getrandom::u64().unwrap_or(0x5eed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.next() % (i as u64 + 1);
            items.swap(i, j as usize);
        }
    }
}

/// The pauses of one call.
#[derive(Debug)]
pub(crate) struct Backoff {
    step: Duration,
    spread: Spread,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { step: FIRST, spread: Spread::new() }
    }

    /// The next pause: between half the step and the step, which then doubles.
    pub(crate) fn pause(&mut self) -> Duration {
        let half = self.step / 2;
        let jitter = self.spread.next() % (half.as_micros() as u64 + 1);
        self.step = (self.step * 2).min(LONGEST);
        half + Duration::from_micros(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new();
        let mut step = FIRST;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(pause >= step / 2 && pause <= step, "{pause:?} at {step:?}");
            step = (step * 2).min(LONGEST);
        }
    }

    #[test]
    fn a_shuffle_keeps_all() {
        let mut items: Vec<u32> = (0..50).collect();
        Spread(1).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
