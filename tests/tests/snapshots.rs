//! Snapshots saved in one file and restored into new clusters, in both modes: exactly what was acknowledged before the place of the save, under another
//! identity, while the old cluster goes on.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::{
    Client,
    proto::{Cursor, NodeState, SubscribeRequest, subscribe_response::Item},
};
use replicator_tests::{
    Cluster, Load, OldHistory, Ran, Scenario, Writes, advance, chat, module, prepared, replicator, run, scenario,
    settle, until,
};
use serde_json::{Value, json};

const MODES: [&str; 2] = ["majority", "chain"];

/// Nodes that aren't started: three replicas, and the witnesses that the mode wants.
async fn blank(s: &Scenario, mode: &str) -> Result<Cluster> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n[images]\nlog_bytes = 262144\n")).await
}

async fn cluster(s: &Scenario, mode: &str, of: &str) -> Result<Cluster> {
    let mut cluster = blank(s, mode).await?;
    cluster.start_all().await?;
    cluster.init(&module(of), &[]).await?;
    Ok(cluster)
}

/// Saves from a running cluster. Returns what JSON the command printed.
async fn save(cluster: &Cluster, file: &Path, flags: &[&str]) -> Result<Value> {
    let file = file.display().to_string();
    cluster.replicator(&[&["snapshot", "save", &file, "-o", "json"], flags].concat()).await?.exits(0)?.json()
}

/// Runs `replicator snapshot restore` for a node.
async fn restore(cluster: &Cluster, index: usize, file: &Path, flags: &[&str]) -> Result<Ran> {
    let (file, config) = (file.display().to_string(), cluster[index].config.display().to_string());
    let args = ["snapshot", "restore", &file, "--config", &config, "-o", "json"];
    run(&replicator(), args.into_iter().chain(flags.iter().copied()), &[]).await
}

/// Makes a running cluster of blank nodes from a saved file, as docs/operations.md says.
async fn restored(cluster: &mut Cluster, mode: &str, file: &Path) -> Result<Value> {
    let flags: &[&str] = if mode == "chain" { &["--witness", "w1,w2"] } else { &[] };
    let told = restore(cluster, 0, file, flags).await?.exits(0)?.json()?;
    cluster[0].start(&[])?;
    cluster.wait_primary_among(&[0]).await?;
    Ok(told)
}

/// Starts the other nodes, and waits until all of them vote.
async fn join(cluster: &mut Cluster) -> Result<()> {
    for index in 1..cluster.len() {
        cluster[index].start(&[])?;
    }
    cluster.wait_all_serve().await?;
    let nodes = cluster.len();
    until("all of them vote, and nobody else has a place", async || {
        let members = cluster.status(0).await?.members;
        ensure!(members.len() == nodes && members.iter().all(|member| member.voter), "{members:?}");
        Ok(())
    })
    .await
}

/// The pushes that a node has for one who has seen none, up to a log index.
async fn pushes_up_to(cluster: &Cluster, index: usize, last: u64) -> Result<Vec<String>> {
    let lineage = cluster.status(index).await?.lineage;
    let after = Some(Cursor { lineage, log_index: 1, ordinal: u32::MAX });
    let request = SubscribeRequest { topics: vec!["counters".into()], after, ..SubscribeRequest::default() };
    let mut events = cluster.node(index).await?.subscribe(request).await?.into_inner();
    let mut pushes = Vec::new();
    loop {
        match events.message().await?.and_then(|message| message.item).context("the events ended")? {
            Item::Push(push) if push.cursor.is_some_and(|at| at.log_index <= last) => {
                pushes.push(String::from_utf8_lossy(&push.payload).into_owned());
            }
            Item::Progress(at) if at.log_index < last => {}
            _ => return Ok(pushes),
        }
    }
}

