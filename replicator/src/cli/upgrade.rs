//! `replicator upgrade`: the engine barrier, put up by the program that shall go on after it.

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use replicator_client::{Client, Error};
use replicator_machine::{engine_fingerprint, precompile};
use replicator_proto::replicator::v1 as pb;
use serde_json::json;

use super::{
    Endpoints, Failure, Output,
    module::{download, nodes},
    output::{self, Format},
    status::{Surveyed, survey},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Call it with the new program while the old one runs on all nodes. At the barrier every replica takes an image and stands still; then stop all of them,
and start the new program on their folders. Between the two nobody is served. Every replica must be up: one that was away has no image of the barrier, and joins anew
(--rejoin). If the engines are equal there is no barrier, and the nodes may be restarted one after the other."
)]
pub(super) struct UpgradeArgs {
    /// The engine that shall go on, as `status -o json` of a node with it shows. Default: this program's
    #[arg(long, value_name = "ENGINE")]
    to: Option<String>,
    /// Don't ask whether it is meant
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: UpgradeArgs) -> Result<(), Failure> {
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, &args.endpoints.endpoints).await;
    let to = args.to.unwrap_or_else(engine_fingerprint);
    let (from, endpoint) = in_force(&nodes)?;
    if from == to {
        match args.output.output {
            Format::Json => output::print_json(&json!({ "engine": to, "log_index": null }))?,
            Format::Table => {
                println!("the cluster runs on this engine already ({to}): restart the nodes one after the other")
            }
        }
        return Ok(());
    }
    if !args.yes {
        return Err(Failure::Usage(format!(
            "this stops all replicas at one log index, until programs with the engine {to:?} are started in their place. If that is meant, give --yes"
        )));
    }
    if to == engine_fingerprint() {
        check_modules(&client, &endpoint, &nodes).await?;
    }
    let request = pb::UpgradeEngineRequest { from_engine: from.clone(), to_engine: to.clone() };
    let answered = client.admin(&endpoint).await?.upgrade_engine(request).await;
    let index = answered.map_err(|status| Error::Rpc(Box::new(status)))?.into_inner().log_index;
    match args.output.output {
        Format::Json => output::print_json(&json!({ "from": from, "engine": to, "log_index": index }))?,
        Format::Table => println!(
            "the barrier is at log index {index}. When `replicator status` shows every replica as halted there, stop them all, and start the new program"
        ),
    }
    Ok(())
}

/// That this program can run the active module, and the one before: there is no way back over the barrier.
async fn check_modules(client: &Client, endpoint: &str, nodes: &[Surveyed]) -> anyhow::Result<()> {
    let answers = nodes.iter().filter_map(|node| node.status.as_ref().ok()).filter(|status| !status.witness);
    let named = answers.flat_map(|status| [&status.module_sha256, &status.previous_module_sha256]);
    let hashes: BTreeSet<_> = named.filter(|hash| !hash.is_empty()).cloned().collect();
    for hash in hashes {
        let module = download::fetch(&mut client.admin(endpoint).await?, &hash).await.map_err(nodes::told)?;
        let checked = tokio::task::spawn_blocking(move || precompile(&module).map(drop)).await?;
        checked.with_context(|| {
            format!(
                "this program can't run the module {}, which the cluster runs or may go back to. Nothing was done",
                output::hex(&hash)
            )
        })?;
    }
    Ok(())
}

/// The engine of all replicas, and the address of one.
fn in_force(nodes: &[Surveyed]) -> anyhow::Result<(String, String)> {
    let silent: Vec<&str> =
        nodes.iter().filter(|node| node.status.is_err()).map(|node| node.endpoint.as_str()).collect();
    if !silent.is_empty() {
        bail!(
            "{} doesn't answer: an upgrade needs all nodes, as who is away would have to join anew. Nothing was done",
            silent.join(", ")
        );
    }
    let answers = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
    let replicas: Vec<_> = answers.filter(|(_, status)| !status.witness).collect();
    let engines: BTreeSet<&str> = replicas.iter().map(|(_, status)| status.engine.as_str()).collect();
    let awaited = replicas.iter().find(|(_, status)| !status.awaited_engine.is_empty());
    if let Some((_, status)) = awaited {
        bail!("{} stands at an engine barrier already, and awaits {:?}", status.node_id, status.awaited_engine);
    }
    match (engines.first(), engines.len()) {
        (Some(engine), 1) => {
            let (node, _) = replicas.first().context("no replica answers")?;
            Ok(((*engine).to_owned(), node.endpoint.clone()))
        }
        (None, _) => Err(anyhow!("no replica answers")),
        _ => bail!(
            "the replicas' programs have different engines: {}",
            engines.into_iter().collect::<Vec<_>>().join("; ")
        ),
    }
}
