//! `replicator bench traps`: what requests that trap cost the clients whose requests don't.
//!
//! Each trap is rolled back on every replica, on the thread that applies all entries: others wait for it. The clients that trap do nothing else, and
//! send the next request when the answer has come.

use clap::Args;

use super::{
    comparison::{Comparison, Figure, Loads},
    machine::Machine,
    own::Own,
    state::{Filled, MODULE, NO_IMAGES},
};
use crate::cli::{Failure, cluster::Cluster, output};

#[derive(Debug, Args)]
#[command(after_help = "  replicator bench traps
  replicator bench traps --state-mib 512 --trapping 1,64")]
pub(super) struct TrapsArgs {
    /// Bytes of state, in MiB
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=900))]
    state_mib: u32,
    /// Clients whose writes don't trap, each with one in flight
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// Clients that trap all the time; several numbers are several loads
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trapping: Vec<u32>,
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value = "6", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// How often all of it is measured, in turn
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many replicas to start; a majority cluster has 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: usize,
    #[command(flatten)]
    own: Own,
}

/// Bytes of each write.
const WRITE_BYTES: usize = 128;

pub(super) async fn run(args: TrapsArgs) -> Result<(), Failure> {
    let measured = args.own.run(args.nodes, MODULE, NO_IMAGES, async |cluster| measure(&args, cluster).await).await?;
    Ok(measured.print(args.own.output.output)?)
}

async fn measure(args: &TrapsArgs, cluster: &mut Cluster) -> anyhow::Result<Comparison> {
    let filled = Filled::new(cluster, args.state_mib).await?;
    let machine = Machine::here(Some(cluster.dir()));
    let mut loads = vec![Loads { what: "nobody traps".into(), runs: Vec::new() }];
    let what = |trapping: &u32| format!("{} beside it", output::count(*trapping as usize, "trapping client"));
    loads.extend(args.trapping.iter().map(|trapping| Loads { what: what(trapping), runs: Vec::new() }));
    let mut traps: Vec<Vec<f64>> = vec![Vec::new(); args.trapping.len()];
    let mut slowest: Vec<Vec<f64>> = vec![Vec::new(); args.trapping.len()];
    for _ in 0..args.rounds {
        loads[0].runs.push(filled.load(args.clients, WRITE_BYTES, args.seconds).await?);
        for (number, &trapping) in args.trapping.iter().enumerate() {
            let (good, trapped) = futures::future::try_join(
                filled.load(args.clients, WRITE_BYTES, args.seconds),
                filled.traps(trapping, args.seconds),
            )
            .await?;
            loads[number + 1].runs.push(good);
            traps[number].push(trapped.requests_per_sec());
            slowest[number].push(trapped.latency_us.value_at_quantile(0.99) as f64);
        }
    }
    let mut figures = Vec::new();
    for (number, trapping) in args.trapping.iter().enumerate() {
        let clients = output::count(*trapping as usize, "client");
        figures.push(Figure::new(format!("traps of {clients}"), "/s", traps[number].clone()));
        figures.push(Figure::new(format!("traps of {clients}: p99"), "us", slowest[number].clone()));
    }
    let notes = machine.memory_only().into_iter().collect();
    let about = format!(
        "traps over {} MiB of state; {} whose writes don't trap, one of {WRITE_BYTES} bytes in flight each",
        args.state_mib,
        output::count(args.clients as usize, "client"),
    );
    Ok(Comparison { machine, about, notes, loads, figures })
}
