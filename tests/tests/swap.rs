//! Another module takes over under traffic, in both modes: at one index everywhere, with sessions, stored answers and subscriptions intact; one that can't leaves
//! the active one running and says why; whoever was away, or lost its disk, comes to the same.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::{
    ErrorReason as Reason,
    proto::{
        self as pb, ActivateModuleRequest, Cursor, ExecuteResponse, NodeState, SubscribeRequest, UploadModuleRequest,
        subscribe_response::Item,
    },
};
use replicator_tests::{
    Cluster, Load, Requests as _, Scenario, Writes, advance, module, reason, replicator, request, run, scenario,
    settle, until,
};
use serde_json::Value;
use tonic::Code;

const MODES: [&str; 2] = ["majority", "chain"];
/// An image after some hundred requests.
const OFTEN: &str = "[images]\nlog_bytes = 65536\n";

/// Three replicas of the counter module, and the witnesses that the mode wants.
async fn cluster(s: &Scenario, mode: &str, settings: &str) -> Result<Cluster> {
    cluster_with(s, mode, settings, &[]).await
}

async fn cluster_with(s: &Scenario, mode: &str, settings: &str, limits: &[&str]) -> Result<Cluster> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n{settings}")).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), limits).await?;
    Ok(cluster)
}

/// The counter module under another hash: with a section that means nothing.
fn counter_again(s: &Scenario, name: &str) -> Result<PathBuf> {
    let mut bytes = fs::read(module("counter"))?;
    let name_bytes = name.as_bytes();
    let len = u8::try_from(name_bytes.len())?;
    ensure!(len < 0x7f, "a length of one byte");
    bytes.extend([0, len + 1, len]);
    bytes.extend(name_bytes);
    s.file(&format!("{name}.wasm"), bytes)
}

/// A module of any description, which does what `restore` says when it is to take a state over.
fn described(s: &Scenario, name: &str, description: &str, restore: &str) -> Result<PathBuf> {
    let describe = (16_u64 << 32) | description.len() as u64;
    let text = format!(
        r#"(module
          (memory (export "memory") 64)
          (data (i32.const 16) "{description}")
          (func (export "rsm_abi_1"))
          (func (export "rsm_describe") (result i64) (i64.const {describe}))
          (func (export "rsm_input") (param i32) (result i32) (i32.const 65536))
          (func (export "rsm_init") (param i32 i32) (result i32) (i32.const 0))
          (func (export "rsm_apply") (param i32 i32) (result i64) (i64.const 0))
          (func (export "rsm_query") (param i32 i32) (result i64) (i64.const 0))
          (func (export "rsm_snapshot") (param i32) (result i64) (i64.const 0))
          (func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) {restore}))"#
    );
    s.file(&format!("{name}.wasm"), wat::parse_str(text)?)
}

async fn modules(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    let args: Vec<&str> = ["module"].into_iter().chain(args.iter().copied()).chain(["-o", "json"]).collect();
    cluster.replicator(&args).await?.exits(0)?.json()
}

fn hash_of(told: &Value) -> Result<String> {
    Ok(told["sha256"].as_str().with_context(|| format!("no hash in {told}"))?.to_owned())
}

async fn upload(cluster: &Cluster, file: &Path) -> Result<String> {
    hash_of(&modules(cluster, &["upload", &file.display().to_string()]).await?)
}

async fn active(cluster: &Cluster) -> Result<String> {
    let listed = modules(cluster, &["list"]).await?;
    let all = listed["modules"].as_array().context("no list")?;
    hash_of(all.iter().find(|module| module["active"] == true).context("no active module")?)
}

