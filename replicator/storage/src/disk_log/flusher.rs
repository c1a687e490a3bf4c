//! One flush in flight, and everybody who comes meanwhile waits for the next one together.
//!
//! raft-log flushes each request by itself, which costs an fsync for each. Here the appender starts a flush only if none is in
//! flight. raft-log's worker reports to the flusher, a thread of the log: it moves the watermark, calls those who waited, and
//! starts the next flush for those who came in the meantime. It can't be done on raft-log's worker, which must never wait for
//! the log's lock: an appender that holds it may be waiting for the worker.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
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
    /// The flush in flight has ended.
    Flushed(io::Result<()>),
    /// Everything was durable when this was asked.
    Call(Durable),
    /// The log is closed: flush what is left, then end.
    Stop,
}

/// Who waits for what. Invariant: `in_flight` is `None` or `calling` is false.
pub(crate) struct Flushing {
    /// Those who wait for a flush that hasn't begun.
    waiting: Vec<Durable>,
    /// Whether anything was written since the last flush began.
    dirty: bool,
    in_flight: Option<Flight>,
    /// The flusher is calling those who waited, and will look here again afterwards.
    calling: bool,
    /// The last durable entry that is still in the log.
    durable: Option<Position>,
    /// The global offset up to which the log is durable.
    durable_end: u64,
    failed: Option<Arc<str>>,
}

struct Flight {
    waiting: Vec<Durable>,
    /// What will be durable.
    watermark: Watermark,
    /// The last entry of that which is still in the log.
    kept: Option<Position>,
}

impl Flushing {
    /// Everything up to the watermark is durable.
    pub(crate) fn new(watermark: Watermark) -> Self {
        Self {
            waiting: Vec::new(),
            dirty: false,
            in_flight: None,
            calling: false,
            durable: watermark.last,
            durable_end: watermark.end,
            failed: None,
        }
    }

    pub(crate) fn durable(&self) -> Option<Position> {
        self.durable
    }

    pub(crate) fn durable_end(&self) -> u64 {
        self.durable_end
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.failed.as_ref().map_or(Ok(()), |what| Err(StorageError::failed(what.clone())))
    }

    /// Something was written that isn't flushed yet.
    pub(crate) fn written(&mut self) {
        self.dirty = true;
    }

    /// The log was cut off after `last`: what was durable beyond it is no part of it any more.
    pub(crate) fn truncated(&mut self, last: Option<Position>) {
        let cut = |position: &mut Option<Position>| {
            if position.map(|position| position.index) > last.map(|last| last.index) {
                *position = last;
            }
        };
        cut(&mut self.durable);
        if let Some(flight) = &mut self.in_flight {
            cut(&mut flight.kept);
        }
    }

    /// Sees to it that `done` is called when everything written so far is durable.
    pub(crate) fn wait(&mut self, done: Durable, events: &Sender<Event>) {
        match &mut self.in_flight {
            _ if self.dirty => self.waiting.push(done),
            Some(flight) => flight.waiting.push(done),
            None => send(events, Event::Call(done)),
        }
    }

    /// Starts a flush, if there is something to flush and none is in flight.
    pub(crate) fn start(&mut self, core: &mut Core, events: &Sender<Event>) {
        if !self.dirty || self.in_flight.is_some() || self.calling || self.failed.is_some() {
            return;
        }
        self.dirty = false;
        let watermark = Watermark { end: core.end, last: core.last };
        self.in_flight = Some(Flight { waiting: std::mem::take(&mut self.waiting), watermark, kept: core.last });
        let done = FlushDone { events: Some(events.clone()) };
        if let Err(error) = core.raft.flush(true, Some(done)) {
            tracing::error!(%error, "can't start a flush of the log"); // dropping `done` has told the flusher
        }
    }

