//! A session: requests numbered, executed exactly once and in order.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use replicator_proto::replicator::v1 as pb;
use replicator_types::{Digest, Epoch, Lineage, LogIndex, Sequence, SessionId};
use tokio::{
    sync::{Mutex, MutexGuard, OwnedMutexGuard},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    call::{Failure, Limits, after, call, call_shared},
    client::{Client, service},
    error::{Error, Result},
    lane::Executions,
    pipeline::Pipeline,
    sequencer::{Sequencer, Step},
};

/// The outcome of a request: the first execution's, however often it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// The request's number in its session.
    pub sequence: Sequence,
    /// What the module replied.
    pub response: Bytes,
    /// Where in the log the request was executed.
    pub log_index: LogIndex,
    /// The term or epoch of that log entry.
    pub epoch: Epoch,
    /// The name of the node that answered.
    pub node_id: String,
    /// The replica's running digest after that entry: equal on every replica.
    pub state_digest: Digest,
}

impl Executed {
    pub(crate) fn new(sequence: u64, response: pb::ExecuteResponse) -> Self {
        Self {
            sequence: Sequence(sequence),
            response: response.response,
            log_index: LogIndex(response.log_index),
            epoch: Epoch(response.epoch),
            node_id: response.node_id,
            state_digest: Digest(response.state_digest),
        }
    }
}

/// What a session needs to go on in another process. Its id is a secret: who knows it can act in the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSession {
    /// The session.
    pub id: SessionId,
    /// The cluster's history that it belongs to.
    pub lineage: Lineage,
    /// Every number below this one has its outcome.
    pub next_sequence: Sequence,
    /// The granted time to live after the last request, in log time.
    pub ttl: Duration,
    /// How many requests may be in flight.
    pub window: u32,
    /// The greatest log index seen.
    pub log_index: LogIndex,
    /// The longest request that the cluster takes, in bytes; 0: not known.
    pub request_bytes_max: u64,
}

/// A session with the cluster. Its requests are executed exactly once each, in the order in which they are sent.
///
/// Dropping it doesn't close it: it expires after its time to live, or goes on from [`Session::saved`].
///
/// ```no_run
/// # async fn example(client: replicator_client::Client) -> replicator_client::Result<()> {
/// use replicator_client::{Error, Session};
///
/// let session = client.open_session(None).await?;
/// match session.execute("transfer 10 from a to b").await {
///     Ok(done) => println!("done at log index {}", done.log_index),
///     // It may have happened. Ask again under the same number, as long as it takes:
///     Err(Error::OutcomeUnknown { .. }) => println!("{:?}", session.resolve().await?),
///     Err(error) => return Err(error),
/// }
/// let saved = session.saved(); // to a file, then in another process:
/// let session = Session::resume(&client, saved);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    client: Client,
    id: SessionId,
    id_bytes: Bytes,
    lineage: Lineage,
    ttl: Duration,
    window: u32,
    request_bytes_max: u64,
    sequencer: Arc<Mutex<Sequencer>>,
    settled_below: Arc<AtomicU64>,
}

impl Session {
    /// Goes on with a session where [`Session::saved`] left it. Sends nothing.
    ///
    /// If the process that saved it was killed after a request and before it saved again, the next request meets the
    /// number in use: it gets [`Error::SequenceReused`] (the lost request did take effect), or, if it is the very same
    /// request, the outcome of the lost one.
    #[must_use]
    pub fn resume(client: &Client, saved: SavedSession) -> Self {
        let SavedSession { id, lineage, next_sequence, ttl, window, log_index, request_bytes_max } = saved;
        let id_bytes = Bytes::copy_from_slice(&id.0);
        client.saw(lineage, log_index);
        let settled_below = Arc::new(AtomicU64::new(0));
        let sequencer = Arc::new(Mutex::new(Sequencer::new(next_sequence, Arc::clone(&settled_below))));
        let client = client.clone();
        Self { client, id, id_bytes, lineage, ttl, window, request_bytes_max, sequencer, settled_below }
    }

    /// What another process needs to go on. Save it after each outcome.
    #[must_use]
    pub fn saved(&self) -> SavedSession {
        SavedSession {
            id: self.id,
            lineage: self.lineage,
            next_sequence: self.next_sequence(),
            ttl: self.ttl,
            window: self.window,
            log_index: self.client.log_index_seen(),
            request_bytes_max: self.request_bytes_max,
        }
    }

