//! `replicator bench lag`: what a follower costs the clients that stood still, or lost its disk, and catches up.

use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::Signal;

use super::{
    comparison::{Comparison, Figure, Loads},
    images::{follower, wait_whole_state, wipe},
    load::WARM_UP,
    machine::Machine,
    own::Own,
    state::{Filled, MODULE, NO_IMAGES, take_image, wait_caught_up},
};
use crate::cli::{Failure, cluster::Cluster, output};

#[derive(Debug, Args)]
#[command(
    after_help = "In each round a follower stands still for one load, goes on in the next one and gets what it missed from the log; then its folder is
removed, and it gets the whole state, and the log after it.

  replicator bench lag
  replicator bench lag --state-mib 64 --seconds 10 -o json"
)]
pub(super) struct LagArgs {
    /// Bytes of state, in MiB, which can't be compressed
    #[arg(long, value_name = "MIB", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=900))]
    state_mib: u32,
    /// Clients, each with one write in flight
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value = "6", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// How often all of it is measured, in turn
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    own: Own,
}

/// Bytes of each write.
const WRITE_BYTES: usize = 128;
/// How long the follower may take to catch up.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) async fn run(args: LagArgs) -> Result<(), Failure> {
    let measured = args.own.run(3, MODULE, NO_IMAGES, async |cluster| measure(&args, cluster).await).await?;
    Ok(measured.print(args.own.output.output)?)
}

/// The loads of a round, in their order.
const KEEPS_UP: usize = 0;
const STANDS_STILL: usize = 1;
const COMES_BY_LOG: usize = 2;
const COMES_BY_STATE: usize = 3;

async fn measure(args: &LagArgs, cluster: &mut Cluster) -> anyhow::Result<Comparison> {
    let mut filled = Filled::new(cluster, args.state_mib).await?;
    let machine = Machine::here(Some(cluster.dir()));
    let names =
        ["all keep up", "a follower stands still", "it comes back by the log", "it comes back by the whole state"];
    let mut loads: Vec<Loads> = names.iter().map(|what| Loads { what: (*what).into(), runs: Vec::new() }).collect();
    let (mut by_log, mut by_state, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let load = || filled.load(args.clients, WRITE_BYTES, args.seconds);
        loads[KEEPS_UP].runs.push(load().await?);

        let victim = follower(cluster, filled.primary);
        cluster.signal(victim, Signal::STOP)?;
        let measured = load().await;
        // It missed about this much; now it goes on.
        let back = async {
            tokio::time::sleep(WARM_UP).await;
            cluster.signal(victim, Signal::CONT)?;
            let began = Instant::now();
            wait_caught_up(cluster, victim, PATIENCE).await?;
            Ok::<_, anyhow::Error>(began.elapsed())
        };
        loads[STANDS_STILL].runs.push(measured?);
        let (measured, took) = futures::future::try_join(load(), back).await?;
        loads[COMES_BY_LOG].runs.push(measured);
        by_log.push(took.as_secs_f64());

        purge(cluster, victim).await?;
        wipe(cluster, victim).await?;
        let back = async {
            tokio::time::sleep(WARM_UP).await;
            let began = Instant::now();
            cluster.restart(victim).await?;
            let whole = wait_whole_state(cluster, victim).await?;
            wait_caught_up(cluster, victim, PATIENCE).await?;
            Ok::<_, anyhow::Error>((began.elapsed(), whole))
        };
        let (measured, (took, whole)) = futures::future::try_join(load(), back).await?;
        loads[COMES_BY_STATE].runs.push(measured);
        by_state.push(took.as_secs_f64());
        fetched.push(whole.bytes as f64 / 1e6 / (whole.took_ms.max(1) as f64 / 1e3));
        cluster.wait_serving(victim).await?;
        filled.refresh(cluster).await?;
    }
    let figures = vec![
        Figure::new("back by the log, under load: until caught up", "s", by_log),
        Figure::new("back by the whole state, under load: until caught up", "s", by_state),
        Figure::new("the whole state came with", "MB/s", fetched),
    ];
    let notes = machine.memory_only().into_iter().collect();
    let about = format!(
        "a follower that lags, {} MiB of state; {}, one write of {WRITE_BYTES} bytes in flight each",
        args.state_mib,
        output::count(args.clients as usize, "client"),
    );
    Ok(Comparison { machine, about, notes, loads, figures })
}

/// Has all others take images, so that their logs don't reach a new disk.
pub(super) async fn purge(cluster: &Cluster, node: usize) -> anyhow::Result<()> {
    for other in (0..cluster.len()).filter(|&other| other != node && !cluster.is_witness(other)) {
        for _ in 0..2 {
            take_image(cluster.endpoint(other)).await?;
            // So that the next one is newer.
            cluster.client().open_session(None).await?.close().await?;
        }
    }
    Ok(())
}