/// Saves under load from a follower of a cluster of the one mode, and restores into one of the other.
async fn saved_and_restored(s: &Scenario, from: &str, to: &str) -> Result<()> {
    let what = || format!("saved in {from} mode, restored in {to} mode");
    let old = cluster(s, from, "counter").await?;
    let writes = Writes::start(&old, 0).await?;
    let loads = Load::several(&old, 1).await?;
    let history = OldHistory::take(&old, 1).await?;
    writes.advance(200).await?;
    let (before, file) = (writes.acknowledged(), s.dir().join(format!("{from}-{to}")));
    let saved = save(&old, &file, &[]).await?;
    let position = saved["log_index"].as_u64().context("no index")?;
    ensure!(saved["up_to_date"] == true && saved["mode"] == from, "{saved}");
    let name = saved["node_id"].as_str().context("no node")?;
    ensure!(!old[old.wait_primary().await?].name.eq(name), "the primary was asked: {saved}");
    advance(&loads, 50).await?;
    let written = writes.stop().await?;
    let expected = written.iter().filter(|index| **index <= position).count();
    ensure!(before <= expected && expected < written.len(), "{before} {expected} of {}", written.len());
    let path = file.display().to_string();
    let inspected = run(&replicator(), ["snapshot", "inspect", &path, "-o", "json"], &[]).await?.exits(0)?.json()?;
    for key in ["log_index", "cluster_id", "lineage", "state_digest", "data_sha256", "node_id", "modules"] {
        ensure!(inspected[key] == saved[key] && !saved[key].is_null(), "{key}: {inspected} {saved}");
    }

    let mut new = blank(s, to).await?;
    let told = restored(&mut new, to, &file).await?;
    ensure!(new.counter_at(0, "written").await? == expected as u64, "{}: not {expected}", what());
    let (old_status, new_status) = (old.status(0).await?, new.status(0).await?);
    ensure!(old_status.cluster_id != new_status.cluster_id, "it is the same cluster");
    ensure!(old_status.lineage != new_status.lineage && new_status.lineage != 0, "it is the same history");
    ensure!(told["restored"]["lineage"] == format!("{:016x}", new_status.lineage), "{told} {new_status:?}");
    history.is_refused(&new, 0).await.with_context(what)?;
    let pushes = pushes_up_to(&new, 0, position).await?;
    let of_writes: Vec<_> = pushes.iter().filter(|push| push.starts_with("written ")).collect();
    ensure!(of_writes.len() == expected, "{} pushes of {expected}", of_writes.len());
    let in_order = of_writes.iter().zip(1..).all(|(push, number)| **push == format!("written {number}"));
    ensure!(in_order, "{}: {of_writes:?}", what());

    // The first one works alone; the others join under load.
    let more = Writes::start(&new, expected).await?;
    more.advance(20).await?;
    join(&mut new).await.with_context(what)?;
    more.advance(20).await?;
    let total = expected + more.stop().await?.len();
    new.expect_counter("written", total as u64).await?;
    new.verify().await?;
    for replica in 0..3 {
        history.is_refused(&new, replica).await.with_context(what)?;
    }
    // Their votes count.
    new.kill(&[0])?;
    let others: Vec<usize> = (1..new.len()).collect();
    new.wait_primary_among(&others).await?;
    Writes::start(&new, total).await?.advance(20).await?;
    new.restart(0).await?;
    // The old one never noticed.
    settle(&old, loads).await?;
    old.expect_counter("written", written.len() as u64).await?;
    ensure!(old.status(1).await?.lineage == old_status.lineage, "the old cluster's history is another one");
    Ok(())
}

#[test]
fn snapshot_saved_under_load_from_a_follower_begins_a_new_cluster() {
    scenario(async |s| saved_and_restored(s, "majority", "majority").await);
}

#[test]
fn snapshot_saved_under_load_from_a_backup_begins_a_new_chain() {
    scenario(async |s| saved_and_restored(s, "chain", "chain").await);
}

#[test]
fn snapshot_of_a_majority_begins_a_chain() {
    scenario(async |s| saved_and_restored(s, "majority", "chain").await);
}

#[test]
fn snapshot_of_a_chain_begins_a_majority() {
    scenario(async |s| saved_and_restored(s, "chain", "majority").await);
}

/// A request of the journal module.
fn append(number: u64) -> String {
    let hash = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let body = format!("w {number} x");
    format!("append {body} {:016x}", hash(body.as_bytes()))
}

