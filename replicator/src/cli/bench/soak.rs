//! `replicator bench soak`: how much of the disk a node takes, over millions of entries.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::json;

use super::{
    disk::{Usage, bound},
    load::{self, Load, Measured, Work},
    machine::Machine,
    own::Own,
    progress::Progress,
    random_name,
    state::{Filled, MODULE, connections, wait_caught_up},
};
use crate::cli::{
    Failure,
    cluster::Cluster,
    output::{self, Format},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 1 if a folder ever took more than the bound, which docs/operations.md derives from [images] log_bytes and the size of
an image, or if a request failed; 3 if the replicas differ at the end.

  replicator bench soak --requests 10000000
  replicator bench soak --mode chain --requests 10000000 --log-bytes 16777216"
)]
pub(super) struct SoakArgs {
    /// Requests, each one entry of the log
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// Bytes of each
    #[arg(long, value_name = "B", default_value = "128", value_parser = clap::value_parser!(u32).range(32..=4_000))]
    bytes: u32,
    /// [images] log_bytes of each node: an image is taken after so many bytes of log
    #[arg(long, value_name = "B", default_value = "67108864", value_parser = clap::value_parser!(u64).range(65_536..=1 << 40))]
    log_bytes: u64,
    /// Bytes of state, in MiB, which can't be compressed
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=900))]
    state_mib: u32,
    /// Clients, each with one request in flight
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// How many replicas to start; a majority cluster has 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: usize,
    #[command(flatten)]
    own: Own,
}

/// The folders are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(120);
const SECONDS_MAX: f64 = 1e7;

/// What a node's folder took.
struct NodeUsage {
    name: String,
    most: Usage,
    at_end: Usage,
    images: u64,
}

/// What was found.
struct Soaked {
    machine: Machine,
    /// Answered, those of the warm-up too.
    requests: u64,
    measured: Measured,
    nodes: Vec<NodeUsage>,
    /// Whether all replicas have the same state.
    equal: bool,
}

pub(super) async fn run(args: SoakArgs) -> Result<(), Failure> {
    let Soaked { machine, requests, measured, nodes, equal } =
        args.own.run(args.nodes, MODULE, args.log_bytes, async |cluster| soak(&args, cluster).await).await?;
    // An image holds what can't be compressed of the state, the session table, and a frame for each 1 MiB.
    let image_bytes = u64::from(args.state_mib + 16) << 20;
    let bound = bound(args.log_bytes, image_bytes);
    match args.own.output.output {
        Format::Json => output::print_json(&json!({
            "machine": machine.json(),
            "requests": requests,
            "requests_per_sec": measured.requests_per_sec().round(),
            "errors": measured.errors,
            "bound_bytes": bound,
            "state_equal": equal,
            "nodes": nodes.iter().map(|node| json!({
                "node_id": node.name,
                "log_bytes_max": node.most.log,
                "images_bytes_max": node.most.images,
                "bytes_max": node.most.all,
                "bytes_at_end": node.at_end.all,
                "last_image_log_index": node.images,
            })).collect::<Vec<_>>(),
        }))?,
        Format::Table => {
            println!("{machine}");
            println!(
                "{} requests of {} bytes, {:.0} a second; an image after {} of log; {} MiB of state",
                requests,
                args.bytes,
                measured.requests_per_sec(),
                output::bytes(args.log_bytes),
                args.state_mib
            );
            let mut table =
                output::table(&["node", "most of log", "most of images", "most of all", "bound", "at the end"]);
            for node in &nodes {
                table.add_row([
                    node.name.clone(),
                    output::bytes(node.most.log),
                    output::bytes(node.most.images),
                    output::bytes(node.most.all),
                    output::bytes(bound),
                    output::bytes(node.at_end.all),
                ]);
            }
            output::print_table(&mut table)?;
        }
    }
    if !equal {
        return Err(Failure::Damage(anyhow!("the replicas' states differ")));
    }
    if let Some(error) = &measured.first_error {
        return Err(Failure::Failed(anyhow!("{} requests failed; the first: {error}", measured.errors)));
    }
    match nodes.iter().find(|node| node.most.all > bound) {
        Some(node) => Err(Failure::Failed(anyhow!(
            "{} took {} of the disk, more than the bound of {}",
            node.name,
            output::bytes(node.most.all),
            output::bytes(bound)
        ))),
        None => Ok(()),
    }
}

async fn soak(args: &SoakArgs, cluster: &mut Cluster) -> anyhow::Result<Soaked> {
    let machine = Machine::here(Some(cluster.dir()));
    let filled = Filled::new(cluster, args.state_mib).await?;
    let replicas: Vec<usize> = (0..cluster.len()).filter(|&node| !cluster.is_witness(node)).collect();
    let folders: Vec<PathBuf> = replicas.iter().map(|&node| cluster.data_dir(node)).collect();
    let most = Arc::new(Mutex::new(vec![Usage::default(); folders.len()]));
    let watching = tokio::spawn(watch(folders.clone(), Arc::clone(&most)));

    let clients = args.clients as usize;
    let load = Load {
        name: random_name()?,
        clients,
        seconds: SECONDS_MAX,
        requests: Some(args.requests),
        work: Work::Blocks { len: args.bytes as usize, blocks: filled.blocks },
        query: None,
        servers: cluster.pids().map(|(_, pid)| pid).collect(),
    };
    let done = Arc::new(AtomicU64::new(0));
    let progress = Progress::of_load(&load, Arc::clone(&done));
    let connections = connections(cluster.endpoint(filled.primary), clients)?;
    let measured = tokio::select! {
        measured = load::run(&load, &connections, Arc::clone(&done)) => measured?,
        died = cluster.wait_for_death() => {
            let died = died?;
            bail!("{} ended ({})", died.node, died.how);
        }
    };
    drop(progress);
    for &node in &replicas {
        wait_caught_up(cluster, node, PATIENCE).await?;
    }
    let equal = states_are_equal(cluster, &replicas).await?;
    watching.abort();
    let most = most.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut nodes = Vec::new();
    for ((&node, folder), most) in replicas.iter().zip(&folders).zip(most) {
        let status = cluster.client().status(cluster.endpoint(node), false).await?;
        let at_end = Usage::of(folder).with_context(|| format!("can't look at {}", folder.display()))?;
        let name = cluster.name(node).to_owned();
        nodes.push(NodeUsage { name, most: most.max(at_end), at_end, images: status.snapshot_log_index });
    }
    Ok(Soaked { machine, requests: done.load(Ordering::Relaxed), measured, nodes, equal })
}

/// Looks at the folders again and again.
async fn watch(folders: Vec<PathBuf>, most: Arc<Mutex<Vec<Usage>>>) {
    loop {
        let looked = folders.iter().map(|folder| Usage::of(folder).unwrap_or_default());
        let looked: Vec<Usage> = looked.collect();
        for (most, now) in most.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().zip(looked) {
            *most = most.max(now);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether all replicas have the same state at the same log index.
async fn states_are_equal(cluster: &Cluster, replicas: &[usize]) -> anyhow::Result<bool> {
    let began = Instant::now();
    loop {
        let mut states = Vec::new();
        for &node in replicas {
            let status = cluster.client().status(cluster.endpoint(node), true).await?;
            states.push((status.applied_log_index, status.state_hash));
        }
        let same_index = states.iter().all(|(index, _)| *index == states[0].0);
        if same_index {
            return Ok(states.iter().all(|state| *state == states[0]));
        }
        if began.elapsed() > PATIENCE {
            bail!("the replicas are never at the same log index: {states:?}");
        }
    }
}
