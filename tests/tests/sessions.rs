//! Exactly once, over raw gRPC: what a client in any language may rely on, and what it is told when it errs.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use replicator_client::{
    ErrorReason as Reason,
    proto::{
        CloseSessionRequest, ExecuteRequest, ExecuteResponse, ExecuteResult, ExecuteStreamRequest, KeepAliveRequest,
        execute_result::Result as Executed, replicator_service_client::ReplicatorServiceClient,
    },
};
use replicator_tests::{Cluster, Requests as _, last_sequence, module, reason, request, scenario, until, within};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

type Node = ReplicatorServiceClient<Channel>;

async fn nodes(cluster: &Cluster) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for index in 0..cluster.len() {
        nodes.push(cluster.node(index).await?);
    }
    Ok(nodes)
}

/// What every copy of an answer has in common.
fn stored(answer: &ExecuteResponse) -> (Bytes, u64, u64, u64) {
    (answer.response.clone(), answer.log_index, answer.epoch, answer.state_digest)
}

async fn execute(node: &mut Node, request: ExecuteRequest) -> Result<ExecuteResponse> {
    Ok(node.execute(request).await?.into_inner())
}

/// Expects a refusal with this code and reason.
async fn refused<T: std::fmt::Debug>(
    call: impl Future<Output = Result<Response<T>, Status>>,
    code: Code,
    why: Reason,
) -> Result<Status> {
    match call.await {
        Ok(answer) => anyhow::bail!("not refused: {answer:?}"),
        Err(status) => {
            ensure!((status.code(), reason(&status)) == (code, Some(why)), "not {code:?} and {why:?}: {status:?}");
            ensure!(!status.message().is_empty(), "a refusal without words");
            Ok(status)
        }
    }
}

fn acked(message: ExecuteRequest, acked_below: u64) -> ExecuteRequest {
    ExecuteRequest { acked_below, ..message }
}

/// The id of a session that this cluster may have given out and never has.
fn unknown(session: &Bytes) -> Bytes {
    let mut id = session.to_vec();
    id[15] ^= 0xff;
    id.into()
}

#[test]
fn duplicate_at_every_node_returns_the_stored_outcome() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let mut nodes = nodes(&cluster).await?;
        let session = nodes[0].session(0).await?;
        let first = execute(&mut nodes[0], request(&session, 1, "add x 1")).await?;
        execute(&mut nodes[1], request(&session, 2, "add x 1")).await?;
        ensure!(first.response == "1" && first.log_index > 0 && first.epoch > 0, "{first:?}");
        for (index, node) in nodes.iter_mut().enumerate() {
            let again = execute(node, request(&session, 1, "add x 1")).await?;
            ensure!(stored(&again) == stored(&first), "{again:?} after {first:?}");
            ensure!(again.node_id == cluster[index].name, "{again:?}");
        }
        // The table survives the death of every process.
        cluster.kill(&[0, 1, 2])?;
        cluster.start_all().await?;
        cluster.wait_all_serve().await?;
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            let again =
                until("the cluster answers", async || execute(&mut node, request(&session, 1, "add x 1")).await);
            let again = again.await?;
            ensure!(stored(&again) == stored(&first), "{again:?} after {first:?}");
        }
        cluster.expect_counter("x", 2).await
    });
}

#[test]
fn gap_has_no_effect_and_resending_in_order_works() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut nodes = nodes(&cluster).await?;
        let session = nodes[0].session(0).await?;
        refused(nodes[1].execute(request(&session, 2, "add x 1")), Code::FailedPrecondition, Reason::SequenceGap)
            .await?;
        execute(&mut nodes[0], request(&session, 1, "add x 1")).await?;
        for node in &mut nodes {
            let gap =
                refused(node.execute(request(&session, 3, "add x 5")), Code::FailedPrecondition, Reason::SequenceGap);
            ensure!(last_sequence(&gap.await?) == Some(1), "the refusal doesn't name the last sequence");
        }
        cluster.expect_counter("x", 1).await?;
        let second = execute(&mut nodes[2], request(&session, 2, "add x 1")).await?;
        let third = execute(&mut nodes[1], request(&session, 3, "add x 5")).await?;
        ensure!(second.response == "2" && third.response == "7", "{second:?} {third:?}");
        cluster.expect_counter("x", 7).await
    });
}

