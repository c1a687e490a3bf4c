//! `replicator bench replay`: how fast a node that starts applies its log.
//!
//! One node's log is filled, the node is stopped, and started again on so many cores, without an image: it applies all of its log, through
//! replication and the machine, as after any start.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{
    comparison::{Comparison, Figure},
    load::{self, Load, Work},
    machine::{Machine, cpu_seconds},
    own::Own,
    progress::Progress,
    random_name,
    state::{NO_IMAGES, connections, wait_status},
};
use crate::cli::{Failure, cluster::Cluster, output};

#[derive(Debug, Args)]
#[command(after_help = "  replicator bench replay
  replicator bench replay --entries 10000000 --cores 2 -o json")]
pub(super) struct ReplayArgs {
    /// Entries that are written first
    #[arg(long, value_name = "N", default_value = "2000000", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    entries: u64,
    /// Bytes of each request
    #[arg(long, value_name = "B", default_value = "32", value_parser = clap::value_parser!(u32).range(0..=4_000))]
    bytes: u32,
    /// The bundled module that answers them
    #[arg(long, value_name = "NAME", default_value = "echo")]
    module: String,
    /// Cores that the node has when it starts again
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    cores: u32,
    /// How often it starts again
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    own: Own,
}

/// Enough of them to make large batches.
const CLIENTS: usize = 512;
const PATIENCE: Duration = Duration::from_secs(600);
/// The log is filled until it has its entries, however long that takes.
const SECONDS_MAX: f64 = 1e6;

pub(super) async fn run(args: ReplayArgs) -> Result<(), Failure> {
    let measured = args.own.run(1, &args.module, NO_IMAGES, async |cluster| measure(&args, cluster).await).await?;
    Ok(measured.print(args.own.output.output)?)
}

async fn measure(args: &ReplayArgs, cluster: &mut Cluster) -> anyhow::Result<Comparison> {
    let machine = Machine::here(Some(cluster.dir()));
    fill(args, cluster).await?;
    let (mut rates, mut rates_cpu, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let before = cluster.client().status(cluster.endpoint(0), false).await?;
        cluster.stop_one(0).await?;
        let began = Instant::now();
        on_cores(args.cores as usize, || cluster.spawn(0))?;
        let caught_up = |status: &replicator_client::proto::StatusResponse| {
            status.restart.as_ref().is_some_and(|restart| restart.caught_up)
                && status.applied_log_index >= before.applied_log_index
        };
        let status = wait_status(cluster, 0, "apply its log", PATIENCE, caught_up).await?;
        starts.push(began.elapsed().as_secs_f64());
        let pids: Vec<u32> = cluster.pids().map(|(_, pid)| pid).collect();
        let cpu = cpu_seconds(&pids).context("can't tell what the node has used of its cores")?;
        let restart = status.restart.context("it says how it started")?;
        ensure!(restart.snapshot_log_index == 0, "it began with an image, and didn't apply all of its log");
        rates_cpu.push(restart.own_log_index as f64 / cpu.max(0.01));
        rates.push(restart.own_log_index as f64 / (restart.took_ms.max(1) as f64 / 1e3));
    }
    let figures = vec![
        Figure::new("entries applied", "/s", rates),
        Figure::new("entries for each second of CPU, all of the start counted", "/s", rates_cpu),
        Figure::new("from the process's start until all is applied", "s", starts),
    ];
    let about = format!(
        "a start with {} entries of {} bytes each for {}, on {}",
        args.entries,
        args.bytes,
        args.module,
        output::count(args.cores as usize, "core")
    );
    let notes = machine.memory_only().into_iter().collect();
    Ok(Comparison { machine, about, notes, loads: Vec::new(), figures })
}

async fn fill(args: &ReplayArgs, cluster: &Cluster) -> anyhow::Result<()> {
    let load = Load {
        name: random_name()?,
        clients: CLIENTS,
        seconds: SECONDS_MAX,
        requests: Some(args.entries),
        work: Work::Bytes(args.bytes as usize),
        query: None,
        servers: Vec::new(),
    };
    let done = Arc::new(AtomicU64::new(0));
    let _progress = Progress::of_load(&load, Arc::clone(&done));
    let measured = load::run(&load, &connections(cluster.endpoint(0), CLIENTS)?, done).await?;
    ensure!(
        measured.errors == 0,
        "{} requests failed; the first: {}",
        measured.errors,
        measured.first_error.unwrap_or_default()
    );
    Ok(())
}

/// Has what `start` starts run on so many of the cores that this process may use: a child has those of the thread that made it.
fn on_cores<T>(cores: usize, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let own = sched_getaffinity(None).context("can't tell which cores this process may use")?;
    let mut some = CpuSet::new();
    let chosen: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| own.is_set(core)).take(cores).collect();
    ensure!(
        chosen.len() == cores,
        "this process may use {} only; give fewer --cores",
        output::count(chosen.len(), "core")
    );
    chosen.iter().for_each(|&core| some.set(core));
    sched_setaffinity(None, &some).context("can't choose cores")?;
    let started = start();
    sched_setaffinity(None, &own).context("can't go back to all cores")?;
    started
}
