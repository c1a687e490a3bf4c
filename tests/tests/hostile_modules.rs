//! Modules that loop, grow, recurse, panic and lie: refused at the door, or trapped alike on every node, which goes on.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use replicator_client::{
    ErrorReason as Reason,
    proto::{Consistency, NodeState, QueryRequest},
};
use replicator_tests::{Cluster, Requests as _, Scenario, metadata, module, reason, request, scenario, until};
use tonic::Code;

/// A guest that does what a request's first byte says; see the list of deeds in it.
const HOSTILE: &str = include_str!("hostile.wat");

/// Small limits, so that the evil is soon over.
const LIMITS: [&str; 8] =
    ["--apply-fuel", "5000000", "--query-fuel", "5000000", "--memory-pages", "64", "--request-bytes", "50000"];
/// No tick calls the module while a test counts calls.
const NO_TICKS: [&str; 4] = ["--tick-ms", "600000", "--session-ttl-ms", "1800000"];

async fn hostile_cluster(s: &Scenario) -> Result<Cluster> {
    let module = s.file("hostile.wasm", wat::parse_str(HOSTILE)?)?;
    s.cluster_with(3, &module, &[&LIMITS[..], &NO_TICKS[..]].concat()).await
}

/// What every node must say alike of a trap.
#[derive(Debug, PartialEq, Eq)]
struct Trapped {
    message: String,
    log_index: Option<String>,
    state_digest: Option<String>,
}

/// Sends one request under its number to every node, each of which must tell of the same trap.
async fn trapped_everywhere(cluster: &Cluster, session: &Bytes, sequence: u64, evil: &[u8]) -> Result<Trapped> {
    let mut told: Option<Trapped> = None;
    for index in 0..cluster.len() {
        let mut node = cluster.node(index).await?;
        let answer =
            until("the node answers", async || match node.execute(request(session, sequence, evil.to_vec())).await {
                Err(status) if status.code() == Code::Unavailable => anyhow::bail!("{status:?}"),
                answer => Ok(answer),
            });
        let status = answer.await?.err().with_context(|| format!("{evil:?} did not trap"))?;
        ensure!((status.code(), reason(&status)) == (Code::Aborted, Some(Reason::ModuleTrapped)), "{status:?}");
        let trapped = Trapped {
            message: status.message().to_owned(),
            log_index: metadata(&status, "log_index"),
            state_digest: metadata(&status, "state_digest"),
        };
        ensure!(trapped.log_index.is_some() && trapped.state_digest.is_some(), "{trapped:?}");
        if let Some(first) = &told {
            ensure!(*first == trapped, "{first:?} at one node, {trapped:?} at {}", cluster[index].name);
        }
        told = Some(trapped);
    }
    told.context("no nodes")
}

/// Every trap, with a word that its message must have.
const EVIL: [(&[u8], &str); 9] = [
    (b"l", "fuel"),
    (b"r", "stack"),
    (b"u", "panicked"),
    (b"p", "oops"),
    (b"b", "out of bounds"),
    (b"d", "division by zero"),
    (b"xnot a list at all", "malformed"),
    (b"R\xff\xff\xff\xff\xff\xff\xff\x7f", ""),
    (b"g", "panicked"),
];

#[test]
fn every_trap_is_the_same_at_every_node_and_the_next_request_works() {
    scenario(async |s| {
        let mut cluster = hostile_cluster(s).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        let count =
            async |node: &mut replicator_client::proto::replicator_service_client::ReplicatorServiceClient<_>,
                   sequence: u64| {
                let answer = node.execute(request(&session, sequence, "c")).await?.into_inner().response;
                anyhow::Ok(u64::from_le_bytes(answer[..].try_into()?))
            };
        let mut sequence = 1;
        let mut counted = count(&mut node, sequence).await?;
        let first = counted;
        for (evil, word) in EVIL {
            sequence += 1;
            let trapped = trapped_everywhere(&cluster, &session, sequence, evil).await?;
            ensure!(trapped.message.contains(word), "{evil:?}: no {word:?} in {trapped:?}");
            sequence += 1;
            let now = count(&mut node, sequence).await.with_context(|| format!("after {evil:?}"))?;
            ensure!(now > counted, "{counted} calls, then {now}");
            counted = now;
            let echo = node.execute(request(&session, sequence + 1, "ehello")).await?.into_inner();
            sequence += 1;
            ensure!(echo.response == "hello", "{echo:?}");
        }
        // The module counts its calls before it does evil; a trap takes that back. One tick may have come early.
        let calls = 2 * EVIL.len() as u64;
        ensure!(
            counted <= first + calls,
            "{first} calls, then {counted} after {calls} that counted: traps were not taken back"
        );
        // Memory without bound is a limit and not a trap: the module gets -1, and says how much it got.
        let grown = node.execute(request(&session, sequence + 1, "m")).await?.into_inner();
        ensure!(grown.response[..] == 64_u32.to_le_bytes(), "{grown:?}");
        cluster.verify().await?;

        // A restart replays the log, traps and all, to the same state, and to the same stored outcomes.
        let digest = cluster.verify().await?;
        cluster.kill(&[0, 1, 2])?;
        cluster.start_all().await?;
        cluster.wait_all_serve().await?;
        let again = cluster.verify().await?;
        ensure!(again["log_index"].as_u64() >= digest["log_index"].as_u64(), "{again} after {digest}");
        trapped_everywhere(&cluster, &session, 2, b"l").await?;
        let count = node_count(&cluster).await?;
        ensure!(count.iter().all(|n| *n == count[0]), "the module's own count differs: {count:?}");
        Ok(())
    });
}