#[test]
fn forgotten_and_reused_sequences_are_refused_without_effect() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut nodes = nodes(&cluster).await?;
        let session = nodes[0].session(0).await?;
        for sequence in 1..=3 {
            execute(&mut nodes[0], request(&session, sequence, "add x 1")).await?;
        }
        for node in &mut nodes {
            let other = node.execute(request(&session, 2, "add x 1000"));
            refused(other, Code::InvalidArgument, Reason::SequenceReused).await?;
        }
        execute(&mut nodes[1], acked(request(&session, 4, "add x 1"), 4)).await?;
        for node in &mut nodes {
            let stale = node.execute(request(&session, 3, "add x 1"));
            let stale = refused(stale, Code::OutOfRange, Reason::SequenceStale).await?;
            ensure!(last_sequence(&stale) == Some(4), "{stale:?}");
            let kept = execute(node, acked(request(&session, 4, "add x 1"), 4)).await?;
            ensure!(kept.response == "4", "{kept:?}");
        }
        cluster.expect_counter("x", 4).await
    });
}

#[test]
fn unknown_or_closed_session_is_expired_and_never_made_by_the_way() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut nodes = nodes(&cluster).await?;
        let unknown = unknown(&nodes[0].session(0).await?);
        let alien = Bytes::from_static(&[7; 16]);
        let closed = nodes[0].session(0).await?;
        execute(&mut nodes[0], request(&closed, 1, "add x 1")).await?;
        nodes[1].close_session(CloseSessionRequest { session_id: closed.clone() }).await?;
        for node in &mut nodes {
            for session in [&unknown, &closed] {
                for sequence in 1..=2 {
                    let call = node.execute(request(session, sequence, "add x 1"));
                    refused(call, Code::NotFound, Reason::SessionExpired).await?;
                }
                let keep = node.keep_alive(KeepAliveRequest { session_id: session.clone() });
                refused(keep, Code::NotFound, Reason::SessionExpired).await?;
            }
            // Its id says that it was opened in another history.
            let call = node.execute(request(&alien, 1, "add x 1"));
            refused(call, Code::FailedPrecondition, Reason::LineageMismatch).await?;
            node.close_session(CloseSessionRequest { session_id: unknown.clone() }).await?;
        }
        cluster.expect_counter("x", 1).await?;
        let sessions = cluster.status(0).await?.sessions;
        ensure!(sessions == 1, "{sessions} sessions are open");
        Ok(())
    });
}

#[test]
fn full_window_refuses_until_outcomes_are_acknowledged() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--session-window", "4"]).await?;
        let mut nodes = nodes(&cluster).await?;
        let session = nodes[0].session(0).await?;
        for sequence in 1..=4 {
            execute(&mut nodes[sequence as usize % 3], request(&session, sequence, "add x 1")).await?;
        }
        for node in &mut nodes {
            let full = node.execute(request(&session, 5, "add x 1"));
            let full = refused(full, Code::ResourceExhausted, Reason::WindowFull).await?;
            ensure!(last_sequence(&full) == Some(4), "{full:?}");
        }
        cluster.expect_counter("x", 4).await?;
        let fifth = execute(&mut nodes[1], acked(request(&session, 5, "add x 1"), 2)).await?;
        ensure!(fifth.response == "5", "{fifth:?}");
        Ok(())
    });
}

#[test]
fn sessions_beyond_the_limit_are_refused_until_one_is_closed() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--sessions", "2"]).await?;
        let mut nodes = nodes(&cluster).await?;
        let first = nodes[0].session(0).await?;
        nodes[1].session(0).await?;
        let full = nodes[2].session(0).await.expect_err("a third session of two was opened");
        ensure!((full.code(), reason(&full)) == (Code::ResourceExhausted, Some(Reason::SessionsFull)), "{full:?}");
        nodes[2].close_session(CloseSessionRequest { session_id: first }).await?;
        nodes[2].session(0).await?;
        Ok(())
    });
}

