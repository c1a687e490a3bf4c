//! The offline engine over the folders of stopped clusters, in both modes: the state at any index is what the nodes said of it, a run that was kept
//! comes out the same, a new module is compared over the real log, and the folders stay as they are.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Ran, Scenario, Writes, module, replicator, run, scenario};
use serde_json::Value;

/// Runs `replicator` with these arguments.
async fn command(args: &[&str]) -> Result<Ran> {
    run(&replicator(), args.iter().copied(), &[]).await
}

async fn json(args: &[&str]) -> Result<Value> {
    command(&[args, &["-o", "json"]].concat()).await?.exits(0)?.json()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Every file of a folder and what it holds.
fn content(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(content(&path)?);
        } else {
            found.insert(text(&path), fs::read(&path)?);
        }
    }
    Ok(found)
}

/// A module that does the same, and is another file: with a custom section more.
fn rebuilt(s: &Scenario, of: &Path) -> Result<String> {
    let bytes = [fs::read(of)?, b"\0\x06\x05again".to_vec()].concat();
    Ok(text(&s.file("rebuilt.wasm", bytes)?))
}

/// A cluster that has executed so many writes, stopped; with what its first node said of itself before: index, digest, state hash.
async fn stopped(s: &Scenario, mode: &str, writes: usize, settings: &str) -> Result<(Cluster, u64, u64, u64, usize)> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n{settings}")).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    let load = Writes::start(&cluster, 0).await?;
    load.advance(writes).await?;
    if !settings.is_empty() {
        cluster.wait_status(0, "drops its log", |status| status.purged_log_index > 100).await?;
    }
    let written = load.stop().await?.len();
    cluster.verify().await?;
    let told = cluster.client()?.status(&cluster[0].client_address, true).await?;
    for index in 0..cluster.len() {
        cluster[index].shut_down().await?;
    }
    Ok((cluster, told.applied_log_index, told.state_digest, told.state_hash, written))
}

/// Everything, over the folder of one node.
async fn offline(s: &Scenario, mode: &str) -> Result<()> {
    let (cluster, applied, digest, hash, written) = stopped(s, mode, 300, "").await?;
    let dir = cluster[0].data_dir.clone();
    let (folder, at) = (text(&dir), applied.to_string());
    let before = content(&dir)?;

    // The state is the one that the node had.
    let query = ["replay", &folder, "--until", &at, "--to-end", "--query", "get written"];
    let told = json(&query).await?;
    ensure!(told["log_index"] == applied && told["state_digest"] == format!("{digest:016x}"), "{told}");
    ensure!(told["state_hash"] == format!("{hash:016x}"), "not {hash:016x}: {told}");
    ensure!(told["queries"][0]["response"].as_str() == Some(&*written.to_string()), "{written} were written: {told}");
    ensure!(told["applied"]["kinds"]["request"] == written, "{told}");
    // By itself it goes as far as is known to be committed, and says how far that is.
    let known = command(&["replay", &folder, "-o", "json"]).await?;
    match known.code {
        Some(0) => {
            let known = known.json()?;
            ensure!(known["log_index"] == known["committed_log_index"], "{known}");
            ensure!(known["last_log_index"].as_u64() >= known["log_index"].as_u64(), "{known}");
        }
        _ => drop(known.exits(1)?.complains_of(&["--to-end"])?),
    }
    command(&["replay", &folder, "--until", "99999999"]).await?.exits(2)?.complains_of(&["99999999", "last entry"])?;

    // What changed over the last hundred entries.
    let from = (applied - 100).to_string();
    let changed = json(&["replay", &folder, "--to-end", "--diff", &from, &at]).await?;
    ensure!(changed["after"]["state_hash"] == format!("{hash:016x}"), "{changed}");
    ensure!(changed["applied"]["entries"] == 100 && changed["memory"]["differing"].as_u64() > Some(0), "{changed}");
    command(&["replay", &folder, "--to-end", "--diff", &at, &from]).await?.exits(2)?;

    kept(s, &folder, &at, written).await?;
    compared(s, &folder, &at, written).await?;
    ensure!(content(&dir)? == before, "something in the folder was changed");
    Ok(())
}

