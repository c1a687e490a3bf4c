//! What can be chosen about a log, and what opening one found.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use raft_log::{Config, chunked_wal};

use super::{flusher::FlushCheck, scanner::TornTail, types::PAYLOAD_BYTES_MAX};
use crate::StorageError;

const READ_BUFFER_BYTES: usize = 1 << 20;
const CHUNK_RECORDS_MAX: usize = 1 << 20;
const CACHE_RECORDS_MAX: usize = 100_000;
/// What may be handed to raft-log's worker and not be written yet; appenders wait beyond that.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Sizes of a log. The defaults are right for a node; tests use smaller ones.
#[derive(Clone)]
pub struct DiskLogOptions {
    /// A chunk file is closed when it has this size. Space is freed in whole chunks, and all of the newest chunk is kept in memory.
    pub chunk_bytes_max: usize,
    /// The largest payload taken; at most 64 MiB.
    pub record_bytes_max: usize,
    /// What is kept of closed chunks in memory, together with all of the newest one.
    pub cache_bytes_max: usize,
    /// A test's seam: called after each flush; its error counts as the flush's.
    pub flush_check: Option<FlushCheck>,
}

impl Default for DiskLogOptions {
    fn default() -> Self {
        Self { chunk_bytes_max: 64 << 20, record_bytes_max: 16 << 20, cache_bytes_max: 64 << 20, flush_check: None }
    }
}

impl fmt::Debug for DiskLogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLogOptions")
            .field("chunk_bytes_max", &self.chunk_bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("cache_bytes_max", &self.cache_bytes_max)
            .finish_non_exhaustive()
    }
}

impl DiskLogOptions {
    /// The largest payload taken.
    pub(crate) fn record_bytes_max(&self) -> usize {
        self.record_bytes_max.min(PAYLOAD_BYTES_MAX)
    }

    /// raft-log's settings for the log in `dir`.
    pub(crate) fn raft_log_config(&self, dir: &Path) -> Result<Arc<Config>, StorageError> {
        let text = dir.to_str().ok_or_else(|| {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path is not valid UTF-8");
            StorageError::Io { path: dir.to_owned(), action: "open", source }
        })?;
        Ok(Arc::new(Config {
            wal: chunked_wal::Config {
                dir: text.to_owned(),
                read_buffer_size: Some(READ_BUFFER_BYTES),
                chunk_max_records: Some(CHUNK_RECORDS_MAX),
                chunk_max_size: Some(self.chunk_bytes_max),
                truncate_incomplete_record: Some(false),
                flush_batch_wait: Some(Duration::ZERO),
                flush_batch_max_items: None,
                flush_queue_max_bytes: Some(QUEUE_BYTES_MAX),
            },
            log_cache_max_items: Some(CACHE_RECORDS_MAX),
            log_cache_capacity: Some(self.cache_bytes_max),
        }))
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
    /// How many records the files hold, with purged and truncated ones and the log's own.
    pub records: u64,
    /// The log's size on the disk.
    pub bytes: u64,
}