#[test]
fn same_request_at_all_nodes_at_once_executes_once_and_answers_equal() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let nodes = nodes(&cluster).await?;
        let session = nodes[0].clone().session(0).await?;
        for sequence in 1..=100_u64 {
            let calls: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let (mut node, message) = (node.clone(), request(&session, sequence, "add x 1"));
                    tokio::spawn(async move { execute(&mut node, message).await })
                })
                .collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await??);
            }
            ensure!(answers[0].response == sequence.to_string(), "{answers:?}");
            ensure!(answers.iter().all(|answer| stored(answer) == stored(&answers[0])), "{answers:?}");
            let names: Vec<&str> = answers.iter().map(|answer| answer.node_id.as_str()).collect();
            ensure!(names == ["n1", "n2", "n3"], "each node answers for itself: {names:?}");
        }
        cluster.expect_counter("x", 100).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn idle_session_expires_by_log_time_and_a_kept_one_does_not() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--session-ttl-ms", "3000"]).await?;
        let mut nodes = nodes(&cluster).await?;
        let (idle, kept, busy) = (nodes[0].session(0).await?, nodes[1].session(0).await?, nodes[2].session(0).await?);
        execute(&mut nodes[0], request(&idle, 1, "add x 1")).await?;
        let mut sequence = 0;
        until("one session of three expires", async || {
            let sessions = cluster.status(2).await?.sessions;
            if sessions == 3 {
                nodes[1].keep_alive(KeepAliveRequest { session_id: kept.clone() }).await.expect("it is kept alive");
                sequence += 1;
                let message = acked(request(&busy, sequence, "add y 1"), sequence);
                nodes[2].execute(message).await.expect("it is busy");
            }
            ensure!(sessions == 2, "{sessions} sessions are open");
            Ok(())
        })
        .await?;
        for node in &mut nodes {
            refused(node.execute(request(&idle, 1, "add x 1")), Code::NotFound, Reason::SessionExpired).await?;
            refused(node.execute(request(&idle, 2, "add x 1")), Code::NotFound, Reason::SessionExpired).await?;
        }
        execute(&mut nodes[0], request(&kept, 1, "add x 1")).await?;
        cluster.expect_counter("x", 2).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn idle_sessions_do_not_expire_because_the_cluster_was_down() {
    scenario(async |s| {
        let mut cluster = s.cluster_with(3, &module("counter"), &["--session-ttl-ms", "3000"]).await?;
        let session = cluster.node(0).await?.session(0).await?;
        let began = std::time::Instant::now();
        cluster.kill(&[0, 1, 2])?;
        // The one thing that this test is about is time that passes.
        tokio::time::sleep_until((began + Duration::from_millis(3_500)).into()).await;
        cluster.start_all().await?;
        cluster.wait_all_serve().await?;
        let mut node = cluster.node(1).await?;
        let first = until("the session goes on", async || {
            let executed = node.execute(request(&session, 1, "add x 1")).await;
            if let Err(status) = &executed {
                assert_ne!(reason(status), Some(Reason::SessionExpired), "an outage expired the session: {status:?}");
            }
            Ok(executed?.into_inner())
        });
        ensure!(first.await?.response == "1", "the session lost its place");
        Ok(())
    });
}

