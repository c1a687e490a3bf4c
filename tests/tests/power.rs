//! Power losses: the disks of the nodes forget what was not fsynced, some of them all of it and some of them parts of it in any order, and nothing that was
//! acknowledged is lost, and nothing is done twice.
//!
//! The disks are those of `tests/forgetful`, which mounts them: so these tests need root and FUSE, and are run by `make faults`. `RUNS=2` loses
//! the power twice as often, `SEED=7` begins with that one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{
    Blackout, Cluster, Load, Mode, PowerLoss, Scenario, advance, module, number, scenario, settle, until,
};

/// Losses of the whole cluster's power that one test plays, for each of `RUNS`.
const LOSSES: u64 = 34;
/// Losses that one cluster lives through.
const LOSSES_PER_CLUSTER: u64 = 17;
/// Small, so that images are taken, received and removed, and segments of the log come and go, whenever the power goes.
const IMAGES: &str = "[images]\nlog_bytes = 65536\n";
/// Answers to each load between two losses.
const ADVANCE: u64 = 20;

async fn cluster(s: &Scenario, mode: Mode) -> Result<Cluster> {
    let mut cluster = mode.prepare(s, IMAGES).await?;
    cluster.on_forgetful_disks()?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    Ok(cluster)
}

fn everyone(cluster: &Cluster) -> Vec<usize> {
    (0..cluster.len()).collect()
}

/// What is acknowledged of each load.
fn acknowledged(loads: &[Load]) -> Vec<(String, u64)> {
    loads.iter().map(|load| (load.name().to_owned(), load.acknowledged())).collect()
}

/// Loses the power of all nodes at a moment that the seed and the scheduler choose, starts them, checks that all that was acknowledged before
/// is there, and waits until every load goes on.
async fn lose(cluster: &mut Cluster, loads: &[Load], seed: u64, blackout: &mut Blackout) -> Result<()> {
    advance(loads, ADVANCE).await?;
    tokio::time::sleep(Duration::from_micros(seed.wrapping_mul(7_919) % 30_000)).await;
    // Two of three times some of it survives.
    let loss = if seed.is_multiple_of(3) { PowerLoss::Clean } else { PowerLoss::Torn(seed) };
    let all = everyone(cluster);
    cluster.lose_power(&all, loss, blackout)?;
    let before = acknowledged(loads);
    for &index in &all {
        cluster[index].start(&[])?;
    }
    let node = usize::try_from(seed % 3).context("a small number")?;
    for (name, acknowledged) in before {
        let found = until("a node answers", async || cluster.counter_at(node, &name).await).await?;
        ensure!(found >= acknowledged, "LOST: {acknowledged} of {name} were acknowledged, and {found} are there");
    }
    advance(loads, ADVANCE).await
}

/// Plays its losses, on clusters one after the other.
fn play(name: &str, mode: Mode) {
    let (runs, first) = (number("RUNS", 1), number("SEED", 1));
    let seeds: Vec<u64> = (first..first + LOSSES * runs).collect();
    let (mut blackout, mut acknowledged, began) = (Blackout::default(), 0, Instant::now());
    for seeds in seeds.chunks(usize::try_from(LOSSES_PER_CLUSTER).expect("a small number")) {
        scenario(async |s| {
            s.run_again_by(format!("make faults TEST={name} SEED={} RUNS={runs}", seeds[0]));
            s.may_take(2);
            let mut cluster = cluster(s, mode).await?;
            let loads = Load::several(&cluster, 2).await?;
            for &seed in seeds {
                let lost = lose(&mut cluster, &loads, seed, &mut blackout).await;
                if lost.is_err() {
                    cluster.keep_disks()?;
                }
                lost.with_context(|| format!("seed {seed}, {mode:?}"))?;
            }
            cluster.wait_all_serve().await?;
            acknowledged += loads.iter().map(Load::acknowledged).sum::<u64>();
            settle(&cluster, loads).await
        });
    }
    assert!(blackout.forgot > 0, "no disk had anything to forget: the losses take nothing");
    println!(
        "{name}: the power of all nodes lost {} times, {acknowledged} requests acknowledged, 0 lost; {} of {} disks had something to forget, {} blocks and {} names \
         in all; {:.1} s",
        seeds.len(),
        blackout.forgot,
        blackout.losses,
        blackout.unsynced.blocks,
        blackout.unsynced.names,
        began.elapsed().as_secs_f64()
    );
}

