//! Reads at every consistency, at every node; and pushed events, gapless over the death of the node that delivers them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use replicator_client::{
    Cursor, Error, ErrorReason as Reason, LogIndex,
    proto::{
        Consistency, Cursor as WireCursor, NumberedQuery, QueryRequest, QueryStreamRequest, SubscribeRequest,
        SubscribeResponse, query_result, subscribe_response::Item,
    },
};
use replicator_proto::chat::v1 as chat;
use replicator_tests::{Load, Requests as _, module, reason, request, scenario, until, within};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

const SECOND: Duration = Duration::from_secs(1);

fn linearizable(request: &str) -> QueryRequest {
    QueryRequest { request: request.to_owned().into(), ..QueryRequest::default() }
}

#[test]
fn linearizable_read_at_every_node_sees_a_write_just_acknowledged_at_another() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut nodes = Vec::new();
        for index in 0..3 {
            nodes.push(cluster.node(index).await?);
        }
        let session = nodes[0].session(0).await?;
        for sequence in 1..=150 {
            let writer = sequence as usize % 3;
            let written = nodes[writer].execute(request(&session, sequence, "add x 1")).await?.into_inner();
            for reader in [(writer + 1) % 3, (writer + 2) % 3] {
                let read = nodes[reader].query(linearizable("get x")).await?.into_inner();
                ensure!(read.response == sequence.to_string(), "{read:?} after {written:?}");
                ensure!(read.log_index >= written.log_index, "{read:?} after {written:?}");
                ensure!(read.node_id == cluster[reader].name, "{read:?} was answered by another node");
            }
        }
        Ok(())
    });
}

#[test]
fn session_read_waits_for_its_index_and_local_read_does_not() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let primary = cluster.wait_primary().await?;
        let lag = cluster.others(primary)[0];
        let mut writer = cluster.node(primary).await?;
        let mut reader = cluster.node(lag).await?;
        let session = writer.session(0).await?;
        let at_least = |log_index: u64| QueryRequest {
            consistency: Consistency::Session.into(),
            min_log_index: log_index,
            ..linearizable("get x")
        };
        for sequence in 1..=100 {
            let written = writer.execute(request(&session, sequence, "add x 1")).await?.into_inner();
            let read = reader.query(at_least(written.log_index)).await?.into_inner();
            ensure!(read.log_index >= written.log_index && read.response == sequence.to_string(), "{read:?}");
        }
        // An index that isn't there yet: the replica waits, and gives up when its caller does.
        let last = cluster.status(lag).await?.applied_log_index;
        let status = reader.query(within(SECOND, at_least(last + 1_000))).await.expect_err("it read the future");
        ensure!((status.code(), reason(&status)) == (Code::Unavailable, Some(Reason::NotReady)), "{status:?}");
        let held = tokio::spawn({
            let (mut reader, query) = (reader.clone(), within(20 * SECOND, at_least(last + 20)));
            async move { reader.query(query).await }
        });
        for sequence in 101..=130 {
            writer.execute(request(&session, sequence, "add x 1")).await?;
        }
        let read = held.await??.into_inner();
        ensure!(read.log_index >= last + 20, "{read:?}");
        // LOCAL asks nobody.
        cluster.kill(&cluster.others(lag))?;
        let local = QueryRequest { consistency: Consistency::Local.into(), ..linearizable("get x") };
        let read = reader.query(local).await?.into_inner();
        ensure!(!read.response.is_empty(), "{read:?}");
        Ok(())
    });
}

