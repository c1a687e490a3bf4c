//! `replicator module remove`.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;
use serde_json::{Value, json};

use super::{
    super::{
        Endpoints, Failure, Output,
        output::{self, Format},
    },
    nodes::{Nodes, short},
};

const LIST_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
#[command(
    after_help = "A replica refuses while it needs the module: it runs, or ran before the active one, or the log and the images that are kept name it. One that is away
keeps it. Exit code 0: no replica that answers has it any more."
)]
pub(in crate::cli) struct RemoveArgs {
    /// The first digits of its hash
    #[arg(value_name = "HASH")]
    module: String,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: RemoveArgs) -> Result<(), Failure> {
    let cluster = Nodes::new(&args.endpoints.endpoints, LIST_MAX)?;
    let hash = cluster.hash(&args.module).await?;
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let mut nodes = Vec::new();
    for node in cluster.survey().await {
        match node.status {
            Ok(status) if !status.witness => {
                let request = pb::RemoveModuleRequest { sha256: hash.clone().into() };
                let removed = client.admin(&node.endpoint).await?.remove_module(request).await;
                let told = match removed {
                    Ok(removed) if removed.get_ref().existed => Ok("removed"),
                    Ok(_) => Ok("had none"),
                    Err(status) => Err(status.message().to_owned()),
                };
                nodes.push((status.node_id, told));
            }
            Ok(_) => {}
            Err(_) => nodes.push((node.endpoint, Ok("doesn't answer, and keeps it"))),
        }
    }
    match args.output.output {
        Format::Json => {
            let node = |(node, told): &(String, Result<&str, String>)| json!({ "node_id": node, "result": told.as_ref().ok(), "refused": told.as_ref().err() });
            let nodes: Vec<Value> = nodes.iter().map(node).collect();
            output::print_json(&json!({ "sha256": output::hex(&hash), "nodes": nodes }))?;
        }
        Format::Table => {
            let mut table = output::table(&["node", &short(&hash)]);
            for (node, told) in &nodes {
                table.add_row([node.as_str(), told.as_ref().map_or("refused", |told| told)]);
            }
            output::print_table(&mut table)?;
        }
    }
    match nodes.into_iter().find_map(|(node, told)| Some((node, told.err()?))) {
        Some((node, why)) => Err(Failure::Failed(anyhow!("{node}: {why}"))),
        None => Ok(()),
    }
}
