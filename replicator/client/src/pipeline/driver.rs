//! The task behind a pipeline.

use std::{
    mem,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use replicator_proto::replicator::v1::{self as pb, execute_result};
use replicator_types::{Lineage, Sequence};
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    time::{Duration, Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Submission;
use crate::{
    call::{Attempts, after},
    client::{Client, service},
    error::{Error, Result},
    pool::NodeRef,
    sequencer::{Reply, Sequencer, Step},
    session::{Executed, Session, note_log_index},
    verdict::{self, Verdict},
};

/// The most requests in one message.
const BATCH_REQUESTS_MAX: usize = 64;
/// A message is closed when its requests have reached this size, so that it stays below a node's limit.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// How long a pause between streams lasts at most while nobody waits.
const FAR: Duration = Duration::from_secs(3600);

/// How a stream ended.
enum End {
    /// Nothing is in flight and nothing will come.
    Done,
    /// Open another one.
    Again,
    /// The pipeline can't go on.
    Failed(Error),
}

pub(super) struct Driver {
    client: Client,
    session_id: Bytes,
    lineage: Lineage,
    sequencer: OwnedMutexGuard<Sequencer>,
    queue: mpsc::Receiver<Submission>,
    /// Whether more may be submitted.
    open: bool,
    window: usize,
    failure: Arc<OnceLock<Error>>,
}

/// One ExecuteStream, our side of it.
struct Outbound {
    messages: mpsc::Sender<pb::ExecuteStreamRequest>,
    /// The first sequence sent on it. What precedes it has its outcome, so a gap there is a real one.
    first: u64,
}

impl Driver {
    pub(super) fn new(
        session: &Session,
        sequencer: OwnedMutexGuard<Sequencer>,
        queue: mpsc::Receiver<Submission>,
        window: usize,
        failure: Arc<OnceLock<Error>>,
    ) -> Self {
        Self {
            client: session.client().clone(),
            session_id: session.id_bytes(),
            lineage: session.lineage(),
            sequencer,
            queue,
            open: true,
            window,
            failure,
        }
    }

    pub(super) async fn run(mut self) {
        self.serve().await;
        if let Err(error) = self.sequencer.check() {
            let _ = self.failure.set(error); // the first error stays
        }
    }

    /// Runs one stream after the other.
    async fn serve(&mut self) {
        let client = self.client.clone();
        let mut attempts = Attempts::new(client.pool(), client.attempt_timeout());
        loop {
            if self.sequencer.is_settled() {
                let mut batch = Vec::new();
                self.receive(&mut batch).await;
                self.accept(batch);
            }
            if self.is_done() {
                return;
            }
            match self.stream(&mut attempts).await {
                End::Done => return,
                End::Failed(error) => {
                    let _ = self.failure.set(error.clone()); // the first error stays
                    self.sequencer.abandon(&error);
                    return;
                }
                End::Again => {}
            }
            self.expire(&attempts);
            attempts.pause(self.sequencer.next_deadline().unwrap_or_else(|| after(FAR))).await;
            self.expire(&attempts);
        }
    }

    /// Waits for submissions. None: nothing will come any more.
    async fn receive(&mut self, batch: &mut Vec<Submission>) {
        if self.queue.recv_many(batch, BATCH_REQUESTS_MAX).await == 0 {
            self.open = false;
        }
    }

    /// Numbers submissions.
    fn accept(&mut self, batch: Vec<Submission>) {
        for Submission { request, reply, permit } in batch {
            match self.sequencer.check() {
                Ok(()) => {
                    self.sequencer.push(request, Some(reply), Some(permit));
                }
                Err(error) => {
                    let _ = reply.sender.send(Err(error)); // fails only if nobody waits
                }
            }
        }
    }

    /// Nobody waits any more. What is then still unsettled stays with the session.
    fn is_done(&self) -> bool {
        !self.open && self.sequencer.next_deadline().is_none()
    }

    /// Runs one stream until it ends.
    async fn stream(&mut self, attempts: &mut Attempts<'_>) -> End {
        let Some((first, _)) = self.sequencer.to_send().next() else {
            return if self.open { End::Again } else { End::Done };
        };
        // Every message carries at least one request in flight, so the channel is never full.
        let (messages, outgoing) = mpsc::channel(self.window + self.sequencer.to_send().count());
        let outbound = Outbound { messages, first };
        self.send_from(&outbound, first);

        let deadline = self.sequencer.next_deadline().unwrap_or_else(|| after(FAR));
        let opened = attempts
            .attempt(deadline, 0, |channel| async move {
                service(channel).execute_stream(ReceiverStream::new(outgoing)).await
            })
            .await;
        match opened {
            Ok(Some((node, response))) => self.exchange(attempts, node, &outbound, response.into_inner()).await,
            Ok(None) => End::Again,
            Err(error) => self.fail(error),
        }
    }

    async fn exchange(
        &mut self,
        attempts: &mut Attempts<'_>,
        node: NodeRef,
        outbound: &Outbound,
        mut incoming: Streaming<pb::ExecuteStreamResponse>,
    ) -> End {
        let mut stalled = after(attempts.attempt_limit());
        loop {
            if self.is_done() {
                return End::Done;
            }
            let waiting = !self.sequencer.is_settled();
            let expiry = self.sequencer.next_deadline();
            let mut batch = Vec::new();
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => {
                        attempts.succeeded();
                        stalled = after(attempts.attempt_limit());
                        if let Some(end) = self.take_results(attempts, node, outbound, message.results) {
                            return end;
                        }
                    }
                    Ok(None) => {
                        let verdict = verdict::of_status(Status::unavailable("the node ended the stream"), 0);
                        return attempts.judged(node, verdict).map_or_else(|error| self.fail(error), |()| End::Again);
                    }
                    Err(status) => {
                        let verdict = verdict::of_status(status, 0);
                        return attempts.judged(node, verdict).map_or_else(|error| self.fail(error), |()| End::Again);
                    }
                },
                count = self.queue.recv_many(&mut batch, BATCH_REQUESTS_MAX), if self.open => {
                    self.open = count > 0;
                    if !waiting {
                        stalled = after(attempts.attempt_limit());
                    }
                    let from = self.sequencer.next();
                    self.accept(batch);
                    if !self.send_from(outbound, from) {
                        let verdict = verdict::of_status(Status::unavailable("the node closed the stream"), 0);
                        return attempts.judged(node, verdict).map_or_else(|error| self.fail(error), |()| End::Again);
                    }
                }
                () = sleep_until(stalled), if waiting => {
                    attempts.timed_out(node, true, true);
                    return End::Again;
                }
                () = sleep_until(expiry.unwrap_or(stalled)), if expiry.is_some() => self.expire(attempts),
            }
        }
    }

    /// Takes in a message's results. An end: the stream is of no more use.
    fn take_results(
        &mut self,
        attempts: &mut Attempts<'_>,
        node: NodeRef,
        outbound: &Outbound,
        results: Vec<pb::ExecuteResult>,
    ) -> Option<End> {
        let mut end = None;
        for pb::ExecuteResult { sequence, result, .. } in results {
            let result: Result<Executed> = match result {
                Some(execute_result::Result::Response(response)) => Ok(Executed::new(sequence, response)),
                Some(execute_result::Result::Error(error)) => match verdict::of_result(error, sequence) {
                    Verdict::Final(error) => Err(error),
                    retry @ Verdict::Retry { .. } => {
                        // It stays unsettled, and those after it can't be executed on this stream.
                        end = Some(attempts.judged(node, retry).map_or_else(End::Failed, |()| End::Again));
                        continue;
                    }
                },
                None => Err(Error::Protocol { message: "a result is neither a response nor an error".into() }),
            };
            note_log_index(&self.client, self.lineage, &result);
            match self.sequencer.settle(sequence, result, sequence == outbound.first) {
                Step::Settled(_) => {}
                Step::Resend => end = end.or(Some(End::Again)),
                Step::Failed(error) => return Some(End::Failed(error)),
            }
        }
        end
    }

    /// Sends what is unsettled from `from` on, in batches. False: the stream is closed.
    fn send_from(&self, outbound: &Outbound, from: u64) -> bool {
        let acked_below = self.sequencer.floor();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut sent = true;
        let mut flush = |requests: Vec<pb::ExecuteRequest>| {
            sent &= outbound.messages.try_send(pb::ExecuteStreamRequest { requests }).is_ok();
        };
        for (sequence, request) in self.sequencer.to_send().filter(|&(sequence, _)| sequence >= from) {
            if batch.len() == BATCH_REQUESTS_MAX || (bytes + request.len() > BATCH_BYTES_MAX && !batch.is_empty()) {
                flush(mem::take(&mut batch));
                bytes = 0;
            }
            bytes += request.len();
            let session_id = self.session_id.clone();
            batch.push(pb::ExecuteRequest { session_id, sequence, acked_below, request: request.clone() });
        }
        if !batch.is_empty() {
            flush(batch);
        }
        sent
    }

    /// Tells those whose deadline has passed. Their requests stay in flight, and keep their places in the window.
    fn expire(&mut self, attempts: &Attempts<'_>) {
        let now = Instant::now();
        for (sequence, Reply { sender, began, .. }) in self.sequencer.expired(now) {
            let (waited, cause) = (now - began, attempts.exhausted().cause);
            let _ = sender.send(Err(Error::OutcomeUnknown { sequence: Sequence(sequence), waited, cause })); // fails only if nobody waits
        }
    }

    /// A final refusal of the whole stream: what it says holds for the first request.
    fn fail(&mut self, error: Error) -> End {
        let first = self.sequencer.to_send().next().map(|(sequence, _)| sequence);
        if let (Some(sequence), Error::SessionExpired { .. } | Error::LineageMismatch { .. }) = (first, &error) {
            self.sequencer.settle(sequence, Err(error.clone()), true);
        }
        End::Failed(error)
    }
}