#[test]
fn stream_of_queries_answers_each_on_its_own_whatever_stands_beside_it() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut writer = cluster.node(0).await?;
        let session = writer.session(0).await?;
        // Of this history, and never opened.
        let unknown = [&session[..15], &[!session[15]]].concat();
        let numbered = |number, query| NumberedQuery { number, query: Some(query) };
        for reader in 0..3 {
            let mut node = cluster.node(reader).await?;
            let (queries, outgoing) = tokio::sync::mpsc::channel(16);
            let mut answers = node.query_stream(ReceiverStream::new(outgoing)).await?.into_inner();
            for round in 1..=20 {
                let sequence = reader as u64 * 20 + round;
                let written = writer.execute(request(&session, sequence, "add x 1")).await?.into_inner();
                let at_least = |min_log_index| QueryRequest {
                    consistency: Consistency::Session.into(),
                    min_log_index,
                    ..linearizable("get x")
                };
                let group = vec![
                    numbered(1, linearizable("get x")),
                    // Far ahead: it waits, and holds up none of the others.
                    numbered(2, at_least(written.log_index + 1_000_000)),
                    numbered(3, at_least(written.log_index)),
                    numbered(4, QueryRequest { session_id: vec![1; 3].into(), ..linearizable("get x") }),
                    numbered(5, QueryRequest { consistency: Consistency::Local.into(), ..linearizable("get y") }),
                    numbered(6, QueryRequest { session_id: session.clone(), ..linearizable("get x") }),
                    numbered(7, QueryRequest { session_id: unknown.clone().into(), ..linearizable("get x") }),
                    numbered(8, QueryRequest { session_id: vec![1; 16].into(), ..linearizable("get x") }),
                ];
                queries.send(QueryStreamRequest { queries: group }).await?;
                let mut found = BTreeMap::new();
                while found.len() < 7 {
                    let message = tokio::time::timeout(5 * SECOND, answers.message()).await?;
                    for result in message?.context("the answers ended")?.results {
                        let before = found.insert(result.number, result.result.context("an empty result")?);
                        ensure!(before.is_none(), "two answers to {}", result.number);
                    }
                }
                for number in [1, 3, 6] {
                    let query_result::Result::Response(read) = &found[&number] else {
                        bail!("{number}: {:?}", found[&number]);
                    };
                    ensure!(read.response == sequence.to_string() && read.node_id == cluster[reader].name, "{read:?}");
                }
                let refused = [(4, Reason::InvalidRequest), (7, Reason::SessionExpired), (8, Reason::LineageMismatch)];
                for (number, expected) in refused {
                    let query_result::Result::Error(error) = &found[&number] else { bail!("{:?}", found[&number]) };
                    ensure!(error.reason() == expected, "{error:?}");
                }
                ensure!(
                    matches!(&found[&5], query_result::Result::Response(read) if read.response == "0"),
                    "{found:?}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn index_cursor_or_session_of_another_history_is_refused_as_such() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let lineage = cluster.status(0).await?.lineage;
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            for consistency in [Consistency::Linearizable, Consistency::Session, Consistency::Local] {
                let good = QueryRequest { consistency: consistency.into(), lineage, ..linearizable("get x") };
                node.query(good.clone()).await?;
                let status = node.query(QueryRequest { lineage: lineage ^ 1, ..good }).await.expect_err("it was read");
                let mismatch = (Code::FailedPrecondition, Some(Reason::LineageMismatch));
                ensure!((status.code(), reason(&status)) == mismatch, "{status:?}");
                let after = Some(WireCursor { lineage: lineage ^ 1, log_index: 1, ordinal: 0 });
                let topics = vec!["counters".to_owned()];
                let subscribe = SubscribeRequest { topics, after, ..SubscribeRequest::default() };
                let status = node.subscribe(subscribe).await.expect_err("it was subscribed to");
                ensure!((status.code(), reason(&status)) == mismatch, "{status:?}");
            }
        }
        Ok(())
    });
}

async fn next(events: &mut Streaming<SubscribeResponse>) -> Result<Item> {
    let message = tokio::time::timeout(20 * SECOND, events.message()).await.context("no event for 20 s")?;
    message?.context("the events ended")?.item.context("an empty message")
}

fn counters(after: Option<WireCursor>) -> SubscribeRequest {
    SubscribeRequest { topics: vec!["counters".to_owned()], after, ..SubscribeRequest::default() }
}

