//! `replicator bench images`: what an image costs the clients and the machine, and how fast it is written and given to another node.
//!
//! Its speed is that of a quiet cluster, beside what the same disk and the same loopback device do with the same bytes in the same run. Its cost is
//! that of images taken one after the other, without a pause, for as long as a load lasts: a node that takes one now and then costs less.

use std::{
    fs,
    num::NonZeroU64,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use futures::future::try_join_all;
use replicator_proto::replicator::v1 as pb;

use super::{
    comparison::{Comparison, Figure, Loads},
    lag::purge,
    load::{Measured, WARM_UP},
    machine::Machine,
    own::Own,
    plain,
    state::{Filled, MODULE, NO_IMAGES, take_image, wait_status},
};
use crate::cli::{
    Failure,
    cluster::{Cluster, Storage},
};

#[derive(Debug, Args)]
#[command(
    after_help = "The nodes and the load share this machine's cores and its disk: with all three of them at it, an image costs three times what it costs
where each node has a machine.

  replicator bench images
  replicator bench images --state-mib 64 --clients 1,024 -o json"
)]
pub(super) struct ImagesArgs {
    /// Bytes of state, in MiB, which can't be compressed
    #[arg(long, value_name = "MIB", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=900))]
    state_mib: u32,
    /// Clients, each with one write in flight
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// Bytes of each write, of a random block
    #[arg(long, value_name = "B", default_value = "128", value_parser = clap::value_parser!(u32).range(32..=4_000))]
    bytes: u32,
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value = "6", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// How often all of it is measured, in turn
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Bound what a node gives to a peer, in bytes per second. Default: as a node has it
    #[arg(long, value_name = "BYTES")]
    transfer_bytes_per_sec: Option<NonZeroU64>,
    #[command(flatten)]
    own: Own,
}

/// How long a node may take to get the whole state.
const PATIENCE: Duration = Duration::from_secs(120);
const MB: f64 = 1e6;

pub(super) async fn run(args: ImagesArgs) -> Result<(), Failure> {
    let storage = Storage {
        image_log_bytes: Some(NO_IMAGES),
        transfer_bytes_per_sec: args.transfer_bytes_per_sec,
        ..Storage::default()
    };
    let measured = args.own.run_with(3, MODULE, storage, async |cluster| measure(&args, cluster).await).await?;
    Ok(measured.print(args.own.output.output)?)
}

async fn measure(args: &ImagesArgs, cluster: &mut Cluster) -> anyhow::Result<Comparison> {
    let mut filled = Filled::new(cluster, args.state_mib).await?;
    let machine = Machine::here(Some(cluster.dir()));
    let follower = follower(cluster, filled.primary);
    let mut speeds = Speeds::default();
    for _ in 0..args.rounds {
        speeds.written(cluster, follower).await?;
    }
    let file_bytes = speeds.file_bytes;
    for _ in 0..args.rounds {
        speeds.given(cluster, follower).await?;
    }
    filled.refresh(cluster).await?;

    let places: [(&str, Vec<usize>); 4] = [
        ("no image", Vec::new()),
        ("images at a follower", vec![follower]),
        ("images at the primary", vec![filled.primary]),
        ("images at all at once", (0..cluster.len()).filter(|&node| !cluster.is_witness(node)).collect()),
    ];
    let mut loads: Vec<Loads> =
        places.iter().map(|(what, _)| Loads { what: (*what).into(), runs: Vec::new() }).collect();
    let mut taken: Vec<Vec<pb::TakeSnapshotResponse>> = vec![Vec::new(); places.len()];
    for _ in 0..args.rounds {
        for (number, (_, nodes)) in places.iter().enumerate() {
            let (measured, images) = load_with_images(args, cluster, &filled, nodes).await?;
            loads[number].runs.push(measured);
            taken[number].extend(images);
        }
    }
    let mut figures = speeds.figures();
    for ((what, _), images) in places.iter().zip(&taken).skip(1) {
        let each =
            |of: fn(&pb::TakeSnapshotResponse) -> u64| images.iter().map(|image| of(image) as f64 / 1e3).collect();
        figures.push(Figure::new(format!("{what}: the machine stood still"), "ms", each(|image| image.paused_us)));
        figures.push(Figure::new(
            format!("{what}: of that, its thread worked"),
            "ms",
            each(|image| image.paused_cpu_us),
        ));
        figures.push(Figure::new(format!("{what}: an image took"), "ms", each(|image| image.took_us)));
    }
    let notes = machine.memory_only().into_iter().collect();
    let about = format!(
        "images of {} MiB of state ({} in a file); {} clients, one write of {} bytes in flight each",
        args.state_mib,
        crate::cli::output::bytes(file_bytes),
        args.clients,
        args.bytes
    );
    Ok(Comparison { machine, about, notes, loads, figures })
}

