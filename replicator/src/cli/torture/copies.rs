//! A writer that sends each request to all nodes at once, under one session and number, by the bare calls: it must be executed once, and
//! all answers must be that execution's. Whoever answers late is not waited for, so old copies reach the nodes behind newer requests.

use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
};
use replicator_client::{Client, ErrorReason, proto as pb};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    account::Ack,
    world::World,
    writers::{DEADLINE, SESSION_TTL, ack, request},
};

/// How long a node may take to answer.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long the other nodes' answers are waited for after the first.
const GRACE: Duration = Duration::from_millis(50);
const PACE: Duration = Duration::from_millis(5);
/// Between two tries while no node answers.
const AGAIN: Duration = Duration::from_millis(20);

pub(super) async fn write(world: &World, writer: usize) -> anyhow::Result<()> {
    let client = world.client().build()?;
    let copier = Copier { world, client, writer };
    while !world.is_stopped() {
        let session_id = copier.open().await?;
        let mut sequence = 0;
        let expired = loop {
            if world.is_stopped() {
                break false;
            }
            sequence += 1;
            let number = world.account().sent(writer);
            let message = pb::ExecuteRequest {
                session_id: session_id.clone(),
                sequence,
                acked_below: sequence,
                request: request(writer, number).into(),
            };
            if !copier.execute(number, &message).await? {
                break true;
            }
            sleep(PACE).await;
        };
        if !expired {
            let request = pb::CloseSessionRequest { session_id };
            let close = |mut node: Node| {
                let request = request.clone();
                async move { node.close_session(request).await }.boxed()
            };
            copier.somewhere(close).await?;
        }
    }
    Ok(())
}

struct Copier<'a> {
    world: &'a World,
    client: Client,
    writer: usize,
}

type Calling<T> = BoxFuture<'static, Result<tonic::Response<T>, Status>>;
type Node = pb::replicator_service_client::ReplicatorServiceClient<tonic::transport::Channel>;

impl Copier<'_> {
    async fn open(&self) -> anyhow::Result<Bytes> {
        let ttl_ms = u64::try_from(SESSION_TTL.as_millis())?;
        let open =
            move |mut node: Node| async move { node.open_session(pb::OpenSessionRequest { ttl_ms }).await }.boxed();
        Ok(self.somewhere(open).await?.session_id)
    }

    /// Calls one node after the other, until one answers.
    async fn somewhere<T>(&self, call: impl Fn(Node) -> Calling<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        for turn in self.writer.. {
            let endpoint = &self.world.endpoints[turn % self.world.endpoints.len()];
            let ask = async { call(self.client.node(endpoint).await.map_err(unreachable)?).await };
            match timeout(ATTEMPT, ask).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if !is_passing(&status) => bail!("{endpoint}: {status}"),
                _ if began.elapsed() > DEADLINE => bail!("no node answered within {} s", DEADLINE.as_secs()),
                _ => sleep(AGAIN).await,
            }
        }
        bail!("no turn is left")
    }

    /// Sends it to all nodes until one has answered, and compares what the others say. False: the session has gone.
    async fn execute(&self, number: u64, message: &pb::ExecuteRequest) -> anyhow::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            let mut copies: FuturesUnordered<_> =
                self.world.endpoints.iter().map(|endpoint| self.ask(endpoint, message.clone())).collect();
            let mut first: Option<Instant> = None;
            loop {
                let answered = match first {
                    None => copies.next().await,
                    Some(at) => tokio::select! {
                        answered = copies.next() => answered,
                        () = sleep_until(at + GRACE) => None,
                    },
                };
                match answered {
                    None => break,
                    Some(Ok(ack)) => {
                        self.world.account().acknowledged(self.writer, number, ack);
                        first.get_or_insert_with(Instant::now);
                    }
                    Some(Err(Refusal::Passing)) => {}
                    Some(Err(Refusal::NoRoom)) => self.world.account().no_room(),
                    Some(Err(Refusal::SessionExpired)) => {
                        self.world.account().expired(self.writer, number);
                        return Ok(false);
                    }
                    Some(Err(Refusal::Wrong(error))) => return Err(error.context(format!("number {number}"))),
                }
            }
            if first.is_some() {
                return Ok(true);
            }
            sleep(AGAIN).await;
        }
        bail!("number {number}: no node answered within {} s", DEADLINE.as_secs())
    }

    async fn ask(&self, endpoint: &str, message: pb::ExecuteRequest) -> Result<Ack, Refusal> {
        let ask = async { self.client.node(endpoint).await.map_err(unreachable)?.execute(message).await };
        match timeout(ATTEMPT, ask).await {
            Err(_) => Err(Refusal::Passing),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                ack(&answer.response, answer.log_index, answer.state_digest).map_err(Refusal::Wrong)
            }
            Ok(Err(status)) if is(&status, ErrorReason::DiskFull) => Err(Refusal::NoRoom),
            Ok(Err(status)) if is_passing(&status) => Err(Refusal::Passing),
            Ok(Err(status)) if is(&status, ErrorReason::SessionExpired) => Err(Refusal::SessionExpired),
            Ok(Err(status)) => Err(Refusal::Wrong(anyhow::anyhow!("{endpoint}: {status}"))),
        }
    }
}

/// Why a node gave no outcome.
enum Refusal {
    /// It is away, or can't serve now.
    Passing,
    /// The primary's disk is full: it was not executed.
    NoRoom,
    SessionExpired,
    /// What has no place here.
    Wrong(anyhow::Error),
}

fn unreachable(error: replicator_client::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// Whether another attempt may succeed. A connection that breaks is told with various codes.
pub(super) fn is_passing(status: &Status) -> bool {
    let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
    passing.contains(&status.code())
        || is(status, ErrorReason::DiskFull)
        || (status.code() == Code::Internal && reason(status).is_none())
}

pub(super) fn is(status: &Status, expected: ErrorReason) -> bool {
    // A status names its reason without the prefix.
    reason(status).and_then(|name| ErrorReason::from_str_name(&format!("ERROR_REASON_{name}"))) == Some(expected)
}

fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn reasons_are_told_from_each_other() {
        let status = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "replicator", HashMap::new());
            Status::with_error_details(code, "why", details)
        };
        let expired = status(Code::NotFound, "SESSION_EXPIRED");
        assert!(is(&expired, ErrorReason::SessionExpired) && !is_passing(&expired));
        assert!(!is(&status(Code::NotFound, "SEQUENCE_GAP"), ErrorReason::SessionExpired));
        assert!(!is(&Status::not_found("no details"), ErrorReason::SessionExpired));
        assert!(is_passing(&status(Code::ResourceExhausted, "DISK_FULL")), "it may be repeated");
        assert!(!is_passing(&status(Code::ResourceExhausted, "WINDOW_FULL")), "no writer comes near that");
    }
}