#[test]
fn malformed_requests_are_told_so_at_every_node() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--request-bytes", "1000"]).await?;
        let mut nodes = nodes(&cluster).await?;
        let session = nodes[0].session(0).await?;
        let cut = session.slice(..15);
        for node in &mut nodes {
            let invalid = (Code::InvalidArgument, Reason::InvalidRequest);
            refused(node.execute(request(&session, 0, "add x 1")), invalid.0, invalid.1).await?;
            refused(node.execute(request(&cut, 1, "add x 1")), invalid.0, invalid.1).await?;
            refused(node.execute(request(&Bytes::new(), 1, "add x 1")), invalid.0, invalid.1).await?;
            refused(node.keep_alive(KeepAliveRequest { session_id: cut.clone() }), invalid.0, invalid.1).await?;
            refused(node.close_session(CloseSessionRequest { session_id: cut.clone() }), invalid.0, invalid.1).await?;
            let large = node.execute(request(&session, 1, vec![b' '; 1_001]));
            refused(large, Code::InvalidArgument, Reason::RequestTooLarge).await?;
        }
        let first = execute(&mut nodes[2], request(&session, 1, "add x 1")).await?;
        ensure!(first.response == "1", "{first:?}");
        // A message beyond what gRPC takes is refused, and the connection lives on.
        let huge = nodes[2].execute(request(&session, 2, vec![b' '; 17 << 20])).await.expect_err("17 MiB were taken");
        ensure!(matches!(huge.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument), "{huge:?}");
        execute(&mut nodes[2], request(&session, 2, "add x 1")).await?;
        cluster.expect_counter("x", 2).await
    });
}

/// A raw stream: what is sent, and what comes back, in the order of the requests.
struct Stream {
    requests: mpsc::Sender<ExecuteStreamRequest>,
    results: Streaming<replicator_client::proto::ExecuteStreamResponse>,
    got: VecDeque<ExecuteResult>,
    early: BTreeMap<u64, ExecuteResponse>,
    seen: u64,
}

impl Stream {
    async fn open(node: &mut Node) -> Result<Self> {
        let (requests, outgoing) = mpsc::channel(64);
        let results = node.execute_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, results, got: VecDeque::new(), early: BTreeMap::new(), seen: 0 })
    }

    async fn send(&self, requests: Vec<ExecuteRequest>) -> Result<()> {
        self.requests.send(ExecuteStreamRequest { requests }).await.context("the stream ended")
    }

    async fn next(&mut self) -> Result<ExecuteResult> {
        while self.got.is_empty() {
            let message = tokio::time::timeout(Duration::from_secs(20), self.results.message()).await;
            let message = message.context("no results for 20 s")??.context("the stream ended")?;
            self.got.extend(message.results);
        }
        self.got.pop_front().context("nothing came")
    }

    /// The answer of the next request, counted from 1. Results may overtake each other.
    async fn in_order(&mut self) -> Result<(u64, ExecuteResponse)> {
        self.seen += 1;
        loop {
            if let Some(answer) = self.early.remove(&self.seen) {
                return Ok((self.seen, answer));
            }
            let result = self.next().await?;
            match result.result {
                Some(Executed::Response(answer)) if result.sequence >= self.seen => {
                    let twice = self.early.insert(result.sequence, answer);
                    ensure!(twice.is_none(), "request {} was answered twice", result.sequence);
                }
                other => anyhow::bail!("request {} came to {other:?} at {}", result.sequence, self.seen),
            }
        }
    }
}

