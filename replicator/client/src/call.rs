//! One call, tried at one node after another until it succeeds, is refused, or its deadline passes.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Status, transport::Channel};

use crate::{
    backoff::Backoff,
    error::Error,
    lane::{Miss, SHARED_BYTES_MAX, Traffic},
    link::Link,
    pool::{NodeRef, Pool, Route},
    verdict::{self, Verdict},
};

/// How long an attempt may take at most, however many took too long before it.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(30);
/// The longest that anything is waited for: clocks can't count much further.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// `limit` from now on, or as far as clocks go.
pub(crate) fn after(limit: Duration) -> Instant {
    Instant::now() + limit.min(LONGEST_WAIT)
}

/// The limits of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// When the call gives up.
    pub(crate) deadline: Instant,
    /// How long the first attempt at a node may take. Doubles after each attempt that took too long, so that a slow
    /// cluster isn't loaded with repeats for ever.
    pub(crate) attempt: Duration,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A node gave the answer that there is none.
    Refused(Error),
    /// The deadline passed.
    Exhausted(Exhausted),
}

/// What was tried until the deadline.
#[derive(Debug)]
pub(crate) struct Exhausted {
    /// Whether any attempt may have taken effect.
    pub(crate) unknown: bool,
    pub(crate) attempts: u32,
    pub(crate) waited: Duration,
    pub(crate) endpoints: String,
    pub(crate) cause: Box<Status>,
}

impl From<Failure> for Error {
    /// For calls that can be repeated without harm.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Exhausted(exhausted) => exhausted.into(),
        }
    }
}

impl From<Exhausted> for Error {
    fn from(exhausted: Exhausted) -> Self {
        let Exhausted { attempts, waited, endpoints, cause, .. } = exhausted;
        Self::Unavailable { waited, attempts, endpoints, cause }
    }
}

