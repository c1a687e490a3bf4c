//! `replicator member`: who does what.

use anyhow::Context as _;
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
    let answers = |name: &str| nodes.iter().find(|node| node.status.as_ref().is_ok_and(|s| s.node_id == name));
    // Not the node that goes: it would be asked about a chain that it doesn't belong to any more.
    let asked = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
    let asked = asked.filter(|(_, status)| status.node_id != args.node).map(|(node, _)| node).next();
    let asked = asked.or_else(|| answers(&args.node)).context("none of the endpoints answers")?;
    let removed =
        client.admin(&asked.endpoint).await?.remove_node(pb::RemoveNodeRequest { node_id: args.node.clone() }).await;
    removed.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    match args.output.output {
        Format::Json => output::print_json(&json!({ "removed_node_id": args.node }))?,
        Format::Table => println!("{} is out of the chain; its node may be stopped", args.node),
    }
    Ok(())
}

async fn transfer(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, &args.endpoints.endpoints).await;
    let primary =
        nodes.iter().filter_map(|node| node.status.as_ref().ok()).find(|s| s.state() == pb::NodeState::Primary);
    let primary = primary.context("no primary is known now; `replicator status` tells why")?;
    if primary.node_id == args.node {
        let told = format!("{} is the primary already", args.node);
        return tell(args.output.output, &primary.node_id, &args.node, &told);
    }
    let address =
        nodes.iter().find(|n| n.status.as_ref().is_ok_and(|s| s.node_id == primary.node_id)).map(|n| &n.endpoint);
    let address = address.context("the primary's address is not known")?;
    let request = pb::TransferPrimaryRequest { node_id: args.node };
    let moved = client.admin(address).await?.transfer_primary(request).await;
    let moved = moved.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    let told = format!("{} → {}", primary.node_id, moved.primary_node_id);
    tell(args.output.output, &primary.node_id, &moved.primary_node_id, &told)
}

fn tell(format: Format, from: &str, to: &str, told: &str) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(&json!({ "from_node_id": from, "to_node_id": to }))?,
        Format::Table => println!("{told}"),
    }
    Ok(())
}
