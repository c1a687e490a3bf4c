//! Images, in both modes: the log behind them goes away, and who needs what is gone takes the whole state, under load and over crashes.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Load, Scenario, advance, module, replicator, run, scenario, settle, until};

/// An image after some hundred requests.
const OFTEN: &str = "[images]\nlog_bytes = 65536\n";

const MODES: [&str; 2] = ["majority", "chain"];

/// Three replicas, and the witnesses that the mode wants.
async fn cluster(s: &Scenario, mode: &str, images: &str) -> Result<Cluster> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n{images}")).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    Ok(cluster)
}

/// Waits until each of these replicas has dropped some of its log, and more than up to `index`.
async fn purged(cluster: &Cluster, replicas: &[usize], index: u64) -> Result<()> {
    for &replica in replicas {
        cluster
            .wait_status(replica, "drops what is in images", |status| {
                status.purged_log_index > index && status.snapshot_log_index > status.purged_log_index
            })
            .await?;
    }
    Ok(())
}

/// The images' data files of a node, the oldest first.
fn image_files(cluster: &Cluster, replica: usize) -> Result<Vec<PathBuf>> {
    let folder = cluster[replica].data_dir.join("snapshots");
    let mut files = fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "image"));
    files.sort();
    Ok(files)
}

fn flip_a_byte(file: &PathBuf) -> Result<()> {
    let middle = fs::metadata(file)?.len() / 2;
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 0x10], middle)?;
    Ok(())
}

#[test]
fn wiped_node_takes_the_whole_state_under_load() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN).await?;
            let loads = Load::several(&cluster, 2).await?;
            purged(&cluster, &[0, 1, 2], 0).await?;
            cluster.kill(&[2])?;
            fs::remove_dir_all(&cluster[2].data_dir)?;
            advance(&loads, 50).await?;
            cluster.restart(2).await?;
            let whole = cluster.wait_whole_state(2).await?;
            ensure!(whole.bytes == whole.bytes_total && whole.bytes > 0 && whole.log_index > 0, "{mode}: {whole:?}");
            advance(&loads, 50).await?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn node_that_was_away_longer_than_the_log_reaches_takes_the_whole_state() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN).await?;
            let loads = Load::several(&cluster, 2).await?;
            advance(&loads, 50).await?;
            let last = cluster.status(2).await?.last_log_index;
            cluster.kill(&[2])?;
            purged(&cluster, &[0, 1], last + 1_000).await?;
            cluster.restart(2).await?;
            cluster
                .wait_status(2, "goes on from the whole state", |status| {
                    let restart = status.restart.as_ref();
                    restart.is_some_and(|restart| restart.caught_up && restart.whole_state.is_some())
                })
                .await?;
            advance(&loads, 50).await?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn whole_cluster_killed_goes_on_from_its_images_and_the_log_after_them() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN).await?;
            let mut before = 0;
            for round in 0..3 {
                // Each counts for itself.
                let mut loads = Vec::new();
                for load in 0..3 {
                    loads.push(Load::start(&cluster, &format!("round{round}load{load}"), 32).await?);
                }
                purged(&cluster, &[0, 1, 2], before).await?;
                let all: Vec<usize> = (0..cluster.len()).collect();
                cluster.kill(&all)?;
                for node in all {
                    cluster[node].start(&[])?;
                }
                cluster.wait_all_serve().await?;
                for replica in cluster.replicas() {
                    let restart = cluster.status(replica).await?.restart.context("no account of the start")?;
                    ensure!(restart.snapshot_log_index > 0, "{mode}: {restart:?}");
                }
                advance(&loads, 50).await?;
                before = cluster.status(0).await?.purged_log_index;
                settle(&cluster, loads).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn damaged_images_are_made_up_for_by_an_older_one_or_a_peer() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN).await?;
            let loads = Load::several(&cluster, 1).await?;
            purged(&cluster, &[0, 1, 2], 0).await?;
            cluster.kill(&[2])?;
            flip_a_byte(image_files(&cluster, 2)?.last().context("there is an image")?)?;
            let data_dir = cluster[2].data_dir.display().to_string();
            let verified = run(&replicator(), &["log", "verify", "--data-dir", &data_dir], &[]).await?.exits(3)?;
            verified.complains_of(&["1 damage"])?;
            let since = cluster[2].log_bytes();
            cluster.restart(2).await?;
            ensure!(
                cluster[2].told(since)?.contains("an image is damaged, and is removed"),
                "{mode}: it didn't say so"
            );
            advance(&loads, 50).await?;

            cluster.kill(&[2])?;
            image_files(&cluster, 2)?.iter().try_for_each(flip_a_byte)?;
            let since = cluster[2].log_bytes();
            cluster.restart(2).await?;
            ensure!(cluster[2].told(since)?.contains("fetched an image"), "{mode}: it didn't fetch one");
            advance(&loads, 50).await?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn transfer_goes_on_where_a_kill_broke_it_off() {
    scenario(async |s| {
        for mode in MODES {
            let images = format!("{OFTEN}transfer_bytes_per_sec = 20000\n");
            let mut cluster = cluster(s, mode, &images).await?;
            let loads = Load::several(&cluster, 1).await?;
            purged(&cluster, &[0, 1, 2], 0).await?;
            cluster.kill(&[2])?;
            for load in loads {
                load.stop().await?; // So that the image to be fetched stays the same.
            }
            fs::remove_dir_all(&cluster[2].data_dir)?;
            for _ in 0..3 {
                cluster[2].start(&[])?;
                until("something of an image has come", async || {
                    let part = fs::metadata(cluster[2].data_dir.join("snapshots/receiving.image"))?;
                    ensure!(part.len() > 0, "nothing yet");
                    Ok(())
                })
                .await?;
                cluster.kill(&[2])?;
            }
            cluster.restart(2).await?;
            cluster.verify().await?;
        }
        Ok(())
    });
}