#[test]
fn stream_of_thousands_executes_in_order_at_any_node() {
    scenario(async |s| {
        const REQUESTS: u64 = 6_000;
        const BATCH: u64 = 250;
        const AHEAD: u64 = 2_000;
        let cluster = s.cluster(3, &module("counter")).await?;
        let primary = cluster.wait_primary().await?;
        for index in [primary, cluster.others(primary)[0]] {
            let name = format!("stream{index}");
            let mut node = cluster.node(index).await?;
            let session = node.session(0).await?;
            let mut stream = Stream::open(&mut node).await?;
            let (mut sent, mut seen, mut last_index) = (0, 0, 0);
            while seen < REQUESTS {
                while sent < REQUESTS && sent - seen < AHEAD {
                    let batch = (sent + 1..=sent + BATCH)
                        .map(|sequence| acked(request(&session, sequence, format!("add {name} 1")), seen + 1));
                    stream.send(batch.collect()).await?;
                    sent += BATCH;
                }
                let (sequence, answer) = stream.in_order().await?;
                ensure!(answer.response == sequence.to_string(), "{sequence}: {answer:?}");
                ensure!(answer.log_index > last_index, "{sequence} at {} after {last_index}", answer.log_index);
                (seen, last_index) = (sequence, answer.log_index);
            }
            cluster.expect_counter(&name, REQUESTS).await?;
        }
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn stream_tells_each_refusal_beside_the_good_results() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut node = cluster.node(1).await?;
        let session = node.session(0).await?;
        let mut stream = Stream::open(&mut node).await?;
        let unknown = unknown(&session);
        let cases = [
            (request(&session, 1, "add x 1"), None),
            (request(&session, 3, "add x 1"), Some((Code::FailedPrecondition, Reason::SequenceGap))),
            (request(&session, 1, "add x 2"), Some((Code::InvalidArgument, Reason::SequenceReused))),
            (request(&unknown, 1, "add x 1"), Some((Code::NotFound, Reason::SessionExpired))),
            (request(&session, 0, "add x 1"), Some((Code::InvalidArgument, Reason::InvalidRequest))),
            (request(&session.slice(1..), 1, "add x 1"), Some((Code::InvalidArgument, Reason::InvalidRequest))),
            (request(&session, 2, "add x 1"), None),
            (acked(request(&session, 3, "add x 1"), 3), None),
            (request(&session, 1, "add x 1"), Some((Code::OutOfRange, Reason::SequenceStale))),
        ];
        for (message, expected) in cases {
            let what = format!("{message:?}");
            stream.send(vec![message]).await?;
            let result = stream.next().await?;
            let found = match &result.result {
                Some(Executed::Error(error)) => Some((Code::from_i32(error.code), error.reason())),
                _ => None,
            };
            ensure!(found == expected && result.result.is_some(), "{what} came to {result:?}");
        }
        cluster.expect_counter("x", 3).await
    });
}

#[test]
fn client_that_dies_in_mid_stream_goes_on_elsewhere_without_a_double() {
    scenario(async |s| {
        const FIRST: u64 = 1_500;
        const ALL: u64 = 2_500;
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let primary = cluster.wait_primary().await?;
        // The first time only the connection dies, the second time its node too.
        for (round, node_dies) in [false, true].into_iter().enumerate() {
            let name = format!("x{round}");
            let message = |session: &Bytes, sequence: u64| request(session, sequence, format!("add {name} 1"));
            let at = cluster.others(primary)[round];
            let session = {
                let mut node = ReplicatorServiceClient::new(cluster.channel(at).await?);
                let session = node.session(0).await?;
                let mut stream = Stream::open(&mut node).await?;
                for batch in 0..FIRST / 100 {
                    stream.send((batch * 100 + 1..=batch * 100 + 100).map(|n| message(&session, n)).collect()).await?;
                }
                for _ in 0..10 {
                    stream.in_order().await?;
                }
                if node_dies {
                    cluster.kill(&[at])?;
                }
                session
            };
            let mut node = cluster.node(primary).await?;
            let mut stream = Stream::open(&mut node).await?;
            for batch in 0..ALL / 100 {
                stream.send((batch * 100 + 1..=batch * 100 + 100).map(|n| message(&session, n)).collect()).await?;
            }
            for _ in 1..=ALL {
                let (number, answer) = stream.in_order().await?;
                ensure!(answer.response == number.to_string(), "{number}: {answer:?}");
            }
            if node_dies {
                cluster.restart(at).await?;
            }
            cluster.expect_counter(&name, ALL).await?;
        }
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn deadline_of_the_caller_is_kept() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        cluster.kill(&[1, 2])?;
        let began = std::time::Instant::now();
        let call = node.execute(within(Duration::from_millis(1_000), request(&session, 1, "add x 1")));
        let status = call.await.expect_err("a write without a majority was acknowledged");
        let waited = began.elapsed();
        ensure!(status.code() == Code::Unavailable && reason(&status).is_some(), "no typed error: {status:?}");
        ensure!(waited < Duration::from_millis(3_000), "it took {waited:?}");
        Ok(())
    });
}
