//! The log on the disk: raft-log's chunks, opened only after our scanner has read them, with a durable watermark beside them.
//!
//! What raft-log gives: append-only chunk files with checksums, an index and a cache in memory, and a thread that writes and fsyncs.
//! What is added here: one flush in flight ([`flusher`]), damage told from torn tails ([`scanner`], [`watermark`]), and strict
//! positions. raft-log's vote, commit and user data are never used.

mod core;
mod flusher;
mod open;
mod options;
mod replay;
mod scanner;
mod types;
mod watermark;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::{self, JoinHandle},
};

use replicator_types::{LogIndex, Position};

use self::{
    core::Core,
    flusher::{Event, Flush},
    replay::position,
    types::Place,
};
pub use self::{
    flusher::FlushCheck,
    options::{DiskLogOptions, OpenReport},
    scanner::TornTail,
};
use crate::{Durable, Log, LogEnds, Record, StorageError, node_dir::LogClaim};

/// A log in a node's folder. Dropping it flushes what is left, and waits for that and for those who are called.
pub struct DiskLog {
    /// None only while it is dropped.
    shared: Option<Arc<Shared>>,
    flusher: Option<JoinHandle<()>>,
    record_bytes_max: usize,
}

/// What the log and its flusher share. Locked in this order: `core`, then what is in `flush`.
struct Shared {
    core: RwLock<Core>,
    flush: Arc<Flush>,
    /// Held until raft-log, which is dropped first, is gone too.
    _claim: LogClaim,
}

impl fmt::Debug for DiskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLog").field("ends", &self.ends()).finish_non_exhaustive()
    }
}

impl Shared {
    fn read(&self) -> Result<RwLockReadGuard<'_, Core>, StorageError> {
        self.core.read().map_err(|_| panicked())
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Core>, StorageError> {
        self.core.write().map_err(|_| panicked())
    }

    /// Starts a flush, if there is something to flush and none is in flight.
    fn start_flush(&self) {
        match self.write() {
            Ok(mut core) => self.flush.start(&mut core),
            Err(error) => self.flush.fail(&error.to_string().into()),
        }
    }
}

fn panicked() -> StorageError {
    StorageError::failed("a panic amid a change of the log")
}

impl DiskLog {
    fn shared(&self) -> &Shared {
        self.shared.as_ref().expect("it is there until the log is dropped")
    }

    /// Runs a change of the log, unless it has failed; if the change fails midway, so has the log.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Core, &Arc<Flush>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let flush = &self.shared().flush;
        let result = {
            let mut core = self.shared().write()?;
            flush.check()?;
            change(&mut core, flush)
        };
        if let Err(StorageError::Failed { what }) = &result {
            flush.fail(what);
        }
        result
    }
}

impl Log for DiskLog {
    fn ends(&self) -> LogEnds {
        let core = self.shared().core.read().unwrap_or_else(PoisonError::into_inner);
        LogEnds { purged: core.purged, last: core.last, durable: self.shared().flush.durable() }
    }

    fn append(&self, records: Vec<Record>, done: Durable) -> Result<(), StorageError> {
        self.change(|core, flush| {
            core.check_append(&records, self.record_bytes_max)?;
            if !records.is_empty() {
                core.append(records, flush.durable_end())?;
                flush.written();
            }
            flush.wait(done);
            flush.start(core);
            Ok(())
        })
    }

    fn flush(&self, done: Durable) -> Result<(), StorageError> {
        self.append(Vec::new(), done)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        if from >= to {
            return Ok(Vec::new()); // raft-log would panic
        }
        let core = self.shared().read()?;
        let mut records = Vec::new();
        let mut bytes = 0_usize;
        for entry in core.raft.read(from.0, to.0) {
            let (place, payload) = entry.map_err(|error| core.unreadable(error))?;
            let follows = records.last().is_none_or(|last: &Record| place.position.index == last.position.index.next());
            if payload.tag != core.tag || !follows {
                let what = format!("the entry read as {} isn't the one that was written there", place.position);
                return Err(StorageError::damaged(&core.path, None, what));
            }
            bytes = bytes.saturating_add(payload.bytes.len());
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(Record { position: place.position, payload: payload.bytes });
        }
        Ok(records)
    }

    fn truncate_after(&self, last: Option<Position>) -> Result<(), StorageError> {
        self.change(|core, flush| {
            let last = last.or(core.purged);
            if last == core.last {
                return Ok(());
            }
            if let Some(kept) = last.filter(|_| last != core.purged)
                && position(core.place(kept.index)?) != last
            {
                return Err(core.not_contiguous(format!("can't truncate after {kept}, which is not in it")));
            }
            core.truncate(last)?;
            flush.truncated(last);
            flush.written();
            Ok(())
        })
    }

    fn purge_through(&self, through: Position) -> Result<(), StorageError> {
        self.change(|core, flush| {
            if let Some(purged) = core.purged {
                if through.index < purged.index || through == purged {
                    return Ok(());
                }
                if through.index == purged.index || through.epoch < purged.epoch {
                    return Err(core.not_contiguous(format!("can't purge through {through} after {purged}")));
                }
            }
            let held = core.place(through.index)?.filter(|place| place.position == through);
            if held.is_none() && core.last != core.purged {
                // An image installed over a log that doesn't hold its last entry: it is another history's, or too short.
                let kept = core.purged;
                core.truncate(kept)?;
                flush.truncated(kept);
            }
            core.purge(held.unwrap_or(Place { round: core.round, position: through }))?;
            flush.written();
            flush.start(core); // raft-log removes purged chunks with a flush
            Ok(())
        })
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let flush = shared.flush.clone();
        flush.send(Event::Stop(shared)); // Fails only if the flusher has ended.
        let Some(flusher) = self.flusher.take() else { return };
        // The last handle may be dropped by somebody who is called: then it ends by itself.
        if flusher.thread().id() != thread::current().id() && !flush.is_caller() && flusher.join().is_err() {
            tracing::error!("the log's flusher panicked");
        }
    }
}