/// Waits until each of these replicas runs the module of this hash.
async fn wait_runs(cluster: &Cluster, replicas: &[usize], hash: &str) -> Result<()> {
    for &replica in replicas {
        let runs = |status: &pb::StatusResponse| hex(&status.module_sha256) == hash;
        cluster.wait_status(replica, "runs the module", runs).await?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks that after write 1 come exactly the ones after it, `written` being the log index of each.
async fn check_pushes(cluster: &Cluster, replica: usize, lineage: u64, written: &[u64]) -> Result<()> {
    let after = Some(Cursor { lineage, log_index: written[0], ordinal: 0 });
    let subscribe = SubscribeRequest { topics: vec!["counters".into()], after, ..SubscribeRequest::default() };
    let mut events = cluster.node(replica).await?.subscribe(subscribe).await?.into_inner();
    let mut pushed = 1;
    while pushed < written.len() {
        let message = events.message().await?.context("the events ended")?;
        let Some(Item::Push(push)) = message.item else { continue };
        let text = String::from_utf8_lossy(&push.payload).into_owned();
        let Some(number) = text.strip_prefix("written ") else { continue };
        ensure!(number == (pushed + 1).to_string(), "{text:?} after {pushed}");
        ensure!(
            push.cursor.as_ref().is_some_and(|at| at.log_index == written[pushed]),
            "{push:?}, not at {}",
            written[pushed]
        );
        pushed += 1;
    }
    Ok(())
}

#[test]
fn another_module_takes_over_under_traffic_and_the_old_one_again() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            let mut cluster = cluster(s, mode, "").await?;
            let loads = Load::several(&cluster, 2).await?;
            let writes = Writes::start(&cluster, 0).await?;
            let mut node = cluster.node(0).await?;
            let session = node.session(0).await?;
            let first: ExecuteResponse = node.execute(request(&session, 1, "add asked 1")).await?.into_inner();
            writes.advance(50).await?;

            let v1 = active(&cluster).await?;
            let v2 = upload(&cluster, &counter_again(s, "v2")?).await?;
            let told = modules(&cluster, &["activate", &v2[..12]]).await?;
            ensure!(
                hash_of(&told)? == v2 && told["already"] == false && told["previous_sha256"] == v1,
                "{mode}: {told}"
            );
            let at = told["log_index"].as_u64().context("no index")?;
            ensure!(at > first.log_index && told["paused_us"].as_u64() > Some(0), "{mode}: {told}");
            wait_runs(&cluster, &[0, 1, 2], &v2).await?;
            for replica in 0..3 {
                let since = cluster.status(replica).await?.module_since_log_index;
                ensure!(since == at, "{mode}: replica {replica} runs it since {since}, not {at}");
            }
            // Asked for again, it is told and not done again.
            let again = modules(&cluster, &["activate", &v2, "--expected", &v1]).await?;
            ensure!(again["already"] == true && again["log_index"] == at, "{mode}: {again}");
            // A request from before gets its stored answer, at every replica.
            for replica in 0..3 {
                let mut node = cluster.node(replica).await?;
                let repeated = node.execute(request(&session, 1, "add asked 1")).await?.into_inner();
                let same = (&repeated.response, repeated.log_index, repeated.state_digest)
                    == (&first.response, first.log_index, first.state_digest);
                ensure!(same, "{mode}: {repeated:?}, first {first:?}");
            }
            let next = node.execute(request(&session, 2, "add asked 1")).await?.into_inner();
            ensure!(next.response == "2" && next.log_index > at, "{mode}: {next:?}");
            writes.advance(50).await?;

            let back = modules(&cluster, &["rollback", "--expected", &v2]).await?;
            ensure!(hash_of(&back)? == v1 && back["already"] == false, "{mode}: {back}");
            let again = modules(&cluster, &["rollback", "--expected", &v2]).await?;
            ensure!(again["already"] == true && again["log_index"] == back["log_index"], "{mode}: {again}");
            let wrong = cluster.replicator(&["module", "activate", &v2, "--expected", &v2]).await?;
            wrong.exits(1)?.complains_of(&["was expected", &v1])?;
            let third = node.execute(request(&session, 3, "add asked 1")).await?.into_inner();
            ensure!(third.response == "3", "{mode}: {third:?}");

            let listed = modules(&cluster, &["list"]).await?;
            let all = listed["modules"].as_array().context("no list")?;
            ensure!(all.len() == 2 && hash_of(&all[0])? == v1 && all[1]["previous"] == true, "{mode}: {listed}");
            ensure!(all[0]["since_log_indexes"].as_array().map(Vec::len) == Some(2), "{mode}: {listed}");
            for module in all {
                let ready =
                    module["nodes"].as_array().is_some_and(|n| n.len() == 3 && n.iter().all(|n| n["state"] == "ready"));
                ensure!(ready && module["bytes"].as_u64() > Some(1_000), "{mode}: {listed}");
            }
            writes.advance(50).await?;
            let lineage = cluster.status(0).await?.lineage;
            let written = writes.stop().await?;
            for replica in 0..3 {
                check_pushes(&cluster, replica, lineage, &written).await.context(mode)?;
            }
            settle(&cluster, loads).await?;

            // The whole history is replayed to the same state, through both swaps.
            cluster.kill(&[0, 1, 2])?;
            for replica in 0..3 {
                cluster[replica].start(&[])?;
            }
            cluster.wait_all_serve().await?;
            ensure!(active(&cluster).await? == v1, "{mode}: after a restart");
            cluster.expect_counter("asked", 3).await?;
            cluster.verify().await?;
        }
        Ok(())
    });
}

