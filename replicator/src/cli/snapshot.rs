//! `replicator snapshot`: images of a node's whole state.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;
use replicator_storage::{NodeDir, SnapshotManifest};
use serde_json::{Value, json};

use super::{
    Endpoints, Failure, Output, log,
    output::{self, Format},
    status::survey,
};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Make a node take an image now, while it goes on; the log before the image before goes away
    Take(TakeArgs),
    /// List the images in a stopped node's folder, and check every byte of them
    List(ListArgs),
    /// Show one image of a stopped node's folder
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub(super) struct TakeArgs {
    /// The node's name
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// The node's data folder
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The index of the image's last entry; the newest image, if not given
    #[arg(value_name = "INDEX")]
    index: Option<u64>,
    #[command(flatten)]
    list: ListArgs,
}

pub(super) async fn run(command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Take(args) => take(args).await,
        SnapshotCommand::List(args) => list(&args),
        SnapshotCommand::Inspect(args) => inspect(&args),
    }
}

async fn take(args: TakeArgs) -> Result<(), Failure> {
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, &args.endpoints.endpoints).await;
    let node = nodes.iter().find(|node| node.status.as_ref().is_ok_and(|status| status.node_id == args.node));
    let node = node.with_context(|| format!("no node called {:?} answers", args.node))?;
    let taken = client.admin(&node.endpoint).await?.take_snapshot(pb::TakeSnapshotRequest {}).await;
    let taken = taken.map_err(|status| anyhow!("{}", status.message()))?.into_inner();
    let pb::TakeSnapshotResponse { log_index, state_bytes, file_bytes, took_us, paused_us, paused_cpu_us } = taken;
    match args.output.output {
        Format::Json => output::print_json(&json!({
            "node_id": args.node,
            "log_index": log_index,
            "state_bytes": state_bytes,
            "file_bytes": file_bytes,
            "took_us": took_us,
            "paused_us": paused_us,
            "paused_cpu_us": paused_cpu_us,
        }))?,
        Format::Table => println!(
            "{} has an image of log index {log_index}: {} of memory in a file of {}, written in {:.2} s; the machine stood still for {:.1} ms",
            args.node,
            output::bytes(state_bytes),
            output::bytes(file_bytes),
            took_us as f64 / 1e6,
            paused_us as f64 / 1e3,
        ),
    }
    Ok(())
}

/// The images of a folder, the oldest first, and what is damaged.
fn images(args: &ListArgs) -> Result<(Vec<SnapshotManifest>, Vec<String>), Failure> {
    let report = NodeDir::verify(&args.data_dir).map_err(log::unreadable)?;
    let (mut whole, mut damages) = (Vec::new(), Vec::new());
    for snapshot in report.snapshots.into_iter().flat_map(|folder| folder.snapshots) {
        match snapshot.manifest {
            Ok(manifest) => whole.push(manifest),
            Err(error) => damages.push(error.to_string()),
        }
    }
    Ok((whole, damages))
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let (images, damages) = images(args)?;
    match args.output.output {
        Format::Json => {
            let images: Vec<Value> = images.iter().map(manifest_json).collect();
            output::print_json(&json!({ "images": images, "damages": damages }))?;
        }
        Format::Table => {
            let mut table = output::table(&["index", "epoch", "state", "file", "taken (s since 1970)", "digest"]);
            for image in &images {
                let info = &image.info;
                table.add_row([
                    info.position.index.to_string(),
                    info.position.epoch.to_string(),
                    output::bytes(image.image_bytes),
                    output::bytes(image.data_bytes),
                    (info.created_us / 1_000_000).to_string(),
                    format!("{:016x}", info.digest),
                ]);
            }
            output::print_table(&mut table)?;
            if images.is_empty() && damages.is_empty() {
                println!("no image was taken here yet: the log has everything");
            }
        }
    }
    match damages.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Damage(anyhow!(
            "{} of images: {first}. The node takes another one, or fetches it from a peer, when it starts",
            output::count(damages.len(), "damage")
        ))),
    }
}

fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let (images, _) = images(&args.list)?;
    let found = match args.index {
        Some(index) => images.iter().find(|image| image.position().index.0 == index),
        None => images.last(),
    };
    let there: Vec<String> = images.iter().map(|image| image.position().index.to_string()).collect();
    let image = found.with_context(|| match (args.index, there.is_empty()) {
        (_, true) => "there is no whole image in this folder".to_owned(),
        (Some(index), false) => format!("there is no whole image of index {index}; there are: {}", there.join(", ")),
        (None, false) => "no image".to_owned(),
    })?;
    let json = manifest_json(image);
    match args.list.output.output {
        Format::Json => output::print_json(&json)?,
        Format::Table => {
            for (key, value) in json.as_object().into_iter().flatten() {
                println!("{key:<18} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
    }
    Ok(())
}

fn manifest_json(image: &SnapshotManifest) -> Value {
    let info = &image.info;
    json!({
        "log_index": info.position.index.0,
        "epoch": info.position.epoch.0,
        "cluster_id": info.cluster.to_string(),
        "lineage": info.lineage.to_string(),
        "module_sha256": info.module.to_string(),
        "engine": info.engine,
        "state_digest": format!("{:016x}", info.digest),
        "image_bytes": image.image_bytes,
        "data_bytes": image.data_bytes,
        "data_sha256": output::hex(&image.data_sha256),
        "created_us": info.created_us,
    })
}
