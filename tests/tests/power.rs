//! Power losses: the disks of the nodes forget what was not fsynced, some of them all of it and some of them parts of it in any order, and nothing that was
//! acknowledged is lost, and nothing is done twice.
//!
//! The disks are those of `tests/forgetful`, which mounts them: so these tests need root and FUSE, and are run by `make faults`. `RUNS=2` loses
//! the power twice as often, `SEED=7` begins with that one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use replicator_tests::{Blackout, Cluster, Load, PowerLoss, Scenario, advance, module, number, scenario, settle};

/// Losses of the whole cluster's power that one test plays, for each of `RUNS`.
const LOSSES: u64 = 34;
/// Losses that one cluster lives through.
const LOSSES_PER_CLUSTER: u64 = 17;
/// Small, so that images are taken, received and removed, and segments of the log come and go, whenever the power goes.
const IMAGES: &str = "[images]\nlog_bytes = 65536\n";
/// Answers to each load between two losses.
const ADVANCE: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Majority,
    BackupsFirst,
    Parallel,
}

async fn prepare(s: &Scenario, mode: Mode) -> Result<Cluster> {
    let (witnesses, settings) = match mode {
        Mode::Majority => (0, "mode = \"majority\"\n"),
        Mode::BackupsFirst => (2, "mode = \"chain\"\n[chain]\npersist_order = \"backups-first\"\n"),
        Mode::Parallel => (2, "mode = \"chain\"\n[chain]\npersist_order = \"parallel\"\n"),
    };
    let mut cluster = s.prepare_with(3, witnesses, &format!("{settings}{IMAGES}")).await?;
    cluster.on_forgetful_disks()?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    Ok(cluster)
}

fn everyone(cluster: &Cluster) -> Vec<usize> {
    (0..cluster.len()).collect()
}

/// Loses the power of all nodes at a moment that the seed and the scheduler choose, starts them, and waits until every load goes on.
async fn lose(cluster: &mut Cluster, loads: &[Load], seed: u64, blackout: &mut Blackout) -> Result<()> {
    advance(loads, ADVANCE).await?;
    tokio::time::sleep(Duration::from_micros(seed.wrapping_mul(7_919) % 30_000)).await;
    // Two of three times some of it survives.
    let loss = if seed.is_multiple_of(3) { PowerLoss::Clean } else { PowerLoss::Torn(seed) };
    let all = everyone(cluster);
    cluster.lose_power(&all, loss, blackout)?;
    for &index in &all {
        cluster[index].start(&[])?;
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
            let mut cluster = prepare(s, mode).await?;
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
