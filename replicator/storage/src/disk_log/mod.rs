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
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc::Sender},
    thread::{self, JoinHandle},
};

use replicator_types::{LogIndex, Position};

use self::{
    core::Core,
    flusher::{Event, Flushing},
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
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
    record_bytes_max: usize,
}

/// What the log and its flusher share. Locked in this order: `core`, then `flushing`.
struct Shared {
    core: RwLock<Core>,
    flushing: Mutex<Flushing>,
    events: Sender<Event>,
    flush_check: Option<FlushCheck>,
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

    /// Nothing in there panics halfway through a change.
    fn flushing(&self) -> MutexGuard<'_, Flushing> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a flush, if there is something to flush and none is in flight.
    fn start_flush(&self) {
        match self.write() {
            Ok(mut core) => self.flushing().start(&mut core, &self.events),
            Err(error) => flusher::fail(self, &error.to_string().into()),
        }
    }
}

fn panicked() -> StorageError {
    StorageError::failed("a panic amid a change of the log")
}

impl DiskLog {
    /// Runs a change of the log, unless it has failed; if the change fails midway, so has the log.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Core, &mut Flushing) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let result = {
            let mut core = self.shared.write()?;
            let mut flushing = self.shared.flushing();
            flushing.check()?;
            change(&mut core, &mut flushing)
        };
        if let Err(StorageError::Failed { what }) = &result {
            flusher::fail(&self.shared, what);
        }
        result
    }
}

impl Log for DiskLog {
    fn ends(&self) -> LogEnds {
        let core = self.shared.core.read().unwrap_or_else(PoisonError::into_inner);
        LogEnds { purged: core.purged, last: core.last, durable: self.shared.flushing().durable() }
    }

    fn append(&self, records: Vec<Record>, done: Durable) -> Result<(), StorageError> {
        self.change(|core, flushing| {
            core.check_append(&records, self.record_bytes_max)?;
            if !records.is_empty() {
                core.append(records, flushing.durable_end())?;
                flushing.written();
            }
            flushing.wait(done, &self.shared.events);
            flushing.start(core, &self.shared.events);
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
        let core = self.shared.read()?;
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
        self.change(|core, flushing| {
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
            flushing.truncated(last);
            flushing.written();
            Ok(())
        })
    }

    fn purge_through(&self, through: Position) -> Result<(), StorageError> {
        self.change(|core, flushing| {
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
                flushing.truncated(kept);
            }
            core.purge(held.unwrap_or(Place { round: core.round, position: through }))?;
            flushing.written();
            flushing.start(core, &self.shared.events); // raft-log removes purged chunks with a flush
            Ok(())
        })
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        let _ = self.shared.events.send(Event::Stop); // fails only if the flusher has ended
        let Some(flusher) = self.flusher.take() else { return };
        // The last handle may be dropped by somebody whom the flusher calls: then it ends by itself.
        if flusher.thread().id() != thread::current().id() && flusher.join().is_err() {
            tracing::error!("the log's flusher panicked");
        }
    }
}
