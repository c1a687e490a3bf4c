//! The log on the disk: one endless row of records, in segments that are filled with zeros before they are written.
//!
//! Overwriting a file that has its size changes none of the file system's metadata, so a flush is one command to the disk
//! ([`block_file`], [`preparation`]). A caller's change takes effect in memory at once ([`state`], [`index`]); the log's thread makes it
//! durable, one flush in flight ([`writer`], [`segment_writer`]). At a start every byte is read, and damage is told from a torn tail
//! ([`scanner`], [`tear`]) by a durable watermark ([`watermark`]). Why it is our own: `docs/adr/0012-own-log.md`.

pub(crate) mod block_file;
mod dump;
mod index;
mod inspect;
mod matching;
mod mend;
mod open;
mod options;
mod preparation;
mod reader;
mod record;
mod repair;
mod replay;
mod room;
mod scanner;
mod segment;
mod segment_writer;
mod state;
mod stopped;
mod tear;
mod walk;
mod watermark;
mod window;
mod writer;

use std::{
    fmt,
    io::ErrorKind,
    sync::Arc,
    thread::{self, JoinHandle},
};

use replicator_types::{LogIndex, Position};

pub(crate) use self::inspect::{inspect, is_log};
pub use self::{
    dump::{LogDump, LoggedRecord, RecordKind},
    inspect::{LogReport, SegmentReport},
    matching::Matching,
    mend::{EntrySource, GivenEntries, MendError, Withheld},
    options::{DiskLogOptions, OpenReport},
    stopped::StoppedLog,
    tear::TornTail,
    writer::FlushCheck,
};
use self::{state::Plan, writer::Shared};
use crate::{Durable, Log, LogEnds, LogRoom, Record, StorageError, disk_room, meta::LogTag};

/// A log in a node's folder. Dropping it flushes what is left, and waits for that and for those who are called.
pub struct DiskLog {
    shared: Arc<Shared>,
    /// None only while the log is dropped.
    writer: Option<JoinHandle<()>>,
    record_bytes_max: usize,
    reserve_bytes: u64,
}

impl fmt::Debug for DiskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLog").field("ends", &self.ends()).finish_non_exhaustive()
    }
}

impl Log for DiskLog {
    fn ends(&self) -> LogEnds {
        let state = self.shared.lock();
        LogEnds { purged: state.ends.purged, last: state.ends.last, durable: state.durable }
    }

    fn room(&self) -> LogRoom {
        let (pending, stalled) = {
            let state = self.shared.lock();
            (state.pending.len() as u64, state.stalled)
        };
        let gauge = &self.shared.gauge;
        let reserved_bytes = gauge.reserved_bytes().saturating_sub(pending);
        // A file system that doesn't say is one that has room until it refuses.
        let free_bytes = disk_room::free_bytes(&self.shared.dir).unwrap_or(u64::MAX);
        let enough = reserved_bytes.saturating_add(free_bytes) >= self.reserve_bytes;
        LogRoom { open: enough && !stalled && !gauge.is_starved(), stalled, reserved_bytes, free_bytes }
    }

    fn append(&self, records: Vec<Record>, done: Durable) -> Result<(), StorageError> {
        let mut state = self.shared.lock_for_change()?;
        state.append(records, self.record_bytes_max)?;
        if state.wait(done) {
            self.shared.want(state);
        }
        Ok(())
    }

    fn flush(&self, done: Durable) -> Result<(), StorageError> {
        self.append(Vec::new(), done)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        loop {
            let (plan, tag) = {
                let state = self.shared.lock();
                (state.plan(from, to, bytes_max), state.tag)
            };
            if let Some(records) = self.carry_out(plan, tag)? {
                return Ok(records);
            }
        }
    }

    fn truncate_after(&self, last: Option<Position>) -> Result<(), StorageError> {
        self.shared.lock_for_change()?.truncate_after(last)
    }

    fn purge_through(&self, through: Position) -> Result<(), StorageError> {
        let mut state = self.shared.lock_for_change()?;
        if state.purge_through(through)? {
            self.shared.want(state); // Its room is wanted.
        }
        Ok(())
    }
}

impl DiskLog {
    /// Reads what was planned; `None` if it was purged meanwhile.
    fn carry_out(&self, plan: Plan, tag: LogTag) -> Result<Option<Vec<Record>>, StorageError> {
        let Some(first) = plan.segments.first() else { return Ok(Some(plan.in_memory)) };
        match reader::read(&plan.on_disk, &plan.segments, tag) {
            Err(StorageError::Io { path, source, .. }) if source.kind() == ErrorKind::NotFound => {
                // It may have been purged meanwhile, and then what is wanted is another.
                if self.shared.lock().segments.contains(first) {
                    return Err(StorageError::damaged(path, None, "the segment is missing"));
                }
                Ok(None)
            }
            read => {
                let mut records = read?;
                records.extend(plan.in_memory);
                Ok(Some(records))
            }
        }
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        self.shared.close();
        let Some(writer) = self.writer.take() else { return };
        // The last handle may be dropped by somebody who is called: then the writer ends by itself.
        if writer.thread().id() != thread::current().id() && writer.join().is_err() {
            tracing::error!("the log's writer panicked");
        }
    }
}