/// A run that is kept comes out the same, and another module's differs from the first request on.
async fn kept(s: &Scenario, folder: &str, at: &str, written: usize) -> Result<()> {
    let fixture = text(&s.dir().join("run.fixture"));
    let export = ["replay", folder, "--until", at, "--to-end", "--export", &fixture];
    json(&export).await?;
    command(&export).await?.exits(2)?.complains_of(&["--force"])?;
    let again = json(&["replay", &fixture]).await?;
    ensure!(again["equal"] == true && again["applied"]["kinds"]["request"] == written, "{again}");
    let counter = text(&module("counter"));
    let same = json(&["replay", &fixture, "--module", &counter]).await?;
    ensure!(same["equal"] == true, "{same}");
    let other = command(&["replay", &fixture, "--module", &text(&module("echo")), "-o", "json"]).await?.exits(3)?;
    let other = other.json()?;
    ensure!(other["differing"] == written && other["first"]["now"]["text"] == "add written 1", "{other}");
    let checked = json(&["module", "check", &counter, "--log", &fixture]).await?;
    ensure!(checked["refused"] == false && checked["nondeterministic"] == false, "{checked}");

    let mut bytes = fs::read(&fixture)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = text(&s.file("damaged.fixture", bytes)?);
    command(&["replay", &damaged]).await?.exits(3)?.complains_of(&["damaged at byte"])?;
    Ok(())
}

/// A rebuilt module does the same, another application is refused, and the one that runs isn't compared with itself.
async fn compared(s: &Scenario, folder: &str, at: &str, written: usize) -> Result<()> {
    let rebuilt = rebuilt(s, &module("counter"))?;
    let told = json(&["module", "diff", &rebuilt, "--data-dir", folder, "--until", at, "--to-end"]).await?;
    ensure!(told["differing"] == 0 && told["state"]["equal"] == true, "{told}");
    ensure!(told["applied"]["kinds"]["request"] == written, "{told}");
    let against = json(&["replay", folder, "--against", &rebuilt, "--until", at, "--to-end"]).await?;
    ensure!(against["differing"] == 0, "{against}");
    let other = text(&module("chat"));
    let refused = command(&["module", "diff", &other, "--data-dir", folder, "--until", at, "--to-end"]).await?;
    refused.exits(1)?.complains_of(&["\"chat\"", "\"counter\""])?;
    let same = text(&module("counter"));
    let refused = command(&["module", "diff", &same, "--data-dir", folder, "--until", at, "--to-end"]).await?;
    refused.exits(2)?.complains_of(&["nothing to compare"])?;
    Ok(())
}

#[test]
fn stopped_majority_is_replayed_compared_and_left_as_it_is() {
    scenario(async |s| offline(s, "majority").await);
}

#[test]
fn stopped_chain_is_replayed_compared_and_left_as_it_is() {
    scenario(async |s| offline(s, "chain").await);
}

#[test]
fn log_behind_an_image_is_replayed_from_it_and_kept_with_it() {
    scenario(async |s| {
        let settings = "[images]\nlog_bytes = 262144\n";
        let (cluster, applied, _, hash, written) = stopped(s, "majority", 12_000, settings).await?;
        let (folder, at) = (text(&cluster[0].data_dir), applied.to_string());
        let told = json(&["replay", &folder, "--until", &at, "--to-end", "--query", "get written"]).await?;
        ensure!(told["began_with_image"].is_u64() && told["state_hash"] == format!("{hash:016x}"), "{told}");
        ensure!(told["queries"][0]["response"].as_str() == Some(&*written.to_string()), "{told}");
        command(&["replay", &folder, "--until", "3"]).await?.exits(2)?.complains_of(&["image is of entry"])?;
        let fixture = text(&s.dir().join("run.fixture"));
        json(&["replay", &folder, "--until", &at, "--to-end", "--export", &fixture]).await?;
        let again = json(&["replay", &fixture]).await?;
        ensure!(again["equal"] == true && again["state_hash"] == format!("{hash:016x}"), "{again}");
        let counter = text(&module("counter"));
        let other = command(&["replay", &fixture, "--module", &counter]).await?;
        other.exits(1)?.complains_of(&["begins with the image"])?;
        let checked = json(&["module", "check", &counter, "--log", &fixture]).await?;
        ensure!(checked["nondeterministic"] == false && checked["refused"] == false, "{checked}");
        Ok(())
    });
}

