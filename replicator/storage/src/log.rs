//! What a replication strategy needs of a log, whatever lies under it.

use bytes::Bytes;
use replicator_types::{LogIndex, Position};

use crate::StorageError;

/// One entry as the log holds it. The payload's meaning is the strategy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub position: Position,
    /// What it is.
    pub payload: Bytes,
}

/// The ends of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogEnds {
    /// The last entry that was purged; the log begins after it.
    pub purged: Option<Position>,
    /// The last entry; the purged one if nothing follows it.
    pub last: Option<Position>,
    /// The last entry that is in the log and known to be on the disk. Invariant: its index is at most the last one's.
    pub durable: Option<Position>,
}

/// What a log can still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRoom {
    /// Whether new entries are to be taken. While it is false, refuse what comes from clients: what is in flight among the replicas needs the
    /// room that is left. It turns true by itself when there is space again.
    pub open: bool,
    /// Entries were appended that there is no room for. They become durable when there is; nothing is lost, and nobody was told of them.
    pub stalled: bool,
    /// Bytes that can be appended without any more room on the disk.
    pub reserved_bytes: u64,
    /// Bytes that are free on the disk.
    pub free_bytes: u64,
}

impl Default for LogRoom {
    /// Room without end.
    fn default() -> Self {
        Self { open: true, stalled: false, reserved_bytes: u64::MAX, free_bytes: u64::MAX }
    }
}

/// Called once, when everything appended before is durable, or with the error that says that it may not be.
/// After an error the log accepts nothing more: the process must end. It must be quick, and must not call the log, whose thread it holds up;
/// it may drop the log's last handle.
pub type Durable = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// A log: append, read, cut off at either end.
///
/// Two implementations are meant: over the disk (`DiskLog`), and over a simulated disk in tests. Methods may be called from any
/// thread, and take effect in the order of the calls.
pub trait Log: Send + Sync + 'static {
    /// The ends, as of all calls so far.
    fn ends(&self) -> LogEnds;

    /// What the log can still take; by default, everything. Cheap enough to be asked for each batch.
    fn room(&self) -> LogRoom {
        LogRoom::default()
    }

    /// Appends records with ascending, contiguous indexes after the last one. They can be read at once; `done` is called when they
    /// are durable. Flushes are coalesced: one is in flight at a time.
    ///
    /// # Errors
    /// If the records don't follow the log's end (the first index of all is 0, and epochs never decrease), if one is too large, or if
    /// the log has failed before, or if the disk is full and as much waits for it as is kept in memory ([`StorageError::Full`]). Then
    /// nothing was appended, and `done` isn't called.
    fn append(&self, records: Vec<Record>, done: Durable) -> Result<(), StorageError>;

    /// Calls `done` when everything appended before is durable.
    ///
    /// # Errors
    /// If the log has failed before.
    fn flush(&self, done: Durable) -> Result<(), StorageError>;

    /// Reads the records of `from..to` that exist, at least one if there is one, and no more once `bytes_max` of payload are read.
    ///
    /// # Errors
    /// If a record can't be read or is damaged.
    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError>;

    /// Whether the log has this entry, or begins right after it.
    ///
    /// # Errors
    /// If the record can't be read or is damaged.
    fn holds(&self, position: Position) -> Result<bool, StorageError> {
        if self.ends().purged == Some(position) {
            return Ok(true);
        }
        let found = self.read(position.index, position.index.next(), 0)?;
        Ok(found.first().is_some_and(|record| record.position == position))
    }

    /// Drops every record after `last`; all of them if `None`. Durable with the next flush: until then, the records may come back
    /// after a crash.
    ///
    /// # Errors
    /// If the log has failed before, or doesn't hold `last` (its purged end counts as held).
    fn truncate_after(&self, last: Option<Position>) -> Result<(), StorageError>;

    /// Drops every record up to and including `through`, and frees the space some time later. The caller has a durable image of it
    /// (safety rule 22). If the log doesn't hold `through`, because it is shorter or of another history, everything in it is dropped,
    /// and it continues after `through`. Does nothing if so much was purged before. Durable with the next flush.
    ///
    /// # Errors
    /// If the log has failed before, or was purged through an equal index or greater epoch that contradicts `through`.
    fn purge_through(&self, through: Position) -> Result<(), StorageError>;
}

/// What can be read of a log, whether it is open ([`Log`]) or only looked at ([`crate::StoppedLog`]).
pub trait ReadLog {
    /// See [`Log::ends`].
    fn ends(&self) -> LogEnds;

    /// See [`Log::read`].
    ///
    /// # Errors
    /// If a record can't be read or is damaged.
    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError>;
}

impl<L: Log + ?Sized> ReadLog for L {
    fn ends(&self) -> LogEnds {
        Log::ends(self)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        Log::read(self, from, to, bytes_max)
    }
}
