//! `replicator snapshot`: images of a node's whole state, on the node and in files of their own.

pub(super) mod images;
mod restore;
pub(super) mod save;
pub(super) mod saved;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;
use serde_json::json;

use super::{
    Endpoints, Failure, Output,
    output::{self, Format},
    status::survey,
};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Make a node take an image now, while it goes on; the log before the image before goes away
    Take(TakeArgs),
    /// List the images in a stopped node's folder, and check every byte of them
    List(images::ListArgs),
    /// Show a saved snapshot, or one image of a stopped node's folder, and check every byte of it
    Inspect(images::InspectArgs),
    /// Save the whole state into one file, from a running node or a stopped one's folder
    Save(save::SaveArgs),
    /// Make the first node of a new cluster from a saved file
    Restore(restore::RestoreArgs),
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

pub(super) async fn run(command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Take(args) => take(args).await,
        SnapshotCommand::List(args) => images::list(&args),
        SnapshotCommand::Inspect(args) => images::inspect(&args),
        SnapshotCommand::Save(args) => save::run(args).await,
        SnapshotCommand::Restore(args) => restore::run(&args),
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
