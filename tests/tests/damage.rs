//! Damaged files: found, named, never cut away, healed from the peers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Load, Scenario, module, scenario};

/// A counter cluster with some log, and a node of it that is stopped.
async fn one_stopped(s: &Scenario) -> Result<(Cluster, usize)> {
    let mut cluster = s.cluster(3, &module("counter")).await?;
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

/// Starts the damaged node, which must refuse with 3 and these words and leave the file as it is; the others must go on.
async fn refuses(cluster: &mut Cluster, node: usize, file: &Path, words: &[&str]) -> Result<()> {
    let before = fs::read(file)?;
    let since = cluster[node].log_bytes();
    cluster[node].start(&[])?;
    let named = file.display().to_string();
    cluster[node].exits(3, since, &[&[named.as_str(), "--rejoin"], words].concat()).await?;
    ensure!(fs::read(file)? == before, "{named} was changed");
    let session = cluster.client()?.open_session(None).await?;
    session.execute("add meanwhile 1").await?;
    cluster.verify_some(2).await?;
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
fn flipped_byte_in_the_log_is_refused_at_its_offset_and_rejoin_heals() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s).await?;
        let log = only(cluster[node].data_dir.join("log"), ".seg")?;
        let whole = fs::read(&log)?;
        let end = written_end(&whole);
        for at in [1, 4096, end / 2, end - 9] {
            flip(&log, at)?;
            refuses(&mut cluster, node, &log, &["byte "]).await.with_context(|| format!("byte {at} of {end}"))?;
            fs::write(&log, &whole)?;
        }
        flip(&log, end / 3)?;
        rejoins(&mut cluster, node).await
    });
}

#[test]
fn flipped_byte_in_meta_is_refused_and_rejoin_heals() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s).await?;
        let meta = cluster[node].data_dir.join("meta");
        flip(&meta, 20)?;
        refuses(&mut cluster, node, &meta, &["checksum"]).await?;
        rejoins(&mut cluster, node).await
    });
}

#[test]
fn missing_meta_is_refused_and_rejoin_heals() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s).await?;
        fs::remove_file(cluster[node].data_dir.join("meta"))?;
        let since = cluster[node].log_bytes();
        cluster[node].start(&[])?;
        cluster[node].exits(3, since, &["meta", "missing", "--rejoin"]).await?;
        rejoins(&mut cluster, node).await
    });
}

#[test]
fn log_that_lost_what_was_durable_is_refused_and_rejoin_heals() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s).await?;
        let log = only(cluster[node].data_dir.join("log"), ".seg")?;
        let whole = fs::read(&log)?;
        let end = written_end(&whole);
        for lost in [9, 100, end / 2] {
            let mut bytes = whole.clone();
            bytes[end - lost..].fill(0);
            fs::write(&log, bytes)?;
            refuses(&mut cluster, node, &log, &["durable"]).await.with_context(|| format!("{lost} bytes lost"))?;
        }
        for size in [0, 4096, whole.len() / 2, whole.len() - 1] {
            fs::write(&log, &whole[..size])?;
            refuses(&mut cluster, node, &log, &["byte "]).await.with_context(|| format!("cut to {size} bytes"))?;
        }
        rejoins(&mut cluster, node).await
    });
}

#[test]
fn bytes_after_the_durable_log_are_a_torn_tail_and_dropped() {
    scenario(async |s| {
        let (mut cluster, node) = one_stopped(s).await?;
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
        let (mut cluster, node) = one_stopped(s).await?;
        let file = only(cluster[node].data_dir.join("modules"), ".wasm")?;
        let whole = fs::read(&file)?;
        ensure!(whole == fs::read(module("counter"))?, "another module is stored");
        flip(&file, whole.len() / 2)?;
        cluster.restart(node).await?;
        ensure!(fs::read(&file)? == whole, "the damaged module was not replaced");
        cluster.verify().await?;

        cluster[node].shut_down().await?;
        fs::remove_file(&file)?;
        cluster.restart(node).await?;
        ensure!(fs::read(&file)? == whole, "the missing module was not fetched");
        cluster.verify().await?;
        Ok(())
    });
}
