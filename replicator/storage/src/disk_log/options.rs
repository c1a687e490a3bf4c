//! What can be chosen about a log, and what opening one found.

use std::fmt;

use super::{record::PAYLOAD_BYTES_MAX, tear::TornTail, writer::FlushCheck};

/// Sizes of a log. The defaults are right for a node; tests use smaller ones.
#[derive(Clone)]
pub struct DiskLogOptions {
    /// The size of a segment's file; at least 8 KiB, and a multiple of 4 KiB. The first segments are smaller, from 1 MiB on, and one that
    /// is begun by a larger record has its size. Space is freed in whole segments.
    pub segment_bytes_max: usize,
    /// The largest payload taken; at most 64 MiB.
    pub record_bytes_max: usize,
    /// What is kept of the newest entries in memory: their payloads and 64 bytes for each. What isn't durable yet is kept in any case.
    pub cache_bytes_max: usize,
    /// When fewer bytes than this are left, on the disk and in the segments that are there, the log has no room for new entries
    /// ([`crate::LogRoom`]). So much stays for those in flight, and for the purge that frees the log's own room.
    pub reserve_bytes: u64,
    /// Whether to write past the operating system's cache, where the file system takes that. It is faster; else each flush is an fdatasync.
    pub direct: bool,
    /// A test's seam: called after each flush; its error counts as the flush's.
    pub flush_check: Option<FlushCheck>,
}

impl Default for DiskLogOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            record_bytes_max: 16 << 20,
            cache_bytes_max: 64 << 20,
            reserve_bytes: 64 << 20,
            direct: true,
            flush_check: None,
        }
    }
}

impl fmt::Debug for DiskLogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLogOptions")
            .field("segment_bytes_max", &self.segment_bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("cache_bytes_max", &self.cache_bytes_max)
            .field("reserve_bytes", &self.reserve_bytes)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

impl DiskLogOptions {
    /// The largest payload taken.
    pub(crate) fn record_bytes_max(&self) -> usize {
        self.record_bytes_max.min(PAYLOAD_BYTES_MAX)
    }
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// The log was made now.
    pub created: bool,
    /// What was cut off its end. Nothing of it was ever reported as durable.
    pub torn_tail: Option<TornTail>,
    /// One of the two copies of the watermark was torn or damaged; the other did.
    pub watermark_slot_lost: bool,
    /// How many records the files hold, with purged and truncated ones.
    pub records: u64,
    /// How many bytes these records take. The files are larger, as they are made ahead.
    pub bytes: u64,
}