#[test]
fn journal_in_a_restored_cluster_has_lost_and_doubled_nothing_and_goes_on() {
    scenario(async |s| {
        for mode in MODES {
            let old = cluster(s, mode, "journal").await?;
            let session = old.client()?.open_session(None).await?;
            for number in 0..300 {
                session.execute(append(number)).await?;
            }
            let file = s.dir().join(mode);
            save(&old, &file, &["--node", "n3"]).await?;
            for number in 300..310 {
                session.execute(append(number)).await?;
            }
            let mut new = blank(s, mode).await?;
            restored(&mut new, mode, &file).await?;
            join(&mut new).await?;
            let runs = async |cluster: &Cluster, index: usize| {
                let client = cluster.client_of(index)?;
                let answer = client.query("runs w", replicator_client::Consistency::Linearizable, None).await?;
                anyhow::Ok(String::from_utf8_lossy(&answer.response).into_owned())
            };
            let session = new.client()?.open_session(None).await?;
            ensure!(runs(&new, 0).await? == "0 0+300", "{mode}: {}", runs(&new, 0).await?);
            for number in 300..320 {
                session.execute(append(number)).await?;
            }
            for index in 0..3 {
                ensure!(runs(&new, index).await? == "0 0+320", "{mode}: {}", runs(&new, index).await?);
                ensure!(runs(&old, index).await? == "0 0+310", "{mode}: {}", runs(&old, index).await?);
            }
            new.verify().await?;
        }
        Ok(())
    });
}

/// Runs `chat` as a user.
async fn as_user(s: &Scenario, cluster: &Cluster, name: &str, args: &[&str]) -> Result<Ran> {
    let state = s.dir().join(format!("home-of-{name}")).display().to_string();
    let endpoints = cluster.endpoints();
    let environment = [
        ("CHAT_ENDPOINTS", endpoints.as_str()),
        ("CHAT_STATE_DIR", &state),
        ("CHAT_PASSWORD", name),
        ("CHAT_DEADLINE", "20"),
    ];
    run(&chat(), [&["-o", "json"], args].concat(), &environment).await
}

#[test]
fn chat_of_a_restored_cluster_has_its_messages_and_asks_for_a_new_login() {
    scenario(async |s| {
        for mode in MODES {
            let old = cluster(s, mode, "chat").await?;
            for name in ["alice", "bob"] {
                for command in ["register", "login"] {
                    as_user(s, &old, name, &[command, name]).await?.exits(0)?;
                }
            }
            for number in 1..=5 {
                as_user(s, &old, "alice", &["send", "bob", &format!("message {number}")]).await?.exits(0)?;
            }
            let file = s.dir().join(mode);
            save(&old, &file, &[]).await?;
            as_user(s, &old, "alice", &["send", "bob", "after the save"]).await?.exits(0)?;
            let mut new = blank(s, mode).await?;
            restored(&mut new, mode, &file).await?;
            join(&mut new).await?;
            // The login is of the other history. A new one is all it takes.
            as_user(s, &new, "bob", &["messages"]).await?.exits(1)?;
            as_user(s, &new, "bob", &["login", "bob"]).await?.exits(0)?;
            let messages = as_user(s, &new, "bob", &["messages"]).await?.exits(0)?.stdout;
            let there = (1..=5).all(|number| messages.contains(&format!("message {number}")));
            ensure!(there && !messages.contains("after the save"), "{mode}: {messages}");
            fs::remove_dir_all(s.dir().join("home-of-alice"))?;
            fs::remove_dir_all(s.dir().join("home-of-bob"))?;
        }
        Ok(())
    });
}