#[test]
fn module_that_cannot_take_over_leaves_the_active_one_running_and_says_why() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            // So that a restore without end is soon over.
            let cluster = cluster_with(s, mode, "", &["--restore-fuel", "50000000"]).await?;
            let loads = Load::several(&cluster, 2).await?;
            let v1 = active(&cluster).await?;
            let bad = [
                ("traps", "app=counter version=9 schema=2 accepts_from=1,2", "unreachable", "rsm_restore"),
                ("says-no", "app=counter version=9 schema=2 accepts_from=1,2", "(i32.const 7)", "code 7"),
                ("loops", "app=counter version=9 schema=2 accepts_from=1,2", "(loop $l (br $l)) (i32.const 0)", "fuel"),
                ("other-app", "app=other version=9 schema=1 accepts_from=1", "(i32.const 0)", "app"),
                ("wrong-schema", "app=counter version=9 schema=7 accepts_from=6,7", "(i32.const 0)", "schema"),
            ];
            for (name, description, restore, word) in bad {
                let file = described(s, name, description, restore)?;
                let hash = upload(&cluster, &file).await?;
                let refused = cluster.replicator(&["module", "activate", &hash, "-o", "json"]).await?.exits(1)?;
                ensure!(refused.stderr.contains("MODULE_REFUSED"), "{mode} {name}: {refused:?}");
                refused.complains_of(&[word, "goes on as if nothing had been"])?;
                ensure!(active(&cluster).await? == v1, "{mode}: {name} runs");
                advance(&loads, 10).await?;
            }
            let unknown = "0".repeat(64);
            cluster
                .replicator(&["module", "activate", &unknown])
                .await?
                .exits(1)?
                .complains_of(&["upload it first"])?;
            cluster.replicator(&["module", "rollback"]).await?.exits(1)?.complains_of(&["nothing to roll back to"])?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_module_or_were_damaged_on_the_way_are_not_stored() {
    scenario(async |s| {
        let cluster = cluster(s, "majority", "").await?;
        let good = fs::read(module("counter"))?;
        let cut = s.file("cut.wasm", &good[..good.len() / 2])?;
        let refused = cluster.replicator(&["module", "upload", &cut.display().to_string(), "-o", "json"]).await?;
        refused.exits(1)?.complains_of(&["the module is refused", "MODULE_REFUSED"])?;
        let large = s.file("large.wasm", vec![0; (16 << 20) + 1])?;
        let refused = cluster.replicator(&["module", "upload", &large.display().to_string(), "-o", "json"]).await?;
        refused.exits(1)?.complains_of(&["MODULE_TOO_LARGE"])?;
        let mut admin = cluster.client()?.admin(&cluster[0].client_address).await?;
        let mut other = good.clone();
        other.extend([0, 2, 1, b'x']);
        let hash = hex_bytes(&upload(&cluster, &counter_again(s, "v2")?).await?)?;
        let sent = UploadModuleRequest { chunk: other.into(), sha256: hash.clone().into() };
        let status = admin.upload_module(tokio_stream::iter([sent])).await.err().context("it was taken")?;
        ensure!((status.code(), reason(&status)) == (Code::DataLoss, Some(Reason::ModuleCorrupt)), "{status:?}");
        let short = ActivateModuleRequest { sha256: vec![1, 2, 3].into(), ..ActivateModuleRequest::default() };
        let status = admin.activate_module(short).await.err().context("it was taken")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        let listed = modules(&cluster, &["list"]).await?;
        ensure!(listed["modules"].as_array().map(Vec::len) == Some(2), "{listed}");

        // One that runs is needed, one that was uploaded a moment ago may be; nobody has the third.
        let v1 = active(&cluster).await?;
        cluster.replicator(&["module", "remove", &v1]).await?.exits(1)?.complains_of(&["it is the active one"])?;
        let gone = cluster.replicator(&["module", "remove", &"1".repeat(64)]).await?.exits(0)?;
        ensure!(gone.stdout.contains("had none"), "{gone:?}");
        Ok(())
    });
}

fn hex_bytes(digits: &str) -> Result<Vec<u8>> {
    (0..digits.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&digits[at..at + 2], 16)?)).collect()
}

