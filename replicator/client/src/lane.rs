//! One stream to a node that all calls of a client share: requests that are ready at the same moment travel in one
//! message, and so do their results. A unary call costs ten times as much.
//!
//! A call puts its request into the [`Ledger`] and waits. The transport's task takes requests from there as fast as the
//! node reads them ([`stream::Outgoing`]); one task for each stream hands out the results ([`stream::run`]), and looks
//! every [`stream::TICK`] for calls whose time is up. There is no task and no timer for a call.
//!
//! *Invariant:* a call gets a result that the node gave for its own request. Of calls with one key, one at a time is on
//! a stream, and the key of one that was given up stays taken until the node has answered it.

mod ledger;
#[cfg(test)]
mod ledger_tests;
mod stream;
mod traffic;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use replicator_proto::replicator::v1 as pb;
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::Instant,
};
use tonic::{Status, transport::Channel};

use self::ledger::{Ledger, Ready, Ticket};
pub(crate) use self::traffic::{Executions, Queries, Traffic};

/// Larger requests travel alone, in a unary call: others don't wait behind them, nor fail with them.
pub(crate) const SHARED_BYTES_MAX: usize = 256 << 10;

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The node says why.
    Refused(Box<pb::Error>),
    /// The node's answer makes no sense.
    Nonsense,
    /// The stream ended.
    Ended {
        /// How.
        status: Status,
        /// Whether it had begun: before that, the status speaks for each call.
        begun: bool,
        /// Whether the request may have reached the node.
        sent: bool,
    },
    /// The attempt's time is up.
    TimedOut {
        /// Whether the request may have reached the node.
        sent: bool,
    },
    /// Another call under the same key is on the stream.
    Taken,
}

/// How a stream ended.
#[derive(Debug, Clone)]
struct End {
    status: Status,
    begun: bool,
}

/// A shared stream. Closed when dropped.
pub(crate) struct Lane<T: Traffic> {
    shared: Arc<Shared<T>>,
    reader: AbortHandle,
}

struct Shared<T: Traffic> {
    ledger: Mutex<Ledger<T>>,
    /// Tells the sweeper that calls wait again.
    waited_for: Notify,
    usable: AtomicBool,
}

impl<T: Traffic> fmt::Debug for Lane<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("usable", &self.is_usable()).finish_non_exhaustive()
    }
}

impl<T: Traffic> Drop for Lane<T> {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.close(End { status: Status::cancelled("the stream is no longer used"), begun: true });
    }
}

impl<T: Traffic> Lane<T> {
    /// Opens the stream in the background. Requests can be given at once.
    pub(crate) fn open(channel: Channel) -> Self {
        let shared = Arc::new(Shared::new());
        let reader = tokio::spawn(stream::run(Arc::clone(&shared), channel)).abort_handle();
        Self { shared, reader }
    }

    /// Whether new calls may use it.
    pub(crate) fn is_usable(&self) -> bool {
        self.shared.usable.load(Ordering::Acquire)
    }

    /// Sends `request` and waits for its result until `limit`. Can be dropped; the node's result is then thrown away.
    pub(crate) async fn call(&self, request: T::Request, limit: Instant) -> Result<T::Answer, Miss> {
        let (reply, result) = oneshot::channel();
        let submitted = self.shared.ledger().submit(request, limit, reply)?;
        if let Some(writer) = submitted.writer {
            writer.wake();
        }
        if submitted.first {
            self.shared.waited_for.notify_one();
        }
        let mut waiting = Waiting { shared: &self.shared, ticket: Some(submitted.ticket) };
        let result = result.await;
        waiting.ticket = None;
        result.expect("the ledger answers every call before it forgets it")
    }
}

/// Takes a call out of the ledger if it is dropped before its result.
struct Waiting<'a, T: Traffic> {
    shared: &'a Shared<T>,
    ticket: Option<Ticket<T::Key>>,
}

impl<T: Traffic> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && !self.shared.ledger().give_up(ticket)
        {
            self.shared.usable.store(false, Ordering::Release);
        }
    }
}

impl<T: Traffic> Shared<T> {
    fn new() -> Self {
        let (ledger, waited_for) = (Mutex::new(Ledger::new()), Notify::new());
        Self { ledger, waited_for, usable: AtomicBool::new(true) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<T>> {
        self.ledger.lock().expect("no code panics while it holds the ledger")
    }

    /// Takes in a message from the node: puts the results that are waited for into `ready`.
    fn settle(&self, reply: T::Reply, ready: &mut Vec<Ready<T>>) {
        let mut ledger = self.ledger();
        let first = ledger.first();
        ledger.settle(T::results(reply, first), ready);
    }

    /// Tells all who wait that the stream has ended. The first end counts.
    fn close(&self, end: End) {
        self.usable.store(false, Ordering::Release);
        let mut ledger = self.ledger();
        let missed = ledger.close(end);
        let writer = ledger.take_writer();
        drop(ledger);
        missed.into_iter().for_each(|(reply, miss)| {
            let _ = reply.send(Err(miss)); // fails only if nobody waits
        });
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
