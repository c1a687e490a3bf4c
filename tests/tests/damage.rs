//! Damaged files: found, named, never cut away, mended from the peers: the node keeps its disk. Images are in `images.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Load, Scenario, module, replicator, run, scenario, until};

const MODES: [&str; 2] = ["majority", "chain"];

/// A counter cluster with some log, and a replica of it that is stopped.
async fn one_stopped(s: &Scenario, mode: &str) -> Result<(Cluster, usize)> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n")).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    let load = Load::start(&cluster, "before", 8).await?;
    load.advance(200).await?;
    load.settle(&cluster).await?;
    let node = (cluster.wait_primary().await? + 1) % 3;
    cluster[node].shut_down().await?;
    Ok((cluster, node))
}

fn flip(file: &Path, at: usize) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let byte = bytes.get_mut(at).with_context(|| format!("{} has no byte {at}", file.display()))?;
    *byte ^= 0x10;
    fs::write(file, bytes)?;
    Ok(())
}

/// Where the zeros begin that a segment of the log is filled with.
fn written_end(segment: &[u8]) -> usize {
    segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// The only file with this ending in a node's folder.
fn only(folder: PathBuf, ending: &str) -> Result<PathBuf> {
    let files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let found: Vec<_> = files.into_iter().filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    ensure!(found.len() == 1, "{found:?} in {}", folder.display());
    Ok(found[0].clone())
}

/// Runs `replicator log verify`, which must find as much.
async fn verified(cluster: &Cluster, node: usize, damages: usize, words: &[&str]) -> Result<()> {
    let data_dir = cluster[node].data_dir.display().to_string();
    let ran = run(&replicator(), &["log", "verify", "--data-dir", &data_dir, "-o", "json"], &[]).await?;
    let told = ran.exits(if damages > 0 { 3 } else { 0 })?.json()?;
    ensure!(told["damages"].as_array().map(Vec::len) == Some(damages), "{damages} damages: {told}");
    let repairs = told["repairs"].to_string();
    ensure!(words.iter().all(|word| repairs.contains(word)), "{words:?} in {repairs}");
    Ok(())
}

/// Starts the damaged node without any flag: it must say that it mended this file, keep its disk, and be as the others. Stops it again.
async fn mends(cluster: &mut Cluster, node: usize, file: &Path, words: &[&str]) -> Result<()> {
    let since = cluster[node].log_bytes();
    let status = cluster.restart(node).await?;
    let told = cluster[node].told(since)?;
    let named = file.display().to_string();
    for word in [&["mended", named.as_str()], words].concat() {
        ensure!(told.contains(word), "it did not mention {word:?}: {told}");
    }
    let repaired = status.restart.context("no account of the start")?.repaired;
    ensure!(repaired.iter().any(|repaired| repaired.contains(&named)), "status tells of {repaired:?}");
    ensure!(!cluster[node].data_dir.join("set-aside-1").exists(), "something was set aside");
    cluster.verify().await?;
    cluster[node].shut_down().await?;
    verified(cluster, node, 0, &[&named]).await
}

/// The disk that a stopped node's folder says.
async fn disk(cluster: &Cluster, node: usize) -> Result<String> {
    let data_dir = cluster[node].data_dir.display().to_string();
    let told = run(&replicator(), &["log", "verify", "--data-dir", &data_dir, "-o", "json"], &[]).await?.json()?;
    Ok(told["disk_id"].as_str().context("no disk")?.to_owned())
}

/// Starts the damaged node, which must refuse with 3 and these words and leave the file as it is; the others must go on.
async fn refuses(cluster: &mut Cluster, node: usize, file: &Path, words: &[&str]) -> Result<()> {
    let before = fs::read(file)?;
    let since = cluster[node].log_bytes();
    cluster[node].start(&[])?;
    let named = file.display().to_string();
    cluster[node].exits(3, since, &[&[named.as_str(), "--rejoin"], words].concat()).await?;
    ensure!(fs::read(file)? == before, "{named} was changed");
    Ok(())
}

/// Starts the damaged node with --rejoin, and waits until all are equal.
async fn rejoins(cluster: &mut Cluster, node: usize) -> Result<()> {
    cluster[node].start(&["--rejoin"])?;
    cluster.wait_serves(node).await?;
    ensure!(cluster[node].data_dir.join("set-aside-1").is_dir(), "nothing was set aside");
    cluster.verify().await?;
    Ok(())
}

#[test]
fn flipped_byte_in_the_log_is_mended_from_a_peer() {
    scenario(async |s| {
        for mode in MODES {
            let (mut cluster, node) = one_stopped(s, mode).await?;
            let before = disk(&cluster, node).await?;
            let log = only(cluster[node].data_dir.join("log"), ".seg")?;
            let end = written_end(&fs::read(&log)?);
            for at in [1, 4_096, end / 2, end - 9].into_iter().skip(usize::from(mode == "chain")) {
                let what = format!("{mode}: byte {at} of {end}");
                flip(&log, at)?;
                verified(&cluster, node, 1, &[]).await.context(what.clone())?;
                let gave: &[&str] = if at > 1 { &["which n", "byte "] } else { &[] };
                mends(&mut cluster, node, &log, gave).await.context(what)?;
            }
            ensure!(disk(&cluster, node).await? == before, "{mode}: it has another disk");
        }
        Ok(())
    });
}

#[test]
fn lost_ends_and_whole_files_of_the_log_are_mended_from_a_peer() {
    scenario(async |s| {
        for mode in MODES {
            let (mut cluster, node) = one_stopped(s, mode).await?;
            let before = disk(&cluster, node).await?;
            let log = only(cluster[node].data_dir.join("log"), ".seg")?;
            let whole = fs::read(&log)?;
            let end = written_end(&whole);
            let mut zeros = whole.clone();
            zeros[end / 2..].fill(0);
            fs::write(&log, &zeros)?;
            mends(&mut cluster, node, &log, &["which n"]).await.with_context(|| format!("{mode}: half is zeros"))?;
            fs::write(&log, &fs::read(&log)?[..end / 3])?;
            mends(&mut cluster, node, &log, &["which n"]).await.with_context(|| format!("{mode}: it is cut"))?;
            fs::remove_file(&log)?;
            mends(&mut cluster, node, &log, &["which n"]).await.with_context(|| format!("{mode}: it is missing"))?;
            ensure!(disk(&cluster, node).await? == before, "{mode}: it has another disk");
        }
        Ok(())
    });
}

#[test]
fn flipped_byte_in_a_chains_configuration_log_is_mended_from_a_peer() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s, "chain").await?;
        let log = only(cluster[node].data_dir.join("configuration"), ".seg")?;
        let end = written_end(&fs::read(&log)?);
        // The first record is the members; the last one is small, and one wrong byte of such a record is found by its own checks.
        for (at, words) in [(4_100, &["which "][..]), (end - 1, &[])] {
            flip(&log, at)?;
            verified(&cluster, node, 1, &[]).await?;
            mends(&mut cluster, node, &log, words).await.with_context(|| format!("byte {at} of {end}"))?;
        }
        Ok(())
    });
}

