//! The two ends of a shared stream: requests out, results in.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use futures::Stream;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Status, transport::Channel};

use super::{End, Shared, Traffic};

/// How often calls are looked through for those whose time is up.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// How many ticks without a call end the looking. The next call then wakes it up again, which costs more than some ticks.
const IDLE_TICKS_MAX: u32 = 200;

/// The requests, in messages. The transport polls it when the node has room for more.
pub(super) struct Outgoing<T: Traffic> {
    shared: Arc<Shared<T>>,
    /// Others have had their turn since this was woken.
    yielded: bool,
}

impl<T: Traffic> Outgoing<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, yielded: false }
    }
}

impl<T: Traffic> Stream for Outgoing<T> {
    type Item = T::Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let batch = {
            let mut ledger = this.shared.ledger();
            if ledger.has_ended() {
                return Poll::Ready(None);
            }
            if !ledger.has_requests() {
                this.yielded = false;
                ledger.wait_for_requests(context.waker());
                return Poll::Pending;
            }
            // A woken task runs at once, before the others that were woken with its waker. Let them run first: the
            // requests that they bring share the message. A call that is alone never waits.
            if !this.yielded && ledger.is_busy() {
                this.yielded = true;
                drop(ledger);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ledger.take()
        };
        Poll::Ready(Some(T::message(batch)))
    }
}

/// Closes the stream when its task ends, also if the runtime or a panic ends it.
struct Closing<T: Traffic> {
    shared: Arc<Shared<T>>,
    begun: bool,
}

impl<T: Traffic> Drop for Closing<T> {
    fn drop(&mut self) {
        let status = Status::cancelled("the stream's task has ended");
        self.shared.close(End { status, begun: self.begun });
    }
}

/// Runs a stream until it ends.
pub(super) async fn run<T: Traffic>(shared: Arc<Shared<T>>, channel: Channel) {
    let mut closing = Closing { shared: Arc::clone(&shared), begun: false };
    let status = tokio::select! {
        status = read(&shared, channel, &mut closing.begun) => status,
        never = sweep(&shared) => match never {},
    };
    shared.close(End { status, begun: closing.begun });
}

/// Opens the stream and hands out results until it ends.
async fn read<T: Traffic>(shared: &Arc<Shared<T>>, channel: Channel, begun: &mut bool) -> Status {
    let outgoing = Outgoing::new(Arc::clone(shared));
    let mut incoming = match T::open(channel, outgoing).await {
        Ok(opened) => opened.into_inner(),
        Err(status) => return status,
    };
    *begun = true;
    let mut ready = Vec::new();
    loop {
        match incoming.message().await {
            Ok(Some(reply)) => {
                shared.settle(reply, &mut ready);
                for (reply, result) in ready.drain(..) {
                    let _ = reply.send(result); // fails only if nobody waits
                }
                // However fast results come, calls whose time is up are looked for too.
                tokio::task::consume_budget().await;
            }
            Ok(None) => return Status::unavailable("the node ended the stream"),
            Err(status) => return status,
        }
    }
}

/// Ends calls whose time is up.
async fn sweep<T: Traffic>(shared: &Shared<T>) -> Infallible {
    let mut idle = IDLE_TICKS_MAX;
    loop {
        if idle >= IDLE_TICKS_MAX && shared.ledger().stop_sweeping() {
            shared.waited_for.notified().await;
        }
        sleep(TICK).await;
        let mut ledger = shared.ledger();
        let missed = ledger.expired(Instant::now());
        let is_littered = ledger.is_littered();
        drop(ledger);
        if is_littered {
            shared.usable.store(false, Ordering::Release);
        }
        match missed {
            Some(missed) => {
                idle = 0;
                for (reply, miss) in missed {
                    let _ = reply.send(Err(miss)); // fails only if nobody waits
                }
            }
            None => idle = idle.saturating_add(1),
        }
    }
}
