//! How fast an image leaves this node.

use std::{num::NonZeroU64, time::Duration};

use tokio::time::Instant;

/// A piece, in bytes: few, as its message is made by the thread of the group, which has more to do. Less where the rate is bounded, so that none takes
/// more than about a tenth of a second. Small in tests, so that small images are cut between pieces too.
const PIECE_BYTES: usize = if cfg!(test) { 16 << 10 } else { 128 << 10 };
const PIECE_BYTES_MIN: u64 = 4 << 10;

/// Bounds the bytes per second of one transfer, if there is a bound.
pub(in crate::node) struct Pace {
    rate: Option<NonZeroU64>,
    next_at: Instant,
}

impl Pace {
    pub(in crate::node) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, next_at: Instant::now() }
    }

    /// Bytes of the next piece, at most.
    pub(in crate::node) fn piece_bytes(&self) -> usize {
        self.rate.map_or(PIECE_BYTES, |rate| {
            let bytes = (rate.get() / 10).max(PIECE_BYTES_MIN);
            usize::try_from(bytes).map_or(PIECE_BYTES, |bytes| bytes.min(PIECE_BYTES))
        })
    }

    /// Ends when the next piece may leave.
    pub(in crate::node) async fn wait(&self) {
        tokio::time::sleep_until(self.next_at).await;
    }

    pub(in crate::node) fn sent(&mut self, bytes: usize) {
        if let Some(rate) = self.rate {
            let pause = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            self.next_at = self.next_at.max(Instant::now() - Duration::from_millis(100)) + pause;
        }
    }
}