#[test]
fn node_that_was_down_during_upload_and_activation_fetches_the_module() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            let mut cluster = cluster(s, mode, "").await?;
            let loads = Load::several(&cluster, 2).await?;
            advance(&loads, 20).await?;
            cluster.kill(&[2])?;
            let v2 = upload(&cluster, &counter_again(s, "v2")?).await?;
            modules(&cluster, &["activate", &v2]).await?;
            advance(&loads, 20).await?;
            cluster.restart(2).await?;
            wait_runs(&cluster, &[0, 1, 2], &v2).await?;
            ensure!(cluster[2].data_dir.join(format!("modules/{v2}.wasm")).is_file(), "{mode}: it isn't in the store");
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn wiped_node_joins_after_a_swap_by_image_and_is_ready_to_roll_back() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN).await?;
            let loads = Load::several(&cluster, 2).await?;
            let v1 = active(&cluster).await?;
            let v2 = upload(&cluster, &counter_again(s, "v2")?).await?;
            let told = modules(&cluster, &["activate", &v2]).await?;
            let at = told["log_index"].as_u64().context("no index")?;
            for replica in 0..3 {
                cluster.wait_status(replica, "drops its log", |status| status.purged_log_index > at).await?;
            }
            cluster.kill(&[2])?;
            fs::remove_dir_all(&cluster[2].data_dir)?;
            cluster.restart(2).await?;
            cluster.wait_whole_state(2).await?;
            wait_runs(&cluster, &[2], &v2).await?;
            let store = cluster[2].data_dir.join("modules");
            until("the wiped node has both modules", async || {
                let missing = [&v1, &v2].into_iter().find(|hash| !store.join(format!("{hash}.wasm")).is_file());
                ensure!(missing.is_none(), "{missing:?} is missing");
                Ok(())
            })
            .await?;
            cluster.wait_serves(2).await?;
            let back = modules(&cluster, &["rollback"]).await?;
            ensure!(hash_of(&back)? == v1, "{mode}: {back}");
            wait_runs(&cluster, &[0, 1, 2], &v1).await?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn primary_killed_around_activations_leaves_each_done_once() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            let mut cluster = cluster(s, mode, "").await?;
            let loads = Load::several(&cluster, 2).await?;
            let v1 = active(&cluster).await?;
            let v2 = upload(&cluster, &counter_again(s, "v2")?).await?;
            for round in 0..6_usize {
                let (next, before) = if round % 2 == 0 { (&v2, &v1) } else { (&v1, &v2) };
                let primary = cluster.wait_primary_among(&[0, 1, 2]).await?;
                let endpoints = cluster.endpoints();
                let args = ["module", "activate", next, "--expected", before, "-o", "json"];
                let program = replicator();
                let environment = [("REPLICATOR_ENDPOINTS", endpoints.as_str())];
                let activation = run(&program, args, &environment);
                let deadly = async {
                    // At another moment each time: before it is asked for, while others get ready, or when the entry is on its way.
                    let seen = cluster.status(primary).await?.applied_log_index + 40 * round as u64;
                    let passed = |status: &pb::StatusResponse| status.applied_log_index >= seen;
                    cluster.wait_status(primary, "goes on", passed).await.map(drop)
                };
                tokio::pin!(activation);
                let early = tokio::select! {
                    ran = &mut activation => Some(ran),
                    passed = deadly => { passed?; None }
                };
                cluster.kill(&[primary])?;
                let ran = match early {
                    Some(ran) => ran?,
                    None => activation.await?,
                };
                let told = ran.exits(0)?.json()?;
                ensure!(hash_of(&told)? == *next, "{mode} {round}: {told}");
                cluster.restart(primary).await?;
                wait_runs(&cluster, &[0, 1, 2], next).await?;
                advance(&loads, 10).await?;
            }
            let listed = modules(&cluster, &["list"]).await?;
            let spans = |at: usize| listed["modules"][at]["since_log_indexes"].as_array().map_or(0, Vec::len);
            ensure!(spans(0) + spans(1) == 7, "{mode}: six activations and a beginning, in {listed}");
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn engine_barrier_stops_every_replica_at_one_index_with_an_image_of_it() {
    scenario(async |s| {
        s.may_take(2);
        for mode in MODES {
            let mut cluster = cluster(s, mode, "").await?;
            let load = Load::several(&cluster, 1).await?;
            advance(&load, 20).await?;
            for load in load {
                load.stop().await?;
            }
            let told = cluster.replicator(&["upgrade"]).await?.exits(0)?;
            ensure!(told.stdout.contains("this engine already"), "{told:?}");
            cluster.replicator(&["upgrade", "--to", "engine-of-tomorrow"]).await?.exits(2)?.complains_of(&["--yes"])?;
            let args = ["upgrade", "--to", "engine-of-tomorrow", "--yes", "-o", "json"];
            let barrier =
                cluster.replicator(&args).await?.exits(0)?.json()?["log_index"].as_u64().context("no index")?;
            for replica in 0..3 {
                let status = cluster
                    .wait_status(replica, "stands at the barrier", |status| status.state() == NodeState::Halted)
                    .await?;
                let right = status.applied_log_index == barrier && status.snapshot_log_index == barrier;
                ensure!(right && status.awaited_engine == "engine-of-tomorrow", "{mode}: {status:?}");
                ensure!(status.detail.contains("engine-of-tomorrow"), "{mode}: {}", status.detail);
            }
            // The old program doesn't go on from there, and says so.
            cluster.kill(&[1])?;
            let since = cluster[1].log_bytes();
            cluster[1].start(&[])?;
            until("the old program refuses", async || {
                let log = cluster[1].told(since)?;
                ensure!(log.contains("engine-of-tomorrow") && log.contains("start the program"), "{log}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}