#[test]
fn old_and_restored_cluster_refuse_each_other() {
    scenario(async |s| {
        let mut old = cluster(s, "majority", "counter").await?;
        let loads = Load::several(&old, 1).await?;
        advance(&loads, 50).await?;
        let file = s.dir().join("saved");
        save(&old, &file, &[]).await?;
        // Its configuration still names the old cluster's other nodes as its peers.
        let mut new = blank(s, "majority").await?;
        new[0].configure([&old[1], &old[2]].into_iter(), "mode = \"majority\"\n")?;
        restored(&mut new, "majority", &file).await?;
        until("the new node was refused by the old ones", async || {
            let log = new[0].told(0)?;
            let told = |name: &str| log.contains(&format!("refuses: {name} belongs to cluster"));
            ensure!(told("n2") && told("n3"), "{log}");
            Ok(())
        })
        .await?;
        // And an old node that is told of the new one as its peer.
        old.kill(&[2])?;
        let since = old[2].log_bytes();
        old[2].configure([&new[0], &old[1]].into_iter(), "mode = \"majority\"\n")?;
        old.restart(2).await?;
        until("the old node was refused by the new one", async || {
            let log = old[2].told(since)?;
            ensure!(log.contains("refuses: n1 belongs to cluster"), "{log}");
            Ok(())
        })
        .await?;
        advance(&loads, 50).await?;
        Writes::start(&new, 0).await?.advance(20).await?;
        ensure!(old.counter_at(1, "written").await? == 0, "the new cluster's writes are in the old one");
        let (old_members, new_members) = (old.status(1).await?.members, new.status(0).await?.members);
        let voters = |members: &[replicator_client::proto::Member]| members.iter().filter(|m| m.voter).count();
        ensure!((voters(&old_members), voters(&new_members)) == (3, 1), "{old_members:?} {new_members:?}");
        for load in loads {
            load.settle(&old).await?;
        }
        Ok(())
    });
}