/// A replica that doesn't lead: the last one.
pub(super) fn follower(cluster: &Cluster, primary: usize) -> usize {
    (0..cluster.len()).rev().find(|&node| node != primary && !cluster.is_witness(node)).unwrap_or(primary)
}

/// Loads the cluster while each of `nodes` takes images, one after the other.
async fn load_with_images(
    args: &ImagesArgs,
    cluster: &Cluster,
    filled: &Filled,
    nodes: &[usize],
) -> anyhow::Result<(Measured, Vec<pb::TakeSnapshotResponse>)> {
    let ended = AtomicBool::new(false);
    let load = async {
        let measured = filled.load(args.clients, args.bytes as usize, args.seconds).await;
        ended.store(true, Ordering::Relaxed);
        measured
    };
    let ended = &ended;
    let images = try_join_all(nodes.iter().map(|&node| async move {
        tokio::time::sleep(WARM_UP).await;
        let mut images = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            images.push(take_image(cluster.endpoint(node)).await?);
        }
        Ok::<_, anyhow::Error>(images)
    }));
    let (measured, images) = futures::future::join(load, images).await;
    Ok((measured?, images?.concat()))
}

/// How fast images are written and given, and what the machine does with as many bytes; in MB a second.
#[derive(Debug, Default)]
struct Speeds {
    file_bytes: u64,
    written: Vec<f64>,
    written_plainly: Vec<f64>,
    given: Vec<f64>,
    given_plainly: Vec<f64>,
}

impl Speeds {
    async fn written(&mut self, cluster: &Cluster, node: usize) -> anyhow::Result<()> {
        let dir = cluster.dir().to_owned();
        settle().await?;
        let image = take_image(cluster.endpoint(node)).await?;
        settle().await?;
        let plainly = tokio::task::spawn_blocking(move || plain::write(&dir, image.file_bytes)).await??;
        self.file_bytes = image.file_bytes;
        self.written.push(image.file_bytes as f64 / MB / (image.took_us as f64 / 1e6));
        self.written_plainly.push(image.file_bytes as f64 / MB / plainly.as_secs_f64());
        Ok(())
    }

    /// Wipes the node's disk: it takes an image of a peer.
    async fn given(&mut self, cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
        let file = newest_image(cluster, node)?;
        let dir = cluster.dir().to_owned();
        settle().await?;
        let (plainly, bytes) = tokio::task::spawn_blocking(move || plain::copy(&file, &dir)).await??;
        // The others need one to give, and no log that makes it needless.
        purge(cluster, node).await?;
        wipe(cluster, node).await?;
        settle().await?;
        cluster.restart(node).await?;
        let whole = wait_whole_state(cluster, node).await?;
        self.given.push(whole.bytes as f64 / MB / (whole.took_ms.max(1) as f64 / 1e3));
        self.given_plainly.push(bytes as f64 / MB / plainly.as_secs_f64());
        cluster.wait_serving(node).await?;
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        vec![
            Figure::new("an image is written, quiet", "MB/s", self.written.clone())
                .against("a file and its fsync", self.written_plainly.clone()),
            Figure::new("an image is given to a new disk, quiet", "MB/s", self.given.clone())
                .against("a copy over loopback TCP, with its fsync", self.given_plainly.clone()),
        ]
    }
}

/// Kills a node and removes its folder.
pub(super) async fn wipe(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.kill(node).await?;
    let folder = cluster.data_dir(node);
    fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))
}

/// Waits until a wiped node goes on from a peer's image.
pub(super) async fn wait_whole_state(cluster: &Cluster, node: usize) -> anyhow::Result<pb::WholeState> {
    let whole =
        |status: &pb::StatusResponse| status.restart.as_ref()?.whole_state.clone().filter(|whole| whole.entered);
    let entered = |status: &pb::StatusResponse| whole(status).is_some();
    let status = wait_status(cluster, node, "take the whole state", PATIENCE, entered).await?;
    whole(&status).context("it took the whole state")
}

fn newest_image(cluster: &Cluster, node: usize) -> anyhow::Result<PathBuf> {
    let folder = cluster.data_dir(node).join("snapshots");
    let files = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
    let mut images: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?;
    images.retain(|path| path.extension().is_some_and(|ending| ending == "image"));
    images.into_iter().max().with_context(|| format!("no image in {}", folder.display()))
}

/// Has the disk finish what others began.
async fn settle() -> anyhow::Result<()> {
    Ok(tokio::task::spawn_blocking(rustix::fs::sync).await?)
}