    fn fail(&mut self, what: &Arc<str>) -> Vec<Durable> {
        self.failed.get_or_insert_with(|| what.clone());
        let mut waiting = self.in_flight.take().map(|flight| flight.waiting).unwrap_or_default();
        waiting.append(&mut self.waiting);
        waiting
    }

    fn is_at_rest(&self) -> bool {
        self.failed.is_some() || (!self.dirty && self.in_flight.is_none())
    }
}

/// raft-log's callback. One that is dropped uncalled reports a failure: raft-log's worker ends after its first error, and drops what is
/// queued.
#[derive(Debug)]
pub(crate) struct FlushDone {
    events: Option<Sender<Event>>,
}

impl raft_log::Callback for FlushDone {
    fn send(mut self, result: io::Result<()>) {
        if let Some(events) = self.events.take() {
            send(&events, Event::Flushed(result));
        }
    }
}

impl Drop for FlushDone {
    fn drop(&mut self) {
        if let Some(events) = self.events.take() {
            send(&events, Event::Flushed(Err(io::Error::other("an earlier write has failed"))));
        }
    }
}

/// The flusher outlives every sender but the last moments of a log that has failed: then nobody waits any more.
fn send(events: &Sender<Event>, event: Event) {
    let _ = events.send(event);
}

/// The flusher's thread.
pub(crate) fn run(shared: &Shared, events: &Receiver<Event>, mut watermark: WatermarkFile) {
    let mut stopping = false;
    while !(stopping && shared.flushing().is_at_rest()) {
        match events.recv() {
            Ok(Event::Flushed(result)) => flushed(shared, result, &mut watermark),
            Ok(Event::Call(done)) => call(shared, vec![done]),
            Ok(Event::Stop) => {
                stopping = true;
                shared.start_flush();
            }
            Err(_) => return,
        }
    }
    // Those who asked when all was durable, just before the log was closed.
    for event in events.try_iter() {
        if let Event::Call(done) = event {
            call(shared, vec![done]);
        }
    }
    if shared.flushing().failed.is_none()
        && let Err(error) = watermark.sync()
    {
        tracing::warn!(%error, "the log's watermark may be older than the log after a power loss");
    }
}

fn flushed(shared: &Shared, result: io::Result<()>, watermark: &mut WatermarkFile) {
    let Some(reached) = shared.flushing().in_flight.as_ref().map(|flight| flight.watermark) else { return };
    let check = || shared.flush_check.as_ref().map_or(Ok(()), |check| check());
    let outcome = result.and_then(|()| check()).map_err(|error| format!("the log couldn't be made durable: {error}"));
    // The watermark first: an acknowledgement may leave as soon as somebody is called.
    let outcome = outcome.and_then(|()| watermark.write(reached).map_err(|error| error.to_string()));
    if let Err(what) = outcome {
        return fail(shared, &what.into());
    }
    let waiting = {
        let mut flushing = shared.flushing();
        let Some(flight) = flushing.in_flight.take() else { return };
        flushing.durable = flight.kept;
        flushing.durable_end = flight.watermark.end;
        flushing.calling = true;
        flight.waiting
    };
    call(shared, waiting);
    shared.flushing().calling = false;
    shared.start_flush();
}

/// Calls those who waited. One that panics must not leave the others waiting for ever.
fn call(shared: &Shared, waiting: Vec<Durable>) {
    for done in waiting {
        let answer = shared.flushing().check();
        if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
            fail(shared, &"who waited for a flush panicked".into());
        }
    }
}

/// The log has failed: everybody who waits hears of it, and nothing is written any more.
pub(crate) fn fail(shared: &Shared, what: &Arc<str>) {
    tracing::error!(%what, "the log has failed; the node must be started again");
    let waiting = shared.flushing().fail(what);
    for done in waiting {
        let error = StorageError::failed(what.clone());
        if catch_unwind(AssertUnwindSafe(|| done(Err(error)))).is_err() {
            tracing::error!("who waited for a flush panicked");
        }
    }
}
