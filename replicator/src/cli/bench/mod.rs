//! `replicator bench`: how much a cluster does, and how fast it answers.
//!
//! A closed loop: each client has its own session and one request in flight, and sends the next when the answer has come. All clients
//! together share a few connections to the primary. Latencies are those that a client sees.

mod comparison;
mod disk;
mod images;
mod lag;
mod load;
mod machine;
mod own;
mod plain;
mod progress;
mod replay;
mod report;
mod soak;
mod state;
mod swap;
mod traps;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use replicator_client::{Client, Consistency};
use replicator_proto::replicator::v1::NodeState;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    load::{Load, Measured, Work},
    machine::Machine,
    progress::Progress,
    report::Report,
};
use super::{
    Failure, Output,
    cluster::{Cluster, Place, Setup, bundled_module},
    output,
    shape::ModeFlags,
    status,
};

/// How long a request may take before it counts as an error.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest request. A cluster's own limit is lower.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Room for an append with a long name and a large number.
const JOURNAL_BYTES_MIN: usize = 64;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Without --endpoints it starts its own nodes on this machine, with fdatasync before each acknowledgement, and stops
them at the end. On one machine, clients and nodes share its cores: the last columns say who used them.

  replicator bench --clients 1,64,1024
  replicator bench --clients 64 --query --unary -o json
  replicator bench images --state-mib 512"
)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    experiment: Option<Experiment>,
    /// Clients, each with one request in flight; several numbers are several loads on the same cluster
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: Vec<u32>,
    /// Bytes of each request
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = request_bytes)]
    bytes: usize,
    /// Seconds that are measured, after one to warm up
    #[arg(long, value_name = "S", default_value = "6", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// The module to run: a name bundled beside this program (echo, journal), or a file
    #[arg(long, value_name = "NAME|FILE.wasm", default_value = "echo")]
    module: String,
    #[command(flatten)]
    mode: ModeFlags,
    /// One call for each request, instead of streams
    #[arg(long)]
    unary: bool,
    /// Queries instead of writes
    #[arg(long)]
    query: bool,
    /// What a query must see
    #[arg(long, value_enum, default_value_t = Reads::Linearizable, requires = "query")]
    consistency: Reads,
    /// Connections that the clients share
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    connections: u32,
    /// How many replicas to start; a majority cluster has 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N", conflicts_with = "endpoints")]
    nodes: usize,
    /// Where the nodes' folders go, to be removed at the end. Default: where temporary files go
    #[arg(long, value_name = "DIR", conflicts_with = "endpoints")]
    data_dir: Option<PathBuf>,
    /// Client addresses of a cluster that runs, instead of an own one
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    endpoints: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// What else there is to measure. Each starts nodes of its own.
#[derive(Debug, Subcommand)]
enum Experiment {
    /// What an image costs the clients and the machine, and how fast it is written and given to another node
    Images(images::ImagesArgs),
    /// How fast a node that starts applies its log
    Replay(replay::ReplayArgs),
    /// What a follower costs the clients that stood still, or lost its disk, and catches up
    Lag(lag::LagArgs),
    /// What requests that trap cost the clients whose requests don't
    Traps(traps::TrapsArgs),
    /// For how long the activation of another module holds up the clients
    Swap(swap::SwapArgs),
    /// How much of the disk a node takes, over millions of entries
    Soak(soak::SoakArgs),
}

/// What a query must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Reads {
    /// Everything acknowledged before it began
    Linearizable,
    /// Everything that its connection has seen
    Session,
    /// Whatever the node has
    Local,
}

impl Reads {
    fn consistency(self) -> (Consistency, &'static str) {
        match self {
            Self::Linearizable => (Consistency::Linearizable, "linearizable"),
            Self::Session => (Consistency::Session, "session"),
            Self::Local => (Consistency::Local, "local"),
        }
    }
}

