//! Many requests of one session in flight, over `ExecuteStream`.
//!
//! A driver task owns the session's numbers while the pipeline lives. It sends requests in order, in batches; when the
//! stream breaks, it opens another one elsewhere and sends all requests without an outcome again, in order and under
//! their numbers. The cluster answers those that were executed with their stored outcomes.

mod driver;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use self::driver::Driver;
use crate::{
    call::after,
    client::Client,
    error::{Error, Result},
    sequencer::{Reply, Sequencer},
    session::{Executed, Session},
};

/// A request on its way to the driver.
struct Submission {
    request: Bytes,
    reply: Reply,
    permit: OwnedSemaphorePermit,
}

/// Keeps many requests of a session in flight. Made by [`Session::pipeline`].
///
/// Requests are executed in the order in which [`Pipeline::submit`] takes them, exactly once each. Dropping the pipeline
/// lets the requests in flight finish in the background.
///
/// ```no_run
/// # async fn example(session: replicator_client::Session) -> replicator_client::Result<()> {
/// let pipeline = session.pipeline(64).await?;
/// let mut outcomes = Vec::new();
/// for n in 0..1_000 {
///     outcomes.push(pipeline.submit(format!("add {n}")).await?); // waits while 64 are in flight
/// }
/// for outcome in outcomes {
///     println!("{}", outcome.await?.log_index);
/// }
/// pipeline.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipeline {
    client: Client,
    window: usize,
    permits: Arc<Semaphore>,
    submissions: mpsc::Sender<Submission>,
    failure: Arc<OnceLock<Error>>,
    driver: JoinHandle<()>,
}

impl Pipeline {
    pub(crate) fn start(session: &Session, sequencer: OwnedMutexGuard<Sequencer>, window: usize) -> Self {
        let client = session.client().clone();
        let (submissions, queue) = mpsc::channel(window);
        let failure = Arc::new(OnceLock::new());
        let driver = Driver::new(session, sequencer, queue, window, Arc::clone(&failure));
        let driver = tokio::spawn(driver.run());
        Self { client, window, permits: Arc::new(Semaphore::new(window)), submissions, failure, driver }
    }

    /// Takes `request`, as soon as fewer than the window are in flight. The client's deadline counts from now on for
    /// both: the wait for room, and the outcome.
    ///
    /// # Errors
    /// [`Error::SessionBusy`] if there is no room until the deadline: the request was not sent. The error that ended
    /// the pipeline, if one has.
    pub async fn submit(&self, request: impl Into<Bytes>) -> Result<Outcome> {
        let began = Instant::now();
        let deadline = after(self.client.deadline());
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| Error::SessionBusy { waited: began.elapsed() })?
            .expect("the semaphore is never closed");
        let (sender, receiver) = oneshot::channel();
        let submission = Submission { request: request.into(), reply: Reply { sender, began, deadline }, permit };
        self.submissions.send(submission).await.map_err(|_| self.failure())?;
        Ok(Outcome { receiver, failure: Arc::clone(&self.failure) })
    }

    /// How many requests may be in flight.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window
    }

    /// Waits until no request is in flight, and gives the session back.
    ///
    /// # Errors
    /// The error that ended the pipeline before, if one has. [`Error::PipelineBroken`] if the session has a hole in its
    /// numbers, so that nothing can follow in it.
    pub async fn close(self) -> Result<()> {
        let Self { submissions, failure, driver, .. } = self;
        drop(submissions);
        let _ = driver.await; // fails only if the runtime is shutting down
        failure.get().cloned().map_or(Ok(()), Err)
    }

    fn failure(&self) -> Error {
        self.failure.get().cloned().unwrap_or(Error::PipelineBroken)
    }
}

/// A future of the outcome of one request of a [`Pipeline`]. Dropping it doesn't withdraw the request.
#[derive(Debug)]
#[must_use = "the request may fail"]
pub struct Outcome {
    receiver: oneshot::Receiver<Result<Executed>>,
    failure: Arc<OnceLock<Error>>,
}

impl Future for Outcome {
    type Output = Result<Executed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = ready!(Pin::new(&mut self.receiver).poll(context));
        // The driver ended with the request in its queue, so it was never sent.
        Poll::Ready(received.unwrap_or_else(|_| Err(self.failure.get().cloned().unwrap_or(Error::PipelineBroken))))
    }
}