/// The attempts of one call, or of one stream that is set up again and again.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    pool: &'a Pool,
    route: Route,
    /// `None`: nothing has failed yet.
    backoff: Option<Backoff>,
    began: Instant,
    /// How long the first attempt may take.
    first: Duration,
    /// How long the next one may take.
    attempt: Duration,
    made: u32,
    unknown: bool,
    cause: Option<Box<Status>>,
    /// The connection that the last attempt used.
    link: Option<Arc<Link>>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(pool: &'a Pool, attempt: Duration) -> Self {
        Self::along(pool, Route::new(pool), attempt)
    }

    /// Attempts at `node` and no other. They don't change where other calls begin.
    pub(crate) fn only(pool: &'a Pool, node: NodeRef, attempt: Duration) -> Self {
        Self::along(pool, Route::only(node), attempt)
    }

    fn along(pool: &'a Pool, route: Route, attempt: Duration) -> Self {
        let began = Instant::now();
        let (first, made, unknown) = (attempt, 0, false);
        Self { pool, route, backoff: None, began, first, attempt, made, unknown, cause: None, link: None }
    }

    /// Runs `operation` once, at the next node, until `deadline` at the latest.
    ///
    /// `Ok(None)` means: failed, noted, worth another attempt after [`Attempts::pause`].
    pub(crate) async fn attempt<T, F, Fut>(
        &mut self,
        deadline: Instant,
        sequence: u64,
        operation: F,
    ) -> Result<Option<(NodeRef, T)>, Error>
    where
        F: FnOnce(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let (limit, whole) = self.limit(deadline);
        let Some((node, link)) = self.connected(limit).await else { return Ok(None) };
        match timeout_at(limit, operation(link.channel())).await {
            Ok(Ok(value)) => {
                self.answered(node);
                Ok(Some((node, value)))
            }
            Ok(Err(status)) => self.judged(node, verdict::of_status(status, sequence)).map(|()| None),
            Err(_) => {
                self.timed_out(node, true, whole);
                Ok(None)
            }
        }
    }

    /// Sends `request` once, over the next node's shared stream, until `deadline` at the latest. As [`Attempts::attempt`].
    async fn attempt_shared<T: Traffic>(
        &mut self,
        deadline: Instant,
        sequence: u64,
        request: &T::Request,
    ) -> Result<Option<T::Answer>, Error> {
        let (limit, whole) = self.limit(deadline);
        let Some((node, link)) = self.connected(limit).await else { return Ok(None) };
        let missed = match T::lane(&link).call(request.clone(), limit).await {
            Ok(answer) => {
                self.answered(node);
                return Ok(Some(answer));
            }
            Err(Miss::Taken) => match timeout_at(limit, T::alone(link.channel(), request.clone())).await {
                Ok(Ok(answer)) => {
                    self.answered(node);
                    return Ok(Some(answer));
                }
                Ok(Err(status)) => Some(verdict::of_status(status, sequence)),
                Err(_) => {
                    self.timed_out(node, true, whole);
                    None
                }
            },
            Err(Miss::TimedOut { sent }) => {
                self.timed_out(node, sent, whole);
                None
            }
            Err(miss) => verdict::of_miss(miss, sequence),
        };
        missed.map_or(Ok(None), |verdict| self.judged(node, verdict).map(|()| None))
    }

    /// When an attempt that begins now has failed, and whether that is all the time that an attempt may take.
    fn limit(&self, deadline: Instant) -> (Instant, bool) {
        let limit = after(self.attempt);
        (deadline.min(limit), limit <= deadline)
    }

    /// The next node, and a connection to it. `None`: there is none, which is noted.
    async fn connected(&mut self, limit: Instant) -> Option<(NodeRef, Arc<Link>)> {
        let node = self.route.next(self.pool);
        self.made += 1;
        self.link = None;
        let link = match self.pool.linked(node) {
            Some(link) => link,
            None => match timeout_at(limit, self.pool.connect(node)).await {
                Ok(Ok(link)) => link,
                Ok(Err(status)) => {
                    self.note(node, false, false, status);
                    return None;
                }
                Err(_) => {
                    let address = self.pool.address(node);
                    self.note(
                        node,
                        false,
                        false,
                        Status::unavailable(format!("{address} does not accept connections")),
                    );
                    return None;
                }
            },
        };
        self.link = Some(Arc::clone(&link));
        Some((node, link))
    }

    fn answered(&self, node: NodeRef) {
        if self.route.fixed().is_none() {
            self.pool.answered(node);
        }
    }

    /// Notes what a node answered. Returns the error if it is final.
    pub(crate) fn judged(&mut self, node: NodeRef, verdict: Verdict) -> Result<(), Error> {
        match verdict {
            Verdict::Final(error) => {
                // A refusal is an answer: the node serves.
                self.answered(node);
                Err(error)
            }
            Verdict::Retry { unknown, reason, primary, cause } => {
                self.note(node, unknown, reason.is_none(), *cause);
                if let Some(address) = primary {
                    self.route.hint(self.pool, node, &address);
                }
                Ok(())
            }
        }
    }

    /// Notes that a node took too long. `sent`: the request may have reached it. `whole`: it had all the time of an attempt,
    /// so its connection isn't trusted any more. A call in a hurry says nothing about the connection, which others share.
    pub(crate) fn timed_out(&mut self, node: NodeRef, sent: bool, whole: bool) {
        self.attempt = self.attempt.saturating_mul(2).min(LONGEST_ATTEMPT.max(self.first));
        let status = Status::deadline_exceeded(format!("{} did not answer in time", self.pool.address(node)));
        self.note(node, sent, whole, status);
    }

    fn note(&mut self, node: NodeRef, unknown: bool, disconnect: bool, cause: Status) {
        tracing::debug!(node = %self.pool.address(node), code = ?cause.code(), cause = cause.message(), "attempt failed");
        self.pool.failed(node, self.link.as_ref().filter(|_| disconnect));
        self.unknown |= unknown;
        self.cause = Some(Box::new(cause));
    }

    /// Waits before the next attempt. False: `deadline` has passed.
    pub(crate) async fn pause(&mut self, deadline: Instant) -> bool {
        let wake = Instant::now() + self.backoff.get_or_insert_with(Backoff::new).pause();
        sleep_until(wake.min(deadline)).await;
        Instant::now() < deadline
    }

    /// Something succeeded: pauses and counts start over.
    pub(crate) fn succeeded(&mut self) {
        self.backoff = None;
        self.attempt = self.first;
        self.began = Instant::now();
        self.made = 0;
    }

    /// How long an attempt may take now.
    pub(crate) fn attempt_limit(&self) -> Duration {
        self.attempt
    }

    /// What was tried so far.
    pub(crate) fn exhausted(&self) -> Exhausted {
        let cause = self.cause.clone().unwrap_or_else(|| Box::new(Status::deadline_exceeded("no time was left")));
        Exhausted {
            unknown: self.unknown,
            attempts: self.made,
            waited: self.began.elapsed(),
            endpoints: match self.route.fixed() {
                Some(node) => self.pool.address(node),
                None => self.pool.addresses().join(","),
            },
            cause,
        }
    }
}

/// Runs `operation` at one node after another. `sequence` is for error messages; 0: none.
pub(crate) async fn call<T, F, Fut>(pool: &Pool, limits: Limits, sequence: u64, mut operation: F) -> Result<T, Failure>
where
    F: FnMut(Channel) -> Fut,
    Fut: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut attempts = Attempts::new(pool, limits.attempt);
    loop {
        match attempts.attempt(limits.deadline, sequence, &mut operation).await {
            Ok(Some((_, response))) => return Ok(response.into_inner()),
            Ok(None) => {}
            Err(error) => return Err(Failure::Refused(error)),
        }
        if !attempts.pause(limits.deadline).await {
            return Err(Failure::Exhausted(attempts.exhausted()));
        }
    }
}

/// Sends `request` over the shared stream of one node after another, or alone if it is large.
pub(crate) async fn call_shared<T: Traffic>(
    pool: &Pool,
    limits: Limits,
    sequence: u64,
    request: &T::Request,
) -> Result<T::Answer, Failure> {
    let mut attempts = Attempts::new(pool, limits.attempt);
    loop {
        let answer = if T::bytes(request) > SHARED_BYTES_MAX {
            let alone = |channel| T::alone(channel, request.clone());
            attempts.attempt(limits.deadline, sequence, alone).await.map(|answer| answer.map(|(_, answer)| answer))
        } else {
            attempts.attempt_shared::<T>(limits.deadline, sequence, request).await
        };
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => return Err(Failure::Refused(error)),
        }
        if !attempts.pause(limits.deadline).await {
            return Err(Failure::Exhausted(attempts.exhausted()));
        }
    }
}