#[test]
fn damaged_node_waits_for_the_peers_that_have_what_it_lost() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s, "majority").await?;
        let others = cluster.others(node);
        for &other in &others {
            cluster[other].shut_down().await?;
        }
        let log = only(cluster[node].data_dir.join("log"), ".seg")?;
        let end = written_end(&fs::read(&log)?);
        flip(&log, end / 2)?;
        let damaged = fs::read(&log)?;
        let since = cluster[node].log_bytes();
        cluster[node].start(&[])?;
        let names = [cluster[others[0]].name.clone(), cluster[others[1]].name.clone()];
        until("the node says whom it asks", async || {
            let told = cluster[node].told(since)?;
            ensure!(told.contains("can't start yet") && names.iter().all(|name| told.contains(name)), "{told}");
            Ok(())
        })
        .await?;
        ensure!(fs::read(&log)? == damaged, "the log was changed without a peer");
        // Killed while it waits, and started again: then one peer is enough.
        cluster.kill(&[node])?;
        cluster[node].start(&[])?;
        cluster[others[0]].start(&[])?;
        cluster.wait_serves(node).await?;
        cluster.restart(others[1]).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn damaged_log_that_nobody_else_has_is_refused() {
    scenario(async |s| {
        let mut cluster = s.cluster(1, &module("counter")).await?;
        let load = Load::start(&cluster, "before", 8).await?;
        load.advance(50).await?;
        load.settle(&cluster).await?;
        cluster[0].shut_down().await?;
        let log = only(cluster[0].data_dir.join("log"), ".seg")?;
        let whole = fs::read(&log)?;
        flip(&log, written_end(&whole) / 2)?;
        refuses(&mut cluster, 0, &log, &["byte ", "nobody has"]).await?;
        // What is missing can't be made up, and nothing was changed: with the right bytes it goes on.
        fs::write(&log, &whole)?;
        cluster.restart(0).await?;
        Ok(())
    });
}

#[test]
fn damaged_or_missing_meta_is_mended_from_its_copy_and_both_are_refused() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s, "majority").await?;
        let before = disk(&cluster, node).await?;
        let [meta, copy] = ["meta", "meta.copy"].map(|name| cluster[node].data_dir.join(name));
        flip(&meta, 20)?;
        verified(&cluster, node, 1, &[]).await?;
        mends(&mut cluster, node, &meta, &["checksum"]).await?;
        fs::remove_file(&copy)?;
        mends(&mut cluster, node, &copy, &["missing"]).await?;
        ensure!(disk(&cluster, node).await? == before, "it has another disk");
        flip(&meta, 20)?;
        flip(&copy, 30)?;
        refuses(&mut cluster, node, &meta, &["checksum"]).await?;
        for file in [&meta, &copy] {
            fs::remove_file(file)?;
        }
        let since = cluster[node].log_bytes();
        cluster[node].start(&[])?;
        cluster[node].exits(3, since, &["meta", "missing", "--rejoin"]).await?;
        rejoins(&mut cluster, node).await
    });
}

#[test]
fn bytes_after_the_durable_log_are_a_torn_tail_and_dropped() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s, "majority").await?;
        let log = only(cluster[node].data_dir.join("log"), ".seg")?;
        let mut torn = fs::read(&log)?;
        let end = written_end(&torn).next_multiple_of(8);
        torn[end..end + 33].fill(0x5a);
        fs::write(&log, torn)?;
        cluster.restart(node).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn damaged_or_missing_module_is_fetched_from_a_peer() {
    scenario(async |s| {
        for mode in MODES {
            let (mut cluster, node) = one_stopped(s, mode).await?;
            let file = only(cluster[node].data_dir.join("modules"), ".wasm")?;
            let whole = fs::read(&file)?;
            ensure!(whole == fs::read(module("counter"))?, "another module is stored");
            flip(&file, whole.len() / 2)?;
            mends(&mut cluster, node, &file, &["gave the module"]).await?;
            ensure!(fs::read(&file)? == whole, "{mode}: the damaged module was not replaced");

            fs::remove_file(&file)?;
            cluster.restart(node).await?;
            ensure!(fs::read(&file)? == whole, "{mode}: the missing module was not fetched");
            cluster.verify().await?;
        }
        Ok(())
    });
}
