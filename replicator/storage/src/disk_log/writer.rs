//! The log's thread: writes what is pending, makes it durable, tells those who wait, and takes what came meanwhile.
//!
//! So one flush is in flight at a time, and everybody who comes during it shares the next one. Those who wait are called from here, there
//! and then: an acknowledgement should not wait for a thread to wake up. Nobody is called, and nothing is written, while the log's lock
//! is held.

use std::{
    fs,
    io::{self, ErrorKind},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    options::DiskLogOptions,
    preparation::RETRY,
    room::Gauge,
    segment::Segment,
    segment_writer::{Progress, SegmentWriter},
    state::{Batch, State},
    watermark::{Watermark, WatermarkFile},
};
use crate::{Durable, StorageError, atomic_file, disk_room, node_dir::Claim};

/// What may be appended and not be taken by the writer yet; appenders wait beyond that.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// A test's seam: called after each flush; its error counts as the flush's.
pub type FlushCheck = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What the writer and the log's handles share.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    state: Mutex<State>,
    /// The writer waits for something to do.
    work: Condvar,
    /// Appenders wait for the writer to take what is pending.
    room: Condvar,
    check: Option<FlushCheck>,
    cache_bytes_max: usize,
    pub(crate) gauge: Arc<Gauge>,
    /// Held until the writer, too, is gone.
    _claim: Claim,
}

impl Shared {
    pub(crate) fn new(dir: PathBuf, state: State, options: DiskLogOptions, gauge: Arc<Gauge>, claim: Claim) -> Self {
        let (state, work, room) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let DiskLogOptions { flush_check: check, cache_bytes_max, .. } = options;
        Self { dir, state, work, room, check, cache_bytes_max, gauge, _claim: claim }
    }

    /// Locks the log. If somebody panicked amid a change of it, it has failed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            let mut state = poisoned.into_inner();
            state.failed.get_or_insert_with(|| "a panic amid a change of the log".into());
            self.work.notify_one();
            state
        })
    }

    /// Locks the log for a change, when there is room for what will be written.
    ///
    /// # Errors
    /// If it has failed, or if that room would come only with room on the disk.
    pub(crate) fn lock_for_change(&self) -> Result<MutexGuard<'_, State>, StorageError> {
        let mut state = self.lock();
        while state.failed.is_none() && state.pending.len() >= PENDING_BYTES_MAX {
            if state.stalled {
                let free = disk_room::free_bytes(&self.dir).unwrap_or(0);
                return Err(StorageError::Full { path: self.dir.clone(), needed: state.pending.len() as u64, free });
            }
            state.wanted = true;
            self.work.notify_one();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()?;
        Ok(state)
    }

    /// Has what is pending written, and those called who wait.
    pub(crate) fn want(&self, mut state: MutexGuard<'_, State>) {
        state.wanted = true;
        let idle = state.idle;
        drop(state);
        if idle {
            self.work.notify_one();
        }
    }

    /// Has the writer write what is left, and end.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }

    /// Waits for something to write or somebody to call, or for a while if there is something to look after; `None` when the log is closed.
    fn next_work(&self, look_after: bool) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(what) = state.failed.clone() {
                let waiting = state.fail(&what);
                if waiting.is_empty() && state.closing {
                    return None;
                }
                if !waiting.is_empty() {
                    drop(state);
                    refuse(waiting, &what);
                    state = self.lock();
                    continue;
                }
            } else if state.wanted || state.closing {
                if !state.pending.is_empty() || !state.waiting.is_empty() {
                    self.room.notify_all();
                    return Some(Work::Batch(state.take_batch()));
                }
                if state.closing {
                    return None;
                }
                state.wanted = false;
            }
            state.idle = true;
            let waited = if look_after {
                let (state, waited) = self.work.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner);
                (state, waited.timed_out())
            } else {
                (self.work.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            };
            state = waited.0;
            state.idle = false;
            if waited.1 && state.failed.is_none() {
                return Some(Work::LookAfter);
            }
        }
    }

    /// Writes the batch, and then the watermark: an acknowledgement may leave as soon as somebody is called.
    fn make_durable(
        &self,
        batch: &Batch,
        segments: &mut SegmentWriter,
        watermark: &mut WatermarkFile,
    ) -> Result<Vec<Arc<Segment>>, StorageError> {
        if batch.records.is_empty() {
            return Ok(Vec::new());
        }
        let (mut progress, mut waited) = (Progress::default(), false);
        while let Err(error) = segments.write(&batch.records, batch.ends, &mut progress) {
            match error {
                StorageError::Full { .. } => self.wait_for_room(&error)?,
                _ => return Err(error),
            }
            waited = true;
        }
        if waited {
            tracing::warn!("the log has room on its disk again, and goes on");
            self.lock().stalled = false;
        }
        if let Some(check) = &self.check {
            check().map_err(StorageError::io("make durable", &self.dir))?;
        }
        watermark.write(Watermark { end: batch.end, last: batch.ends.last })?;
        Ok(progress.begun)
    }

    /// What is in flight has no room on the disk. Nothing of it is half written, so it may wait; a log that is closed doesn't.
    fn wait_for_room(&self, error: &StorageError) -> Result<(), StorageError> {
        let mut state = self.lock();
        if !state.stalled {
            tracing::error!(%error, "the log waits for room on its disk: nothing can be written until some is freed");
            state.stalled = true;
            self.room.notify_all();
        }
        let deadline = Instant::now() + RETRY;
        while !state.closing {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(()) };
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Err(StorageError::failed(format!("the log was closed while it waited for room on its disk: {error}")))
    }

    /// Calls those who waited. One that panics must not leave the others waiting for ever.
    fn call(&self, waiting: Vec<Durable>) {
        let mut failed = None;
        for done in waiting {
            let answer = failed.clone().map_or(Ok(()), |what| Err(StorageError::failed(what)));
            if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
                let what = failed.get_or_insert_with(|| Arc::from("who waited for a flush panicked"));
                self.lock().failed.get_or_insert_with(|| what.clone());
            }
        }
        if let Some(what) = failed {
            self.fail(&what);
        }
    }

    /// The log has failed: everybody who waits hears of it, and nothing is written any more.
    fn fail(&self, what: &Arc<str>) {
        tracing::error!(%what, "the log has failed; the node must be started again");
        let waiting = self.lock().fail(what);
        self.room.notify_all();
        refuse(waiting, what);
    }

    /// Removes segments that were purged, the oldest first, so that what is left is always without a gap.
    fn remove(&self, freed: &[Arc<Segment>]) -> Result<(), StorageError> {
        for segment in freed {
            match fs::remove_file(&segment.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(StorageError::io("remove", &segment.path)(error));
                }
                _ => {}
            }
        }
        if freed.is_empty() { Ok(()) } else { atomic_file::sync_dir(&self.dir) }
    }
}