    /// Executes `request`, trying for as long as the client's deadline.
    ///
    /// Concurrent calls run one after the other; for many in flight use [`Session::pipeline`]. A call that is dropped
    /// before it returns leaves an unknown outcome behind, which the next call resolves first.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] at the deadline, if the request may have reached a node; then the next call sends
    /// it again, under its number, before anything else. [`Error::Unavailable`] if it hasn't.
    /// [`Error::ModuleTrapped`], [`Error::SessionExpired`], [`Error::RequestTooLarge`], and the other refusals.
    pub async fn execute(&self, request: impl Into<Bytes>) -> Result<Executed> {
        self.execute_within(request, self.client.deadline()).await
    }

    /// [`Session::execute`] with a deadline of its own.
    ///
    /// # Errors
    /// As [`Session::execute`].
    pub async fn execute_within(&self, request: impl Into<Bytes>, limit: Duration) -> Result<Executed> {
        let request = request.into();
        let (mut sequencer, limits) = self.lock(limit).await?;
        self.resolve_all(&mut sequencer, limits, |_, _| {}).await?;
        sequencer.check()?;
        let sequence = sequencer.push(request.clone(), None, None);
        self.settle(&mut sequencer, sequence, request, limits, true).await
    }

    /// Finds out what became of requests whose outcome is unknown, by sending them again under their numbers.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if that fails again until the deadline.
    pub async fn resolve(&self) -> Result<Vec<(Sequence, Result<Executed>)>> {
        let (mut sequencer, limits) = self.lock(self.client.deadline()).await?;
        let mut outcomes = Vec::new();
        self.resolve_each(&mut sequencer, limits, |sequence, outcome| outcomes.push((Sequence(sequence), outcome)))
            .await?;
        Ok(outcomes)
    }

    /// Starts to keep up to `window` requests in flight, at most as many as the cluster granted. The session's other
    /// requests wait until the pipeline is closed.
    ///
    /// # Errors
    /// [`Error::SessionBusy`] if the session is in use until the deadline.
    pub async fn pipeline(&self, window: usize) -> Result<Pipeline> {
        let began = Instant::now();
        let lock = Arc::clone(&self.sequencer).lock_owned();
        let sequencer: OwnedMutexGuard<Sequencer> = timeout_at(after(self.client.deadline()), lock)
            .await
            .map_err(|_| Error::SessionBusy { waited: began.elapsed() })?;
        sequencer.check()?;
        Ok(Pipeline::start(self, sequencer, window.clamp(1, self.window.max(1) as usize)))
    }

    /// Stops the session from expiring for another time to live.
    ///
    /// # Errors
    /// [`Error::SessionExpired`]; [`Error::Unavailable`] at the deadline.
    pub async fn keep_alive(&self) -> Result<LogIndex> {
        let request = pb::KeepAliveRequest { session_id: self.id_bytes() };
        let response = call(self.client.pool(), self.client.limits(), 0, async |channel| {
            service(channel).keep_alive(request.clone()).await
        })
        .await?;
        Ok(self.saw(response.log_index))
    }

