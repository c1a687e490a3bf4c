//! `replicator member`: who does what.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use replicator_client::Client;
use replicator_proto::replicator::v1::{self as pb, NodeState, StatusResponse};
use serde_json::json;
use tonic::Code;

use super::{
    Endpoints, Failure, Output,
    output::{self, Format},
    status::survey,
};

#[derive(Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// Hand the primary's part to another voter, without losing a request
    Transfer(MemberArgs),
    /// Take a replica out of a chain for good, without losing a request; its node may be stopped afterwards
    Remove(MemberArgs),
}

#[derive(Debug, Args)]
pub(super) struct MemberArgs {
    /// The node's name
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(command: MemberCommand) -> Result<(), Failure> {
    match command {
        MemberCommand::Transfer(args) => transfer(args).await,
        MemberCommand::Remove(args) => remove(args).await,
    }
}

async fn remove(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, &args.endpoints.endpoints).await;
    // One that takes part, and knows the newest chain: a removed node, or one that isn't back yet, wishes in vain. The one that goes, only if it is alone.
    let takes_part = |status: &StatusResponse| {
        use NodeState::{Candidate, Follower, Primary, Quarantined, Witness};
        matches!(status.state(), Primary | Follower | Witness | Candidate | Quarantined)
    };
    let asked = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
    let asked = asked.filter(|(_, status)| takes_part(status));
    let asked = asked.max_by_key(|(_, status)| (status.node_id != args.node, status.epoch));
    let (asked, _) =
        asked.context("none of the endpoints leads to a node that takes part; `replicator status` tells more")?;
    let removed =
        client.admin(&asked.endpoint).await?.remove_node(pb::RemoveNodeRequest { node_id: args.node.clone() }).await;
    removed.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    match args.output.output {
        Format::Json => output::print_json(&json!({ "removed_node_id": args.node }))?,
        Format::Table => println!("{} is out of the chain; its node may be stopped", args.node),
    }
    Ok(())
}

/// How long a primary is looked for: a change of primaries, by another operator's wish or a death, takes less.
const PRIMARY_MAX: Duration = Duration::from_secs(5);

async fn transfer(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let began = Instant::now();
    loop {
        let nodes = survey(&client, &args.endpoints.endpoints).await;
        let statuses = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
        let leads = |status: &StatusResponse| match status.state() {
            NodeState::Primary => true,
            NodeState::Quarantined => status.primary_node_id == status.node_id,
            _ => false,
        };
        let Some((node, primary)) = statuses.clone().find(|(_, status)| leads(status)) else {
            if statuses.count() == 0 || began.elapsed() > PRIMARY_MAX {
                return Err(anyhow::anyhow!("no primary is known now; `replicator status` tells why").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if primary.node_id == args.node {
            let told = format!("{} is the primary already", args.node);
            return tell(args.output.output, &primary.node_id, &args.node, &told);
        }
        let request = pb::TransferPrimaryRequest { node_id: args.node.clone() };
        match client.admin(&node.endpoint).await?.transfer_primary(request).await {
            // It was the primary when it was asked for its status.
            Err(status) if status.code() == Code::FailedPrecondition && began.elapsed() < PRIMARY_MAX => {}
            Err(status) => return Err(anyhow::anyhow!("{}", status.message()).into()),
            Ok(moved) => {
                let moved = moved.into_inner().primary_node_id;
                let told = format!("{} → {moved}", primary.node_id);
                return tell(args.output.output, &primary.node_id, &moved, &told);
            }
        }
    }
}

fn tell(format: Format, from: &str, to: &str, told: &str) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(&json!({ "from_node_id": from, "to_node_id": to }))?,
        Format::Table => println!("{told}"),
    }
    Ok(())
}