#[test]
#[ignore = "needs root: make faults"]
fn power_loss_in_majority_mode_loses_nothing_acknowledged() {
    play("power_loss_in_majority_mode", Mode::Majority);
}

#[test]
#[ignore = "needs root: make faults"]
fn power_loss_in_a_chain_backups_first_loses_nothing_acknowledged() {
    play("power_loss_in_a_chain_backups_first", Mode::BackupsFirst);
}

#[test]
#[ignore = "needs root: make faults"]
fn power_loss_in_a_parallel_chain_loses_nothing_acknowledged() {
    play("power_loss_in_a_parallel_chain", Mode::Parallel);
}

/// One replica alone loses its power, again and again, while the others go on.
#[test]
#[ignore = "needs root: make faults"]
fn replica_that_loses_its_power_comes_back_while_the_others_go_on() {
    for mode in Mode::ALL {
        scenario(async |s| {
            let mut cluster = cluster(s, mode).await?;
            let loads = Load::several(&cluster, 1).await?;
            let mut blackout = Blackout::default();
            for seed in 0..6 {
                advance(&loads, ADVANCE).await?;
                let victim = usize::try_from(seed % 3).context("a small number")?;
                cluster.lose_power(&[victim], PowerLoss::Torn(seed), &mut blackout)?;
                advance(&loads, ADVANCE).await.with_context(|| format!("{mode:?}: without {victim}"))?;
                cluster.restart(victim).await.with_context(|| format!("{mode:?}: {victim}, seed {seed}"))?;
            }
            ensure!(blackout.forgot > 0, "nothing was forgotten");
            cluster.wait_all_serve().await?;
            settle(&cluster, loads).await
        });
    }
}

/// That these tests can fail: where fsync does nothing, they find what it loses.
#[test]
#[ignore = "needs root: make faults"]
fn disks_that_lie_about_every_fsync_are_found_to_lose_what_was_acknowledged() {
    for mode in Mode::ALL {
        scenario(async |s| {
            let mut cluster = cluster(s, mode).await?;
            let loads = Load::several(&cluster, 1).await?;
            advance(&loads, ADVANCE).await?;
            for index in everyone(&cluster) {
                cluster.disk(index).lie_about_syncs(Some(""));
            }
            advance(&loads, 5 * ADVANCE).await?;
            // A multiple of 3: nothing that was not fsynced survives.
            let lost = lose(&mut cluster, &loads, 3, &mut Blackout::default()).await;
            let told = format!("{:#}", lost.err().context("nothing was lost, though no fsync did anything")?);
            println!("{mode:?}: {told}");
            ensure!(told.contains("LOST"), "{told}");
            Ok(())
        });
    }
}

/// A disk that lies, among honest ones: a voter is found out by what the others remember of it (safety rule 2), and who was in a chain comes back behind it
/// and counts for nothing until it holds everything.
#[test]
#[ignore = "needs root: make faults"]
fn node_whose_disk_lied_does_not_count() {
    for mode in Mode::ALL {
        scenario(async |s| {
            let mut cluster = cluster(s, mode).await?;
            let loads = Load::several(&cluster, 1).await?;
            advance(&loads, ADVANCE).await?;
            cluster.disk(1).lie_about_syncs(Some(""));
            advance(&loads, 5 * ADVANCE).await?;
            let mut blackout = Blackout::default();
            cluster.lose_power(&[1], PowerLoss::Clean, &mut blackout)?;
            ensure!(blackout.unsynced.blocks > 0, "it had nothing to lie about");
            cluster.disk(1).lie_about_syncs(None);
            // The others have made an epoch without it.
            advance(&loads, ADVANCE).await?;
            let since = cluster[1].log_bytes();
            cluster[1].start(&[])?;
            if mode == Mode::Majority {
                cluster[1].exits(3, since, &["old copy", "--rejoin"]).await?;
                cluster[1].start(&["--rejoin"])?;
            }
            cluster.wait_serves(1).await.with_context(|| format!("{mode:?}"))?;
            ensure!(mode == Mode::Majority || cluster[1].told(since)?.contains("is not in the chain"), "it counted");
            settle(&cluster, loads).await
        });
    }
}