    /// Keeps the session alive in the background, with three requests in each time to live, until the returned guard is
    /// dropped or the session is gone.
    #[must_use = "the session is kept alive only while this is held"]
    pub fn keep_alive_in_background(&self) -> KeepAlive {
        let period = (self.ttl / 3).max(Duration::from_millis(100));
        let session = Self::resume(&self.client, self.saved()); // keep-alives have no numbers
        KeepAlive(tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                match session.keep_alive().await {
                    Err(error @ (Error::SessionExpired { .. } | Error::LineageMismatch { .. })) => {
                        tracing::warn!(%error, "the session can't be kept alive");
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "a keep-alive failed; the next one may not"),
                    Ok(_) => {}
                }
            }
        }))
    }

    /// Ends the session. The cluster forgets its outcomes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] at the deadline; the session then expires by itself.
    pub async fn close(&self) -> Result<LogIndex> {
        let request = pb::CloseSessionRequest { session_id: self.id_bytes() };
        let response = call(self.client.pool(), self.client.limits(), 0, async |channel| {
            service(channel).close_session(request.clone()).await
        })
        .await?;
        Ok(self.saw(response.log_index))
    }

    /// The session's id: a secret.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The cluster's history that the session belongs to.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The granted time to live.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How many requests may be in flight.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.window
    }

    /// The longest request that the cluster takes, in bytes. 0: not known, because the session was saved by an earlier
    /// version of this library.
    #[must_use]
    pub fn request_bytes_max(&self) -> u64 {
        self.request_bytes_max
    }

    /// The first number without an outcome. Can be read while requests are under way.
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        Sequence(self.settled_below.load(Ordering::Acquire))
    }

    /// The client that the session uses.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn id_bytes(&self) -> Bytes {
        self.id_bytes.clone()
    }

    fn saw(&self, log_index: u64) -> LogIndex {
        self.client.saw(self.lineage, LogIndex(log_index));
        LogIndex(log_index)
    }

    /// Takes the session for one request, as soon as it is free.
    pub(crate) async fn lock(&self, limit: Duration) -> Result<(MutexGuard<'_, Sequencer>, Limits)> {
        let began = Instant::now();
        let limits = Limits { deadline: after(limit), attempt: self.client.attempt_timeout() };
        let guard = timeout_at(limits.deadline, self.sequencer.lock())
            .await
            .map_err(|_| Error::SessionBusy { waited: began.elapsed() })?;
        Ok((guard, limits))
    }

    /// Resolves all earlier requests on behalf of a new one, which is not sent if that fails.
    pub(crate) async fn resolve_all(
        &self,
        sequencer: &mut Sequencer,
        limits: Limits,
        each: impl FnMut(u64, Result<Executed>),
    ) -> Result<()> {
        let endpoints = || self.client.endpoints().join(",");
        self.resolve_each(sequencer, limits, each).await.map_err(|error| match error {
            Error::OutcomeUnknown { waited, cause, .. } => {
                Error::Unavailable { waited, attempts: 1, endpoints: endpoints(), cause }
            }
            other => other,
        })
    }

    async fn resolve_each(
        &self,
        sequencer: &mut Sequencer,
        limits: Limits,
        mut each: impl FnMut(u64, Result<Executed>),
    ) -> Result<()> {
        loop {
            let Some((sequence, request)) = sequencer.to_send().next().map(|(s, request)| (s, request.clone())) else {
                return Ok(());
            };
            sequencer.disown(sequence);
            let outcome = self.settle(sequencer, sequence, request, limits, false).await;
            if sequencer.to_send().next().is_some_and(|(unsettled, _)| unsettled == sequence) {
                return outcome.map(|_| ()); // still without an outcome
            }
            if let Err(error @ (Error::SessionExpired { .. } | Error::LineageMismatch { .. })) = outcome {
                return Err(error);
            }
            tracing::debug!(sequence, ok = outcome.is_ok(), "an unknown outcome is known now");
            each(sequence, outcome);
        }
    }

    /// The request under its number.
    pub(crate) fn message(&self, sequencer: &Sequencer, sequence: u64, request: Bytes) -> pb::ExecuteRequest {
        pb::ExecuteRequest { session_id: self.id_bytes(), sequence, acked_below: sequencer.floor(), request }
    }

    /// Sends the first unsettled request until it has its outcome. `fresh`: it was never sent before.
    async fn settle(
        &self,
        sequencer: &mut Sequencer,
        sequence: u64,
        request: Bytes,
        limits: Limits,
        fresh: bool,
    ) -> Result<Executed> {
        let message = self.message(sequencer, sequence, request);
        let pool = self.client.pool();
        let answer = if self.client.has_streams() {
            call_shared::<Executions>(pool, limits, sequence, &message).await
        } else {
            let message = &message;
            let execute = async |channel| service(channel).execute(message.clone()).await;
            pin!(call(pool, limits, sequence, execute)).await
        };
        let result = match answer {
            Ok(response) => Ok(Executed::new(sequence, response)),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Exhausted(exhausted)) if fresh && !exhausted.unknown => {
                sequencer.withdraw(sequence);
                return Err(exhausted.into());
            }
            Err(Failure::Exhausted(exhausted)) => {
                let (waited, cause) = (exhausted.waited, exhausted.cause);
                return Err(Error::OutcomeUnknown { sequence: Sequence(sequence), waited, cause });
            }
        };
        note_log_index(&self.client, self.lineage, &result);
        settled(sequencer, sequence, result)
    }
}

/// Settles the only request under way with its outcome, and returns that.
pub(crate) fn settled(sequencer: &mut Sequencer, sequence: u64, result: Result<Executed>) -> Result<Executed> {
    match sequencer.settle(sequence, result, true) {
        Step::Settled(Some(result)) => result,
        Step::Failed(error) => Err(error),
        Step::Settled(None) | Step::Resend => {
            unreachable!("request {sequence} was sent alone, and nobody else waits for it")
        }
    }
}

/// Notes the log index of an outcome, so that later reads see it.
pub(crate) fn note_log_index(client: &Client, lineage: Lineage, result: &Result<Executed>) {
    match result {
        Ok(done) => client.saw(lineage, done.log_index),
        Err(Error::ModuleTrapped { log_index, .. }) => client.saw(lineage, *log_index),
        Err(_) => {}
    }
}

/// Keeps a session alive until it is dropped.
#[derive(Debug)]
pub struct KeepAlive(JoinHandle<()>);

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Calls must be usable from spawned tasks.
#[expect(dead_code, reason = "checked by the compiler, never called")]
fn calls_are_send(session: &Session) -> impl Future<Output = Result<Executed>> + Send {
    session.execute(Bytes::new())
}