#[test]
fn images_are_taken_by_command_and_shown_offline() {
    scenario(async |s| {
        let mut cluster = cluster(s, "majority", "").await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        cluster.replicator(&["snapshot", "take", "n2"]).await?.exits(0)?;
        advance(&loads, 50).await?;
        let taken = cluster.replicator(&["snapshot", "take", "n2", "-o", "json"]).await?.exits(0)?.json()?;
        let status = cluster.status(1).await?;
        ensure!(taken["log_index"] == status.snapshot_log_index, "{taken}, {status:?}");
        ensure!(status.purged_log_index > 0 && status.purged_log_index < status.snapshot_log_index, "{status:?}");
        cluster.replicator(&["snapshot", "take", "n9"]).await?.exits(1)?.complains_of(&["n9"])?;
        settle(&cluster, loads).await?;

        let data_dir = cluster[1].data_dir.display().to_string();
        let offline = async |args: &[&str]| run(&replicator(), &[args, &["--data-dir", &data_dir]].concat(), &[]).await;
        offline(&["snapshot", "list"]).await?.exits(1)?.complains_of(&["in use by process"])?;
        cluster.kill(&[1])?;
        let listed = offline(&["snapshot", "list", "-o", "json"]).await?.exits(0)?.json()?;
        ensure!(listed["images"].as_array().is_some_and(|images| images.len() == 2), "{listed}");
        let shown = offline(&["snapshot", "inspect", "-o", "json"]).await?.exits(0)?.json()?;
        ensure!(shown["log_index"] == taken["log_index"], "{shown}");
        offline(&["snapshot", "inspect", "1"]).await?.exits(1)?.complains_of(&["there are"])?;
        let verified = offline(&["log", "verify", "-o", "json"]).await?.exits(0)?.json()?;
        ensure!(verified["damages"].as_array().is_some_and(Vec::is_empty), "{verified}");
        let dumped = offline(&["log", "dump", "--limit", "5"]).await?.exits(0)?;
        ensure!(dumped.stdout.lines().count() == 5, "{}", dumped.stdout);
        Ok(())
    });
}
