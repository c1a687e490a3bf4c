//! Exactly once through both doors, `Execute` and `ExecuteStream`: whatever a client repeats, loses or gets wrong, a request is executed
//! once or never, and all answers to it are equal. `sessions.rs` has each rule by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use replicator_client::{
    ErrorReason as Reason,
    proto::{
        ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, execute_result::Result as Executed,
        replicator_service_client::ReplicatorServiceClient,
    },
};
use replicator_tests::{Cluster, Requests as _, module, reason, request, scenario, until, within};
use tonic::{Code, transport::Channel};

type Node = ReplicatorServiceClient<Channel>;

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Execute,
    ExecuteStream,
}

const DOORS: [Door; 2] = [Door::Execute, Door::ExecuteStream];
/// So that what comes into the log is what the test sends, and no tick of the session clock.
const NO_TICKS: [&str; 4] = ["--tick-ms", "600000", "--session-ttl-ms", "1800000"];
const PATIENCE: Duration = Duration::from_secs(20);

/// A refusal, as both doors tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused(Code, Option<Reason>);

impl Door {
    /// Sends one request, and returns its outcome. An error is a broken connection.
    async fn send(self, node: &mut Node, message: ExecuteRequest) -> Result<Result<ExecuteResponse, Refused>> {
        let sequence = message.sequence;
        match self {
            Self::Execute => match node.execute(within(PATIENCE, message)).await {
                Ok(answer) => Ok(Ok(answer.into_inner())),
                Err(status) if reason(&status).is_some() => Ok(Err(Refused(status.code(), reason(&status)))),
                Err(status) => Err(status.into()),
            },
            Self::ExecuteStream => {
                let batch = ExecuteStreamRequest { requests: vec![message] };
                let mut results = node.execute_stream(tokio_stream::iter([batch])).await?.into_inner();
                let answered = tokio::time::timeout(PATIENCE, results.message()).await.context("no result came")?;
                let result = answered?.and_then(|mut message| message.results.pop()).context("the stream ended")?;
                ensure!(result.sequence == sequence, "the result is of another request: {result:?}");
                match result.result {
                    Some(Executed::Response(answer)) => Ok(Ok(answer)),
                    Some(Executed::Error(error)) => Ok(Err(Refused(Code::from_i32(error.code), Some(error.reason())))),
                    None => bail!("a result without a result"),
                }
            }
        }
    }

    /// Sends one request again and again until it has its outcome, as every client must.
    async fn insist(self, node: &mut Node, message: ExecuteRequest) -> Result<ExecuteResponse> {
        until("the request has its outcome", async || match self.send(node, message.clone()).await? {
            Ok(answer) => Ok(answer),
            Err(Refused(Code::Unavailable, why)) => bail!("not yet: {why:?}"),
            Err(refused) => panic!("{message:?} was refused: {refused:?}"),
        })
        .await
    }
}

/// What all answers to one request have in common.
fn stored(answer: &ExecuteResponse) -> (Bytes, u64, u64, u64) {
    (answer.response.clone(), answer.log_index, answer.epoch, answer.state_digest)
}

/// A connection of its own, which ends with what it is in.
async fn own(cluster: &Cluster, index: usize) -> Result<Node> {
    Ok(ReplicatorServiceClient::new(cluster.channel(index).await?))
}

/// Lets a client send a request to the primary, and kills the client when the request is in the primary's log, where it stays alone: the
/// followers stand still until this returns.
async fn die_after_proposal(cluster: &mut Cluster, door: Door, message: ExecuteRequest) -> Result<usize> {
    let primary = cluster.wait_primary().await?;
    let before = cluster.status(primary).await?.last_log_index;
    for follower in cluster.others(primary) {
        cluster[follower].pause()?;
    }
    let mut node = own(cluster, primary).await?;
    let client = tokio::spawn(async move { door.send(&mut node, message).await });
    let reached = until("the request is in the primary's log", async || {
        let last = cluster.status(primary).await?.last_log_index;
        ensure!(last > before, "its log ends at {last}");
        Ok(())
    });
    reached.await?;
    if client.is_finished() {
        bail!("it was answered without a majority: {:?}", client.await?);
    }
    client.abort();
    Ok(primary)
}

