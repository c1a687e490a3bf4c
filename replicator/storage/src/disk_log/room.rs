//! How much the log can take, as its writer knows it and its handles ask.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::segment::SEGMENT_HEADER_BYTES;

/// Each number is right by itself, and they are read one after the other: who asks wants a warning, not a promise.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    /// What the current segment has room for, in bytes.
    rest: AtomicU64,
    /// What the segment made ahead has room for.
    ahead: AtomicU64,
    /// There was no room for a segment when one was made last.
    starved: AtomicBool,
}

impl Gauge {
    pub(crate) fn set_rest(&self, bytes: u64) {
        self.rest.store(bytes, Ordering::Relaxed);
    }

    /// A segment of this capacity is there.
    pub(crate) fn made(&self, capacity: u64) {
        self.ahead.store(capacity.saturating_sub(SEGMENT_HEADER_BYTES), Ordering::Relaxed);
        self.starved.store(false, Ordering::Relaxed);
    }

    /// The segment made ahead is the current one now, or was too small.
    pub(crate) fn taken(&self) {
        self.ahead.store(0, Ordering::Relaxed);
    }

    pub(crate) fn starve(&self) {
        self.starved.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    /// Bytes of records that go into files that are there.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.rest.load(Ordering::Relaxed) + self.ahead.load(Ordering::Relaxed)
    }
}
