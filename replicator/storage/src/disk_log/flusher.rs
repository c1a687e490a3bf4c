//! One flush in flight, and everybody who comes meanwhile waits for the next one together.
//!
//! raft-log flushes each request by itself, which costs an fsync for each. Here the appender starts a flush only if none is in
//! flight. When it has ended, raft-log's worker moves the watermark and calls those who waited, there and then: an acknowledgement should
//! not wait for a thread to wake up. The next flush, for those who came in the meantime, is started by the flusher, a thread of the log:
//! raft-log's worker must never wait for the log's lock, nor for room in its own queue, because an appender that holds the lock may be
//! waiting for the worker. For the same reason nobody holds the lock of [`Flush`] while calling raft-log.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender},
    },
    thread::{self, ThreadId},
};

use raft_log::api::raft_log_writer::RaftLogWriter;
use replicator_types::Position;

use super::{
    Shared,
    core::Core,
    watermark::{Watermark, WatermarkFile},
};
use crate::{Durable, StorageError};

/// A test's seam: called after each flush; its error counts as the flush's.
pub type FlushCheck = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What the flusher hears.
pub(crate) enum Event {
    /// Somebody waits for the next flush.
    Start,
    /// Everything was durable when this was asked.
    Call(Durable),
    /// The log is closed: flush what is left, then end, and drop what may be the last handle on raft-log.
    Stop(Arc<Shared>),
}

/// What raft-log's worker, the flusher and the appenders share.
pub(crate) struct Flush {
    state: Mutex<Flushing>,
    watermark: Mutex<WatermarkFile>,
    check: Option<FlushCheck>,
    events: Sender<Event>,
}

/// Who waits for what.
struct Flushing {
    /// Those who wait for a flush that hasn't begun.
    waiting: Vec<Durable>,
    /// Whether anything was written since the last flush began.
    dirty: bool,
    in_flight: Option<Flight>,
    /// The last durable entry that is still in the log.
    durable: Option<Position>,
    /// The global offset up to which the log is durable.
    durable_end: u64,
    failed: Option<Arc<str>>,
    /// The flusher waits for the flush in flight, to end.
    stopping: bool,
    /// raft-log's worker, while it calls those who waited.
    caller: Option<ThreadId>,
}

struct Flight {
    waiting: Vec<Durable>,
    /// What will be durable.
    watermark: Watermark,
    /// The last entry of that which is still in the log.
    kept: Option<Position>,
}

impl Flushing {
    fn check(&self) -> Result<(), StorageError> {
        self.failed.as_ref().map_or(Ok(()), |what| Err(StorageError::failed(what.clone())))
    }

    fn is_at_rest(&self) -> bool {
        self.failed.is_some() || (!self.dirty && self.in_flight.is_none())
    }
}

impl Flush {
    /// Everything up to the watermark is durable.
    pub(crate) fn new(
        watermark: Watermark,
        file: WatermarkFile,
        check: Option<FlushCheck>,
        events: Sender<Event>,
    ) -> Self {
        let state = Flushing {
            waiting: Vec::new(),
            dirty: false,
            in_flight: None,
            durable: watermark.last,
            durable_end: watermark.end,
            failed: None,
            stopping: false,
            caller: None,
        };
        Self { state: Mutex::new(state), watermark: Mutex::new(file), check, events }
    }