#[test]
fn every_replica_pushes_the_same_events_in_order_and_tells_progress() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut streams = Vec::new();
        for index in 0..3 {
            let mut events = cluster.node(index).await?.subscribe(counters(None)).await?.into_inner();
            let first = next(&mut events).await?;
            ensure!(matches!(first, Item::Progress(_)), "the first message is {first:?}");
            streams.push(events);
        }
        let mut writer = cluster.node(1).await?;
        let session = writer.session(0).await?;
        let mut written = Vec::new();
        for sequence in 1..=100 {
            written.push(writer.execute(request(&session, sequence, "add x 1")).await?.into_inner().log_index);
        }
        for events in &mut streams {
            let expected = written.iter().zip(1..);
            let mut last = WireCursor::default();
            for (log_index, number) in expected {
                let push = loop {
                    match next(events).await? {
                        Item::Push(push) => break push,
                        Item::Progress(at) => ensure!(at.log_index < *log_index, "{at:?} skips {log_index}"),
                        Item::Ephemeral(push) => bail!("no query pushes: {push:?}"),
                    }
                };
                let cursor = push.cursor.context("no cursor")?;
                ensure!(cursor.log_index == *log_index && push.topic == "counters", "{cursor:?}, not {log_index}");
                ensure!(push.payload == format!("x {number}"), "{:?} is event {number}", push.payload);
                last = cursor;
            }
            // Ticks go on, and pushes nothing: progress is told.
            let progress = next(events).await?;
            let place = |at: WireCursor| (at.log_index, at.ordinal);
            ensure!(matches!(progress, Item::Progress(at) if place(at) > place(last)), "{progress:?} after {last:?}");
        }
        // Everything once more, from a cursor in the middle, at every node.
        for index in 0..3 {
            let lineage = cluster.status(index).await?.lineage;
            let after = WireCursor { lineage, log_index: written[49], ordinal: 0 };
            let mut events = cluster.node(index).await?.subscribe(counters(Some(after))).await?.into_inner();
            ensure!(matches!(next(&mut events).await?, Item::Progress(at) if at == after), "no progress first");
            for log_index in &written[50..] {
                let item = next(&mut events).await?;
                let right =
                    matches!(&item, Item::Push(push) if push.cursor.is_some_and(|at| at.log_index == *log_index));
                ensure!(right, "{item:?}, not {log_index}");
            }
        }
        Ok(())
    });
}

#[test]
fn subscription_goes_on_without_gap_or_double_when_its_node_and_the_primary_die() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let mut events = cluster.client()?.subscribe(None, ["counters"], None);
        events.established().await?;
        let load = Load::start(&cluster, "x", 16).await?;
        let (mut seen, mut cursor) = (0_u64, events.cursor());
        for killed in 0..3 {
            let goal = load.acknowledged() + 200;
            while seen < goal {
                let push = events.next().await.context("the events ended")??;
                seen += 1;
                ensure!(push.payload == format!("x {seen}"), "{:?} came as event {seen}", push.payload);
                ensure!(Some(push.cursor) > cursor, "{:?} after {cursor:?}", push.cursor);
                cursor = Some(push.cursor);
                if seen == goal - 150 {
                    cluster.kill(&[killed])?;
                }
            }
            cluster.restart(killed).await?;
        }
        let written = load.settle(&cluster).await?;
        while seen < written {
            let push = events.next().await.context("the events ended")??;
            seen += 1;
            ensure!(push.payload == format!("x {seen}"), "{:?} came as event {seen}", push.payload);
        }
        // From the last cursor there is nothing more, at any node; from the first one, everything.
        let lineage = cursor.context("no cursor")?.lineage;
        for index in 0..3 {
            let start = Some(Cursor { lineage, log_index: LogIndex(1), ordinal: u32::MAX });
            let mut again = cluster.client_of(index)?.subscribe(None, ["counters"], start);
            for number in 1..=written {
                let push = again.next().await.context("the events ended")??;
                ensure!(push.payload == format!("x {number}"), "{:?} came as event {number}", push.payload);
            }
        }
        Ok(())
    });
}

#[test]
fn cursor_before_what_is_kept_is_expired_at_every_node() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--retained-push-bytes", "1000"]).await?;
        let mut writer = cluster.node(0).await?;
        let session = writer.session(0).await?;
        let mut written = Vec::new();
        for sequence in 1..=50 {
            written.push(writer.execute(request(&session, sequence, "add x 1")).await?.into_inner().log_index);
        }
        let lineage = cluster.status(0).await?.lineage;
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            until("the replica has applied them", async || {
                ensure!(cluster.status(index).await?.applied_log_index >= written[49], "it is behind");
                Ok(())
            })
            .await?;
            let old = WireCursor { lineage, log_index: written[10], ordinal: 0 };
            let status = node.subscribe(counters(Some(old))).await.expect_err("a forgotten place was subscribed to");
            ensure!((status.code(), reason(&status)) == (Code::OutOfRange, Some(Reason::CursorExpired)), "{status:?}");
            let kept = WireCursor { lineage, log_index: written[45], ordinal: 0 };
            let mut events = node.subscribe(counters(Some(kept))).await?.into_inner();
            ensure!(matches!(next(&mut events).await?, Item::Progress(_)), "no progress first");
            for log_index in &written[46..] {
                let item = next(&mut events).await?;
                let right =
                    matches!(&item, Item::Push(push) if push.cursor.is_some_and(|at| at.log_index == *log_index));
                ensure!(right, "{item:?}, not {log_index}");
            }
            // The client library says so too, and ends the subscription.
            let cursor = Some(Cursor::from(old));
            let mut events = cluster.client_of(index)?.subscribe(None, ["counters"], cursor);
            let expired = events.next().await;
            ensure!(matches!(expired, Some(Err(Error::CursorExpired { .. }))), "{expired:?}");
        }
        Ok(())
    });
}