#[test]
fn running_node_and_damaged_log_are_refused() {
    scenario(async |s| {
        let mut cluster = s.cluster(1, &module("counter")).await?;
        let load = Writes::start(&cluster, 0).await?;
        load.advance(50).await?;
        load.stop().await?;
        let folder = text(&cluster[0].data_dir);
        command(&["replay", &folder]).await?.exits(1)?.complains_of(&["in use"])?;
        cluster[0].shut_down().await?;
        // The only voter: all that is durable is committed.
        let told = json(&["replay", &folder]).await?;
        ensure!(told["log_index"] == told["last_log_index"], "{told}");
        command(&["replay", &text(s.dir())]).await?.exits(1)?.complains_of(&["holds no node"])?;

        let segment = fs::read_dir(cluster[0].data_dir.join("log"))?.filter_map(Result::ok).map(|entry| entry.path());
        let segment = segment.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).min();
        let segment = segment.context("no segment")?;
        let mut bytes = fs::read(&segment)?;
        bytes[4_096 + 100] ^= 1;
        fs::write(&segment, &bytes)?;
        command(&["replay", &folder]).await?.exits(3)?.complains_of(&["log"])?;
        ensure!(fs::read(&segment)? == bytes, "the damage was mended");
        Ok(())
    });
}

/// A module beside the one that runs, while that goes on under load: from the log's beginning, and from an image.
async fn compared_online(s: &Scenario, mode: &str, settings: &str, writes: usize) -> Result<Value> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n{settings}")).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    let load = Writes::start(&cluster, 0).await?;
    load.advance(writes).await?;
    let rebuilt = rebuilt(s, &module("counter"))?;
    let told = cluster.replicator(&["module", "diff", &rebuilt, "-o", "json"]).await?.exits(0)?.json()?;
    ensure!(told["differing"] == 0 && told["state"]["equal"] == true, "{told}");
    ensure!(told["active"]["module_sha256"] != told["new"]["module_sha256"], "{told}");
    // After a swap the log names a module that the image doesn't have, or the other way round.
    cluster.replicator(&["module", "activate", &rebuilt]).await?.exits(0)?;
    let original = text(&module("counter"));
    let swapped = cluster.replicator(&["module", "diff", &original, "-o", "json"]).await?.exits(0)?.json()?;
    ensure!(swapped["active"]["module_sha256"] == told["new"]["module_sha256"], "{swapped}");
    ensure!(swapped["differing"] == 0 && swapped["state"]["equal"] == true, "{swapped}");
    let (hash, copy) =
        (swapped["active"]["module_sha256"].as_str().context("a hash")?, text(&s.dir().join("copy.wasm")));
    cluster.replicator(&["module", "download", &hash[..12], &copy]).await?.exits(0)?;
    ensure!(fs::read(&copy)? == fs::read(&rebuilt)?, "another module was downloaded");
    cluster.replicator(&["module", "download", &hash[..12], &copy]).await?.exits(1)?.complains_of(&["can't make"])?;
    let refused = cluster.replicator(&["module", "diff", &text(&module("chat")), "--node", "n1"]).await?;
    refused.exits(1)?.complains_of(&["\"chat\""])?;
    let acknowledged = load.acknowledged();
    load.advance(50).await?;
    let written = load.stop().await?.len();
    ensure!(written > acknowledged, "the cluster stood still");
    cluster.expect_counter("written", written as u64).await?;
    Ok(told)
}

#[test]
fn running_majority_is_compared_from_the_beginning_while_it_goes_on() {
    scenario(async |s| {
        let told = compared_online(s, "majority", "", 400).await?;
        ensure!(told["applied"]["kinds"]["request"].as_u64() >= Some(400), "{told}");
        Ok(())
    });
}

#[test]
fn running_chain_is_compared_from_an_image_while_it_goes_on() {
    scenario(async |s| {
        let told = compared_online(s, "chain", "[images]\nlog_bytes = 262144\n", 12_000).await?;
        ensure!(told["from_log_index"].as_u64() > Some(100), "{told}");
        Ok(())
    });
}