/// What the writer does next.
enum Work {
    Batch(Batch),
    /// See to the segment ahead.
    LookAfter,
}

fn refuse(waiting: Vec<Durable>, what: &Arc<str>) {
    for done in waiting {
        let error = StorageError::failed(what.clone());
        if catch_unwind(AssertUnwindSafe(|| done(Err(error)))).is_err() {
            tracing::error!("who waited for a flush panicked");
        }
    }
}

/// Runs what touches the disk. A panic is a failure like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, Arc<str>> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(StorageError::Failed { what })) => Err(what),
        Ok(Err(error)) => Err(format!("the log couldn't be made durable: {error}").into()),
        Err(_) => Err("a panic while the log was written".into()),
    }
}

/// The thread's work, until the log is closed.
pub(crate) fn run(shared: &Shared, mut segments: SegmentWriter, mut watermark: WatermarkFile) {
    while let Some(work) = shared.next_work(segments.is_unsettled()) {
        let Work::Batch(batch) = work else {
            if let Err(what) = guarded(|| segments.prepare()) {
                shared.fail(&what);
            }
            continue;
        };
        let begun = match guarded(|| shared.make_durable(&batch, &mut segments, &mut watermark)) {
            Ok(begun) => begun,
            Err(what) => {
                shared.fail(&what);
                continue;
            }
        };
        let landed = shared.lock().landed(batch, begun, shared.cache_bytes_max);
        shared.call(landed.waiting);
        // Nobody waits for the rest.
        drop(landed.evicted);
        let after = || {
            shared.remove(&landed.freed)?;
            segments.prepare()
        };
        if let Err(what) = guarded(after) {
            shared.fail(&what);
        }
    }
    if shared.lock().check().is_ok()
        && let Err(error) = watermark.sync()
    {
        tracing::warn!(%error, "the log's watermark may be older than the log after a power loss");
    }
}