/// As long as a message may be, whatever the cluster's own limit is.
fn request_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|&bytes| bytes <= REQUEST_BYTES_MAX);
    bytes.ok_or_else(|| format!("expected a number of bytes, at most {REQUEST_BYTES_MAX}"))
}

pub(super) async fn run(mut args: BenchArgs) -> Result<(), Failure> {
    match args.experiment.take() {
        None => throughput(args).await,
        Some(Experiment::Images(args)) => images::run(args).await,
        Some(Experiment::Replay(args)) => replay::run(args).await,
        Some(Experiment::Lag(args)) => lag::run(args).await,
        Some(Experiment::Traps(args)) => traps::run(args).await,
        Some(Experiment::Swap(args)) => swap::run(args).await,
        Some(Experiment::Soak(args)) => soak::run(args).await,
    }
}

/// Loads of several sizes, on one cluster.
async fn throughput(args: BenchArgs) -> Result<(), Failure> {
    if args.module == "journal" && args.bytes < JOURNAL_BYTES_MIN {
        return Err(Failure::Usage(too_short_for_a_journal()));
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let mut own = if args.endpoints.is_empty() {
        module_file(&args.module)?; // before there is a folder
        let place = Place::Temporary { within: args.data_dir.as_deref(), command: "bench" };
        Some(Cluster::prepare(Setup { shape: args.mode.shape(args.nodes)?, place })?)
    } else {
        None
    };
    let measured = tokio::select! {
        measured = measure(&args, own.as_mut()) => measured.map_err(Ended::Failed),
        _ = interrupt.recv() => Err(Ended::Told(anyhow!("interrupted"))),
        _ = terminate.recv() => Err(Ended::Told(anyhow!("terminated"))),
    };
    let mut fallen = Vec::new();
    if let Some(cluster) = &mut own {
        fallen = cluster.fallen();
        cluster.stop().await;
        match &measured {
            Err(Ended::Failed(_)) => {}
            Ok(_) if !fallen.is_empty() => {}
            _ => cluster.remove_temporary(),
        }
        if cluster.dir().exists() {
            output::note(
                args.output.output,
                &format!("the nodes' folders and logs are kept in {}", cluster.dir().display()),
            );
        }
    }
    let report = match measured {
        Ok(report) => report,
        Err(Ended::Failed(error)) if !fallen.is_empty() => return Err(error.context(fallen.join("; ")).into()),
        Err(Ended::Failed(error) | Ended::Told(error)) => return Err(error.into()),
    };
    report.print(args.output.output)?;
    if !fallen.is_empty() {
        return Err(Failure::Failed(anyhow!("{}", fallen.join("; "))));
    }
    match report.runs.iter().find(|run| run.latency_us.is_empty()) {
        Some(Measured { clients, first_error, .. }) => Err(Failure::Failed(anyhow!(
            "no request of {clients} clients succeeded: {}",
            first_error.as_deref().unwrap_or("none ended in time; give it more --seconds")
        ))),
        None => Ok(()),
    }
}

/// Why there is no report.
enum Ended {
    Failed(anyhow::Error),
    /// The user or the system has said so.
    Told(anyhow::Error),
}

fn too_short_for_a_journal() -> String {
    format!("a request to the journal takes at least {JOURNAL_BYTES_MIN} bytes; give it more --bytes")
}

/// Runs all the loads.
async fn measure(args: &BenchArgs, mut own: Option<&mut Cluster>) -> anyhow::Result<Report> {
    let mut servers = Vec::new();
    if let Some(cluster) = own.as_deref_mut() {
        let module = module_file(&args.module)?;
        cluster.start_all().await?;
        cluster.found(&module).await?;
        servers = cluster.pids().map(|(_, pid)| pid).collect();
    }
    let endpoints = own.as_deref().map_or_else(|| args.endpoints.clone(), Cluster::endpoints);
    let machine = Machine::here(own.as_deref().map(Cluster::dir));
    let (consistency, consistency_name) = args.consistency.consistency();
    let first = primary(&endpoints).await?;
    let work = match first.module.starts_with("app=journal ") {
        true if args.bytes < JOURNAL_BYTES_MIN => bail!("{}", too_short_for_a_journal()),
        true => Work::Journal(args.bytes),
        false => Work::Bytes(args.bytes),
    };
    // What was asked for says more; of a cluster of somebody else's, its nodes tell.
    let mode = match &own {
        Some(_) => args.mode.shape(args.nodes).map_or(first.mode, |shape| shape.to_string()),
        None => first.mode,
    };
    let mut report = Report {
        notes: machine.memory_only().into_iter().collect(),
        machine,
        mode,
        transport: match (args.query, args.unary) {
            (false, false) => "ExecuteStream",
            (false, true) => "Execute",
            (true, false) => "QueryStream",
            (true, true) => "Query",
        },
        consistency: args.query.then_some(consistency_name),
        module: first.module,
        nodes: first.nodes,
        bytes: args.bytes,
        connections: args.connections as usize,
        threads: tokio::runtime::Handle::current().metrics().num_workers(),
        runs: Vec::new(),
    };
    for clients in &args.clients {
        let clients = *clients as usize;
        let before = primary(&endpoints).await?;
        let connections = (0..args.connections.min(clients as u32))
            .map(|_| Client::builder().endpoints([&before.address]).deadline(DEADLINE).streams(!args.unary).build())
            .collect::<Result<Vec<_>, _>>()?;
        let load = Load {
            name: random_name()?,
            clients,
            seconds: f64::from(args.seconds),
            requests: None,
            work,
            query: args.query.then_some(consistency),
            servers: servers.clone(),
        };
        let done = Arc::new(AtomicU64::new(0));
        let progress = Progress::of_load(&load, Arc::clone(&done));
        let measured = load::run(&load, &connections, done).await;
        drop(progress);
        report.runs.push(measured?);
        let after = primary(&endpoints).await?;
        if after.address != before.address {
            report.notes.push(format!(
                "the primary moved while {clients} clients measured: from {} to {}",
                before.address, after.address
            ));
        }
    }
    Ok(report)
}

/// A module by its name beside this program, or by its file.
fn module_file(module: &str) -> anyhow::Result<PathBuf> {
    if module.contains(['/', '.']) {
        let file = Path::new(module);
        if !file.is_file() {
            bail!("{module} is no file");
        }
        return Ok(file.to_owned());
    }
    bundled_module(module)
}

struct Primary {
    address: String,
    module: String,
    mode: String,
    nodes: usize,
}

/// Which node leads, as the nodes say.
async fn primary(endpoints: &[String]) -> anyhow::Result<Primary> {
    let client = Client::builder().endpoints(endpoints.iter().cloned()).build()?;
    let nodes = status::survey(&client, endpoints).await;
    let leader = nodes.iter().find_map(|node| {
        let status = node.status.as_ref().ok().filter(|status| status.state() == NodeState::Primary)?;
        Some((node.endpoint.clone(), status))
    });
    let (address, status) = leader.context("no primary is known now; `replicator status` tells why")?;
    Ok(Primary {
        address,
        module: status.module_description.clone(),
        mode: status.mode.clone(),
        nodes: status.members.len(),
    })
}

fn random_name() -> anyhow::Result<String> {
    let mut name = [0; 6];
    getrandom::fill(&mut name).map_err(|error| anyhow!("no random bytes: {error}"))?;
    Ok(super::output::hex(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_no_longer_than_a_message() {
        assert_eq!(request_bytes("0"), Ok(0));
        assert_eq!(request_bytes("67108864"), Ok(REQUEST_BYTES_MAX));
        for bad in ["67108865", "18446744073709551615", "99999999999999999999", "-1", "1k", ""] {
            assert!(request_bytes(bad).is_err(), "{bad:?} was taken");
        }
    }
}