#[test]
fn client_that_dies_between_proposal_and_answer_retries_elsewhere_and_is_executed_once() {
    scenario(async |s| {
        let mut cluster = s.cluster_with(3, &module("counter"), &NO_TICKS).await?;
        let mut total = 0;
        for (retry_through, primary_dies) in
            [(Door::Execute, false), (Door::ExecuteStream, false), (Door::Execute, true), (Door::ExecuteStream, true)]
        {
            for sent_through in DOORS {
                let session = cluster.node(0).await?.session(0).await?;
                let message = request(&session, 1, "add x 1");
                let primary = die_after_proposal(&mut cluster, sent_through, message.clone()).await?;
                // With the primary, the only log that had it goes away: then it is the retry that is executed.
                if primary_dies {
                    cluster.kill(&[primary])?;
                }
                for follower in cluster.others(primary) {
                    cluster[follower].resume()?;
                }
                total += 1;
                let elsewhere = cluster.others(primary)[0];
                let answer = retry_through.insist(&mut own(&cluster, elsewhere).await?, message.clone()).await?;
                ensure!(answer.response == total.to_string(), "{answer:?} is number {total}");
                if primary_dies {
                    cluster.restart(primary).await?;
                }
                // Every node and every door has the same to say from then on.
                for index in 0..3 {
                    for door in DOORS {
                        let again = door.insist(&mut own(&cluster, index).await?, message.clone()).await?;
                        ensure!(stored(&again) == stored(&answer), "{again:?} after {answer:?}");
                    }
                }
            }
        }
        cluster.expect_counter("x", total).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn gap_reuse_and_staleness_are_told_alike_by_every_node_and_have_no_effect() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        for sequence in 1..=4 {
            Door::ExecuteStream.insist(&mut node, request(&session, sequence, "add x 1")).await?;
        }
        let acked = ExecuteRequest { acked_below: 3, ..request(&session, 5, "add x 1") };
        let fifth = Door::Execute.insist(&mut node, acked.clone()).await?;
        let cases = [
            (request(&session, 7, "add x 1000"), Refused(Code::FailedPrecondition, Some(Reason::SequenceGap))),
            (request(&session, u64::MAX, "add x 1000"), Refused(Code::FailedPrecondition, Some(Reason::SequenceGap))),
            (request(&session, 4, "add x 1000"), Refused(Code::InvalidArgument, Some(Reason::SequenceReused))),
            (request(&session, 5, "add x 1 "), Refused(Code::InvalidArgument, Some(Reason::SequenceReused))),
            (request(&session, 2, "add x 1"), Refused(Code::OutOfRange, Some(Reason::SequenceStale))),
            (request(&session, 1, "add x 1000"), Refused(Code::OutOfRange, Some(Reason::SequenceStale))),
        ];
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            for door in DOORS {
                for (message, expected) in &cases {
                    let told = door.send(&mut node, message.clone()).await?;
                    ensure!(told.as_ref().err() == Some(expected), "{message:?} through {door:?} came to {told:?}");
                }
                let again = door.insist(&mut node, acked.clone()).await?;
                ensure!(stored(&again) == stored(&fifth), "{again:?} after {fifth:?}");
            }
        }
        cluster.expect_counter("x", 5).await?;
        // The session goes on as if nothing had been.
        let sixth = Door::ExecuteStream.insist(&mut node, request(&session, 6, "add x 1")).await?;
        ensure!(sixth.response == "6", "{sixth:?}");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn retry_after_expiry_is_never_executed() {
    scenario(async |s| {
        let mut cluster =
            s.cluster_with(3, &module("counter"), &["--tick-ms", "300", "--session-ttl-ms", "1000"]).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        Door::Execute.insist(&mut node, request(&session, 1, "add x 1")).await?;
        until("the session expires everywhere", async || {
            for index in 0..3 {
                let sessions = cluster.status(index).await?.sessions;
                ensure!(sessions == 0, "{sessions} sessions are open");
            }
            Ok(())
        })
        .await?;
        let expired = Refused(Code::NotFound, Some(Reason::SessionExpired));
        for round in 0..2 {
            for index in 0..3 {
                let mut node = own(&cluster, index).await?;
                for door in DOORS {
                    // The one that had its answer, the one that never had any, and one out of order.
                    for sequence in [1, 2, 9] {
                        let told = door.send(&mut node, request(&session, sequence, "add x 1")).await?;
                        ensure!(told.as_ref().err() == Some(&expired), "{sequence} through {door:?} came to {told:?}");
                    }
                }
            }
            if round == 0 {
                // Not after a failover either.
                let primary = cluster.wait_primary().await?;
                cluster.kill(&[primary])?;
                cluster.wait_primary_among(&cluster.others(primary)).await?;
                cluster.restart(primary).await?;
                cluster.wait_all_serve().await?;
            }
        }
        cluster.expect_counter("x", 1).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn one_request_at_all_nodes_through_all_doors_at_once_is_executed_once() {
    scenario(async |s| {
        const REQUESTS: u64 = 100;
        let cluster = s.cluster(3, &module("counter")).await?;
        let session = cluster.node(0).await?.session(0).await?;
        let mut nodes = Vec::new();
        for index in 0..3 {
            nodes.push((index, cluster.node(index).await?));
        }
        for sequence in 1..=REQUESTS {
            let mut copies = Vec::new();
            for door in DOORS {
                for (index, node) in &nodes {
                    let (mut node, index) = (node.clone(), *index);
                    let message = request(&session, sequence, "add x 1");
                    copies.push(tokio::spawn(async move { (index, door.send(&mut node, message).await) }));
                }
            }
            let mut first = None;
            for copy in copies {
                let (index, answer) = copy.await?;
                let answer = answer?.map_err(|refused| anyhow::anyhow!("{sequence} was refused: {refused:?}"))?;
                ensure!(answer.response == sequence.to_string(), "{answer:?} is the answer to {sequence}");
                ensure!(
                    answer.node_id == cluster[index].name,
                    "{} answered for {}",
                    answer.node_id,
                    cluster[index].name
                );
                let first = first.get_or_insert_with(|| stored(&answer));
                ensure!(*first == stored(&answer), "{first:?} at one, {answer:?} at another");
            }
        }
        cluster.expect_counter("x", REQUESTS).await?;
        cluster.verify().await?;
        Ok(())
    });
}