#[test]
fn killed_restore_leaves_no_node_and_the_same_command_carries_on() {
    scenario(async |s| {
        let old = cluster(s, "chain", "counter").await?;
        let session = old.client()?.open_session(None).await?;
        let pipeline = session.pipeline(64).await?;
        let mut outcomes = Vec::new();
        for number in 0..2_000 {
            outcomes.push(pipeline.submit(format!("add {}{number} {number}", "x".repeat(55))).await?);
        }
        for outcome in outcomes {
            outcome.await?;
        }
        let file = s.dir().join("saved");
        save(&old, &file, &[]).await?;
        let last = format!("{}1999", "x".repeat(55));
        let mut killed_amid = 0;
        // Killed once each of these is there.
        for (round, sign) in
            ["lock", "meta", "modules", "snapshots", "snapshots/receiving.image", "log", "configuration"]
                .into_iter()
                .enumerate()
        {
            let mode = MODES[round % 2];
            let mut new = blank(s, if sign == "configuration" { "chain" } else { mode }).await?;
            let flags: &[&str] = if new.len() > 3 { &["--witness", "w1,w2"] } else { &[] };
            let config = new[0].config.display().to_string();
            let args = ["snapshot", "restore", &file.display().to_string(), "--config", &config].map(str::to_owned);
            let mut command =
                prepared(&replicator(), args.into_iter().chain(flags.iter().map(|f| (*f).to_owned())), &[]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let sign = new[0].data_dir.join(sign);
            while !sign.exists() && child.try_wait()?.is_none() {
                std::hint::spin_loop();
            }
            let _ = child.kill();
            let finished = child.wait()?.success();
            let begun = new[0].data_dir.join("meta").exists() && !finished;
            if begun {
                let since = new[0].log_bytes();
                new[0].start(&[])?;
                // It was killed after the last step, or is no node.
                let told = until("it ends, or serves", async || {
                    if let Ok(status) = new.status(0).await {
                        ensure!(status.state() == NodeState::Primary, "{status:?}");
                        return Ok(None);
                    }
                    let log = new[0].told(since)?;
                    ensure!(log.contains("has not ended"), "{log}");
                    Ok(Some(log))
                })
                .await?;
                if let Some(log) = told {
                    killed_amid += 1;
                    new[0].exits(1, since, &["replicator snapshot restore"]).await.with_context(|| log)?;
                    let told = restore(&new, 0, &file, flags).await?.exits(0)?;
                    told.complains_of(&["carried on"])?;
                } else {
                    new.kill(&[0])?;
                }
            } else if !finished {
                restore(&new, 0, &file, flags).await?.exits(0)?;
            }
            new[0].start(&[])?;
            new.wait_primary_among(&[0]).await?;
            ensure!(new.counter_at(0, &last).await? == 1_999, "something is missing");
        }
        ensure!(killed_amid >= 2, "only {killed_amid} of 7 were killed amid their work");
        Ok(())
    });
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

#[test]
fn wrong_files_flags_and_folders_are_refused_and_change_nothing() {
    scenario(async |s| {
        let mut old = cluster(s, "chain", "counter").await?;
        let writes = Writes::start(&old, 0).await?;
        writes.advance(50).await?;
        let written = writes.stop().await?.len() as u64;
        let (file, copy) = (s.dir().join("saved"), s.dir().join("copy"));
        let path = |path: &PathBuf| path.display().to_string();
        save(&old, &file, &[]).await?;
        let again = ["snapshot", "save", &path(&file)];
        old.replicator(&again).await?.exits(2)?.complains_of(&["exists already", "--force"])?;
        old.replicator(&[&again[..], &["--node", "w1", "--force"]].concat())
            .await?
            .exits(1)?
            .complains_of(&["witness"])?;
        old.replicator(&[&again[..], &["--node", "n9", "--force"]].concat()).await?.exits(1)?.complains_of(&["n9"])?;
        save(&old, &file, &["--force", "--newest"]).await?;
        let nowhere = path(&s.dir().join("no/such/folder/saved"));
        old.replicator(&["snapshot", "save", &nowhere]).await?.exits(1)?.complains_of(&["can't create"])?;

        // Offline: not while it runs, and what the newest image holds.
        let folder = path(&old[1].data_dir);
        let offline = async |flags: &[&str]| {
            run(&replicator(), [&["snapshot", "save", &path(&copy), "--data-dir", &folder], flags].concat(), &[]).await
        };
        offline(&[]).await?.exits(1)?.complains_of(&["in use by process"])?;
        old.kill(&[1])?;
        offline(&["--index", "1"]).await?.exits(1)?.complains_of(&["no image of index 1"])?;
        let saved_offline = match offline(&["-o", "json"]).await? {
            none if none.code == Some(1) => {
                // This one was never asked for an image.
                none.complains_of(&["there is no image in this folder"])?;
                old.restart(1).await?;
                old.replicator(&["snapshot", "take", "n2"]).await?.exits(0)?;
                old.kill(&[1])?;
                offline(&["-o", "json"]).await?.exits(0)?.json()?
            }
            saved => saved.exits(0)?.json()?,
        };
        ensure!(saved_offline["node_id"] == "n2" && saved_offline["up_to_date"].is_null(), "{saved_offline}");
        old.restart(1).await?;

        // Files that aren't whole: refused with the place, and no folder is made.
        let new = blank(s, "chain").await?;
        let bytes = fs::metadata(&file)?.len();
        let whole = fs::read(&file)?;
        for at in [0, 9, 40, bytes / 3, bytes / 2, bytes - 1] {
            flip(&file, at)?;
            restore(&new, 0, &file, &[]).await?.exits(3)?.complains_of(&["byte ", "Nothing was changed"])?;
            run(&replicator(), ["snapshot", "inspect", &path(&file)], &[]).await?.exits(3)?.complains_of(&["byte "])?;
            flip(&file, at)?;
        }
        for len in [0, 11, 100, bytes / 2, bytes - 1] {
            fs::write(&copy, &whole[..usize::try_from(len)?])?;
            restore(&new, 0, &copy, &[]).await?.exits(3)?.complains_of(&[&format!("byte {len}:"), "ends here"])?;
        }
        let foreign = module("counter");
        restore(&new, 0, &foreign, &[]).await?.exits(3)?.complains_of(&["no saved snapshot"])?;
        restore(&new, 0, &s.dir().join("missing"), &[]).await?.exits(1)?.complains_of(&["missing"])?;

        // Settings of no cluster, and folders with something in them.
        restore(&new, 0, &file, &["--witness", "w9"]).await?.exits(2)?.complains_of(&["w9"])?;
        restore(&new, 0, &file, &["--mode", "majority", "--witness", "w1"])
            .await?
            .exits(2)?
            .complains_of(&["only a chain"])?;
        restore(&new, 0, &file, &["--rejoin"]).await?.exits(2)?.complains_of(&["--rejoin"])?;
        ensure!(!new[0].data_dir.exists(), "a refusal made a folder");
        restore(&old, 0, &file, &[]).await?.exits(1)?.complains_of(&["in use by process"])?;
        old.kill(&[0])?;
        restore(&old, 0, &file, &[]).await?.exits(1)?.complains_of(&["isn't empty", "n1"])?;
        old.restart(0).await?;
        old.expect_counter("written", written).await?;

        // Restored as a chain, it can't be started as anything else; and it isn't restored twice.
        let mut new = new;
        restore(&new, 0, &file, &["--witness", "w1,w2"]).await?.exits(0)?;
        restore(&new, 0, &file, &["--witness", "w1,w2"]).await?.exits(1)?.complains_of(&["isn't empty"])?;
        let since = new[0].log_bytes();
        new[0].start(&["--mode", "majority"])?;
        new[0].exits(1, since, &["of mode chain"]).await?;
        // A replica in a witness's place is told so.
        new[0].start(&[])?;
        new.wait_primary_among(&[0]).await?;
        new[3].witness = false;
        new[3].start(&[])?;
        until("the replica in the witness's place is refused", async || {
            let status = new.status(3).await?;
            ensure!(status.state() == NodeState::Blank && status.detail.contains("replicator witness"), "{status:?}");
            Ok(())
        })
        .await?;
        new[3].kill()?;
        new[3].witness = true;
        join(&mut new).await?;
        ensure!(new.counter_at(2, "written").await? == written, "something is missing");
        Ok(())
    });
}

#[test]
fn client_that_was_with_the_old_cluster_is_told_by_the_new_one_and_begins_anew() {
    scenario(async |s| {
        let old = cluster(s, "majority", "counter").await?;
        let session = old.client()?.open_session(None).await?;
        session.execute("add x 1").await?;
        let mut events = old.client()?.subscribe(None, ["counters"], None);
        events.established().await?;
        session.execute("add x 1").await?;
        let cursor = events.next().await.context("no event")??.cursor;
        let file = s.dir().join("saved");
        save(&old, &file, &[]).await?;
        let mut new = blank(s, "majority").await?;
        restored(&mut new, "majority", &file).await?;
        join(&mut new).await?;
        let client: Client = new.client()?;
        let refused = client.subscribe(None, ["counters"], Some(cursor)).next().await;
        let told = format!("{refused:?}");
        ensure!(matches!(refused, Some(Err(replicator_client::Error::LineageMismatch { .. }))), "{told}");
        // From the command line, with the file of the old session.
        let kept = s.dir().join("session").display().to_string();
        let call = async |cluster: &Cluster, request: &str| {
            cluster.replicator(&["call", request, "--session", &kept, "-o", "json"]).await
        };
        call(&old, "add x 1").await?.exits(0)?;
        let refused = call(&new, "add x 1").await?.exits(1)?;
        let error: Value = serde_json::from_str(refused.stderr.lines().last().unwrap_or_default())?;
        ensure!(error["error"]["reason"] == json!("LINEAGE_MISMATCH"), "{error}");
        fs::remove_file(&kept)?;
        call(&new, "add x 1").await?.exits(0)?;
        ensure!(new.counter_at(1, "x").await? == 3 && old.counter_at(1, "x").await? == 3, "not what was acknowledged");
        Ok(())
    });
}

#[test]
fn save_that_is_broken_off_leaves_nothing() {
    scenario(async |s| {
        let settings = "mode = \"majority\"\n[images]\ntransfer_bytes_per_sec = 10000\n";
        let mut cluster = s.prepare_with(3, 0, settings).await?;
        cluster.start_all().await?;
        cluster.init(&module("counter"), &[]).await?;
        let folder = s.dir().join("saves");
        fs::create_dir(&folder)?;
        let names = || anyhow::Ok(fs::read_dir(&folder)?.count());
        let (file, endpoints) = (folder.join("saved").display().to_string(), cluster.endpoints());
        for interrupted in [true, false] {
            let args = ["snapshot", "save", &file, "--node", "n3"];
            let mut command = prepared(&replicator(), args, &[("REPLICATOR_ENDPOINTS", &endpoints)]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            until("a part has come", async || {
                ensure!(names()? == 1, "nothing yet");
                Ok(())
            })
            .await?;
            if interrupted {
                rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)?;
            } else {
                cluster.kill(&[2])?;
            }
            let status = until("it ends", async || child.try_wait()?.context("it runs")).await?;
            ensure!(status.code() == Some(1) && names()? == 0, "{status}, and {} files", names()?);
        }
        Ok(())
    });
}