/// The module's count of its calls, read at each node at one index.
async fn node_count(cluster: &Cluster) -> Result<Vec<Bytes>> {
    let mut counts = Vec::new();
    for index in 0..cluster.len() {
        let query = QueryRequest { request: "c".into(), ..QueryRequest::default() };
        counts.push(cluster.node(index).await?.query(query).await?.into_inner().response);
    }
    Ok(counts)
}

#[test]
fn trap_replayed_alone_gives_the_same_digest_at_the_same_index() {
    scenario(async |s| {
        let mut cluster = hostile_cluster(s).await?;
        let mut node = cluster.node(0).await?;
        let session = node.session(0).await?;
        for (sequence, (evil, _)) in (1..).zip(EVIL) {
            trapped_everywhere(&cluster, &session, sequence, evil).await?;
        }
        // One node replays while the others go on in memory that lived through it all.
        let follower = cluster.others(cluster.wait_primary().await?)[0];
        cluster.kill(&[follower])?;
        cluster.restart(follower).await?;
        let sequence = EVIL.len() as u64;
        node.execute(request(&session, sequence + 1, "ehello")).await?;
        cluster.verify().await?;
        let traps = cluster.status(follower).await?.traps;
        ensure!(traps == sequence, "{traps} traps were replayed, of {sequence}");
        Ok(())
    });
}

#[test]
fn query_that_traps_or_writes_leaves_no_trace() {
    scenario(async |s| {
        let cluster = hostile_cluster(s).await?;
        let before = cluster.verify().await?;
        for index in 0..3 {
            let mut node = cluster.node(index).await?;
            for evil in ["l", "u", "p"] {
                let query = QueryRequest { request: evil.into(), ..QueryRequest::default() };
                let status = node.query(query).await.expect_err("it was answered");
                ensure!((status.code(), reason(&status)) == (Code::Aborted, Some(Reason::ModuleTrapped)), "{status:?}");
            }
            for writes in ["g", "z"] {
                let consistency = Consistency::Local.into();
                node.query(QueryRequest { request: writes.into(), consistency, ..QueryRequest::default() }).await?;
            }
        }
        let after = cluster.verify().await?;
        ensure!(
            (&before["log_index"], &before["state_hash"]) == (&after["log_index"], &after["state_hash"]),
            "{after}"
        );
        Ok(())
    });
}

#[test]
fn description_that_breaks_the_grammar_is_refused_by_init() {
    scenario(async |s| {
        let cluster = s.blank(3).await?;
        for (number, wrong) in ["app=HOSTILE version=1 ", "opp=hostile version=1 "].into_iter().enumerate() {
            let text = HOSTILE.replacen("app=hostile version=1 ", wrong, 1);
            let file = s.file(&format!("{number}.wasm"), wat::parse_str(text)?)?;
            cluster.try_init(&file, &LIMITS).await?.exits(1)?.complains_of(&["the module is refused"])?;
        }
        Ok(())
    });
}

#[test]
fn module_that_is_none_is_refused_by_init_and_a_good_one_then_works() {
    scenario(async |s| {
        let mut cluster = s.blank(3).await?;
        let wasm = |text: String| wat::parse_str(text).context("the test's own text");
        let import = HOSTILE.replacen("(module", "(module (import \"env\" \"clock\" (func $clock (result i64)))", 1);
        let start = HOSTILE.replacen("(func $panic_text", "(start $panic_text) (func $panic_text", 1);
        let threads = HOSTILE.replacen("(memory (export \"memory\") 2)", "(memory (export \"memory\") 2 4 shared)", 1);
        let missing = HOSTILE.replacen("(export \"rsm_query\")", "(export \"rsm_qwery\")", 1);
        let describe = HOSTILE.replacen("app=hostile", "app=hosti\\00e", 1);
        let bad = [
            ("import", wasm(import)?, "import"),
            ("start", wasm(start)?, "start"),
            ("threads", wasm(threads)?, ""),
            ("missing", wasm(missing)?, "rsm_query"),
            ("describe", wasm(describe)?, ""),
            ("empty", Vec::new(), ""),
            ("text", b"#!/bin/sh\necho no module".to_vec(), ""),
            ("cut", wasm(HOSTILE.to_owned())?[..200].to_vec(), ""),
        ];
        for (name, bytes, word) in bad {
            let file = s.file(&format!("{name}.wasm"), bytes)?;
            let refused =
                cluster.try_init(&file, &[]).await?.exits(1)?.complains_of(&["the module is refused", word])?;
            ensure!(!refused.stderr.contains('\u{1b}') && refused.stdout.is_empty(), "{refused:?}");
            for index in 0..3 {
                let status = cluster.status(index).await?;
                ensure!(status.state() == NodeState::Blank && status.cluster_id.is_empty(), "{name}: {status:?}");
            }
        }
        let refused = cluster.try_init(&s.dir().join("nowhere.wasm"), &[]).await?;
        refused.exits(1)?.complains_of(&["nowhere.wasm"])?;
        // One that can be loaded, but not begun, is found out before there is no way back.
        let greedy = s.file("greedy.wasm", wasm(HOSTILE.to_owned())?)?;
        cluster.try_init(&greedy, &[]).await?.exits(1)?.complains_of(&["rsm_input", "don't fit"])?;
        let config = s.file("config", "max_counters=many")?.display().to_string();
        let told = cluster.try_init(&module("counter"), &["--app-config", &config]).await?;
        told.exits(1)?.complains_of(&["max_counters must be a number"])?;
        let told = cluster.try_init(&module("counter"), &["--session-ttl-ms", "1"]).await?;
        told.exits(1)?.complains_of(&["session_ttl_us"])?;
        cluster.init(&module("counter"), &[]).await?;
        cluster.verify().await?;
        Ok(())
    });
}