    /// Nothing in there panics halfway through a change.
    fn state(&self) -> MutexGuard<'_, Flushing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn durable(&self) -> Option<Position> {
        self.state().durable
    }

    pub(crate) fn durable_end(&self) -> u64 {
        self.state().durable_end
    }

    /// # Errors
    /// If the log has failed.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.state().check()
    }

    /// Something was written that isn't flushed yet.
    pub(crate) fn written(&self) {
        self.state().dirty = true;
    }

    /// The log was cut off after `last`: what was durable beyond it is no part of it any more.
    pub(crate) fn truncated(&self, last: Option<Position>) {
        let cut = |position: &mut Option<Position>| {
            if position.map(|position| position.index) > last.map(|last| last.index) {
                *position = last;
            }
        };
        let mut state = self.state();
        cut(&mut state.durable);
        if let Some(flight) = &mut state.in_flight {
            cut(&mut flight.kept);
        }
    }

    /// Sees to it that `done` is called when everything written so far is durable.
    pub(crate) fn wait(&self, done: Durable) {
        let mut state = self.state();
        if state.dirty {
            state.waiting.push(done);
        } else if let Some(flight) = &mut state.in_flight {
            flight.waiting.push(done);
        } else {
            drop(state);
            self.send(Event::Call(done));
        }
    }

    /// Starts a flush, if there is something to flush and none is in flight. The caller has the log's lock.
    pub(crate) fn start(self: &Arc<Self>, core: &mut Core) {
        {
            let mut state = self.state();
            if !state.dirty || state.in_flight.is_some() || state.failed.is_some() {
                return;
            }
            state.dirty = false;
            let watermark = Watermark { end: core.end, last: core.last };
            let waiting = std::mem::take(&mut state.waiting);
            state.in_flight = Some(Flight { waiting, watermark, kept: core.last });
        }
        let done = FlushDone { flush: Some(self.clone()) };
        if let Err(error) = core.raft.flush(true, Some(done)) {
            tracing::error!(%error, "can't start a flush of the log"); // Dropping `done` fails the log.
        }
    }

    /// The flush in flight has ended. Runs on raft-log's worker.
    fn landed(&self, result: io::Result<()>) {
        self.state().caller = Some(thread::current().id());
        self.answer(result);
        let mut state = self.state();
        state.caller = None;
        if state.stopping || (state.dirty && state.in_flight.is_none()) {
            self.send(Event::Start);
        }
    }

    fn answer(&self, result: io::Result<()>) {
        let Some(reached) = self.state().in_flight.as_ref().map(|flight| flight.watermark) else { return };
        let check = || self.check.as_ref().map_or(Ok(()), |check| check());
        let outcome =
            result.and_then(|()| check()).map_err(|error| format!("the log couldn't be made durable: {error}"));
        // The watermark first: an acknowledgement may leave as soon as somebody is called.
        let write = |()| self.watermark().write(reached).map_err(|error| error.to_string());
        if let Err(what) = outcome.and_then(write) {
            return self.fail(&what.into());
        }
        let waiting = {
            let mut state = self.state();
            let Some(flight) = state.in_flight.take() else { return };
            state.durable = flight.kept;
            state.durable_end = flight.watermark.end;
            flight.waiting
        };
        self.call(waiting);
    }

    fn watermark(&self) -> MutexGuard<'_, WatermarkFile> {
        self.watermark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls those who waited. One that panics must not leave the others waiting for ever.
    fn call(&self, waiting: Vec<Durable>) {
        for done in waiting {
            let answer = self.check();
            if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
                self.fail(&"who waited for a flush panicked".into());
            }
        }
    }

    /// Whether this thread is raft-log's worker, calling those who waited. It must not wait for the flusher, which waits for it.
    pub(crate) fn is_caller(&self) -> bool {
        self.state().caller == Some(thread::current().id())
    }

    /// The log has failed: everybody who waits hears of it, and nothing is written any more.
    pub(crate) fn fail(&self, what: &Arc<str>) {
        tracing::error!(%what, "the log has failed; the node must be started again");
        let waiting = {
            let mut state = self.state();
            state.failed.get_or_insert_with(|| what.clone());
            let mut waiting = state.in_flight.take().map(|flight| flight.waiting).unwrap_or_default();
            waiting.append(&mut state.waiting);
            waiting
        };
        for done in waiting {
            let error = StorageError::failed(what.clone());
            if catch_unwind(AssertUnwindSafe(|| done(Err(error)))).is_err() {
                tracing::error!("who waited for a flush panicked");
            }
        }
        self.send(Event::Start); // The flusher may be waiting to end.
    }

    /// The flusher outlives every sender but the last moments of a log that has failed: then nobody waits any more.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// raft-log's callback. One that is dropped uncalled reports a failure: raft-log's worker ends after its first error, and drops what is
/// queued.
pub(crate) struct FlushDone {
    flush: Option<Arc<Flush>>,
}

impl raft_log::Callback for FlushDone {
    fn send(mut self, result: io::Result<()>) {
        if let Some(flush) = self.flush.take() {
            flush.landed(result);
        }
    }
}

impl Drop for FlushDone {
    fn drop(&mut self) {
        if let Some(flush) = self.flush.take() {
            flush.landed(Err(io::Error::other("an earlier write has failed")));
        }
    }
}

impl fmt::Debug for FlushDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlushDone")
    }
}

/// The flusher's thread.
pub(crate) fn run(shared: &Shared, events: &Receiver<Event>) {
    let flush = &shared.flush;
    let mut stopped = None;
    while stopped.is_none() || !flush.state().is_at_rest() {
        match events.recv() {
            Ok(Event::Start) => shared.start_flush(),
            Ok(Event::Call(done)) => flush.call(vec![done]),
            Ok(Event::Stop(handle)) => {
                stopped = Some(handle);
                flush.state().stopping = true;
                shared.start_flush();
            }
            Err(_) => return,
        }
    }
    // Those who asked when all was durable, just before the log was closed.
    for event in events.try_iter() {
        if let Event::Call(done) = event {
            flush.call(vec![done]);
        }
    }
    if flush.check().is_ok()
        && let Err(error) = flush.watermark().sync()
    {
        tracing::warn!(%error, "the log's watermark may be older than the log after a power loss");
    }
}