#[test]
fn subscription_of_an_unknown_session_or_of_nothing_is_refused() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        let status = node.subscribe(SubscribeRequest::default()).await.expect_err("nothing was subscribed to");
        ensure!(reason(&status) == Some(Reason::InvalidRequest), "{status:?}");
        let mut unknown = session.to_vec();
        unknown[15] ^= 1;
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            let of =
                |session_id: Vec<u8>| SubscribeRequest { session_id: session_id.into(), ..SubscribeRequest::default() };
            let status = node.subscribe(of(unknown.clone())).await.expect_err("an unknown session was subscribed to");
            ensure!((status.code(), reason(&status)) == (Code::NotFound, Some(Reason::SessionExpired)), "{status:?}");
            node.subscribe(of(session.to_vec())).await?;
        }
        Ok(())
    });
}

fn chat_request(action: chat::chat_request::Action) -> Vec<u8> {
    chat::ChatRequest { action: Some(action) }.encode_to_vec()
}

fn chat_answer(response: &[u8]) -> Result<chat::chat_response::Result> {
    chat::ChatResponse::decode(response)?.result.context("an empty answer")
}

#[test]
fn chat_module_answers_refuses_and_keeps_its_state_over_a_restart() {
    use chat::{chat_request::Action, chat_response::Result as Answer};
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("chat")).await?;
        let client = cluster.client()?;
        let session = client.open_session(None).await?;
        let register = |account: &str| {
            chat_request(Action::Register(chat::Register { account: account.into(), public_key: vec![3; 32] }))
        };
        let answer = chat_answer(&session.execute(register("alice")).await?.response)?;
        ensure!(matches!(answer, Answer::Registered(_)), "{answer:?}");
        let send = chat_request(Action::Send(chat::Send { to: "alice".into(), text: "hi".into() }));
        match chat_answer(&session.execute(send).await?.response)? {
            Answer::Error(error) => ensure!(error.code() == chat::ChatErrorCode::NotLoggedIn, "{error:?}"),
            other => anyhow::bail!("sent without a login: {other:?}"),
        }
        let garbage = chat_answer(&session.execute("\u{1}\u{2}garbage").await?.response)?;
        ensure!(matches!(garbage, Answer::Error(_)), "{garbage:?}");
        let before = cluster.verify().await?;
        cluster.kill(&[0, 1, 2])?;
        cluster.start_all().await?;
        cluster.wait_all_serve().await?;
        let after = cluster.verify().await?;
        ensure!(before["log_index"].as_u64() <= after["log_index"].as_u64(), "{before} {after}");
        let answer = chat_answer(&session.execute(register("alice")).await?.response)?;
        ensure!(matches!(answer, Answer::Error(_)), "an account was registered twice: {answer:?}");
        Ok(())
    });
}

/// A primary that resumed its term after a restart would answer reads at that term's first index, before it has applied the rest.
#[test]
fn linearizable_read_after_a_restart_sees_everything_acknowledged_before_it() {
    scenario(async |s| {
        for nodes in [1, 3] {
            let mut cluster = s.cluster(nodes, &module("counter")).await?;
            let load = Load::start(&cluster, "x", 500).await?;
            load.advance(12_000).await?;
            let acknowledged = load.settle(&cluster).await?;
            let all: Vec<usize> = (0..nodes).collect();
            for _ in 0..2 {
                cluster.kill(&all)?;
                cluster.start_all().await?;
                // Asked from the first moment on: refused for a while, and then whole.
                for index in 0..nodes {
                    let mut node = cluster.node(index).await?;
                    let read = loop {
                        match node.query(within(SECOND, linearizable("get x"))).await {
                            Ok(read) => break read.into_inner(),
                            Err(status) if status.code() == Code::Unavailable => {}
                            Err(status) => anyhow::bail!("{status:?}"),
                        }
                    };
                    ensure!(read.response == acknowledged.to_string(), "{read:?} of {acknowledged} at node {index}");
                }
            }
        }
        Ok(())
    });
}
