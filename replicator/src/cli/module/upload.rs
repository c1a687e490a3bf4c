//! `replicator module upload`.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::anyhow;
use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use replicator_proto::replicator::v1::{self as pb, admin_service_client::AdminServiceClient};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::{Status, transport::Channel};

use super::{
    super::{
        Endpoints, Failure, Output, init,
        output::{self, Format},
        snapshot::saved,
    },
    nodes::{self, Nodes},
};

/// Bytes of a module that travel in one message.
const CHUNK_BYTES: usize = 256 << 10;
const POLL: Duration = Duration::from_millis(150);
/// How long replicas that don't answer are waited for.
const SILENT_MAX: Duration = Duration::from_secs(3);
/// How long a node may take to take a module in.
const SEND_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0: a majority of the replicas is ready to run it, and none refuses it. Those that are away get it later."
)]
pub(in crate::cli) struct UploadArgs {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// How long replicas may take to get, check and compile it
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds, default_value = "60")]
    wait: Duration,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: UploadArgs) -> Result<(), Failure> {
    let module: Bytes = init::read(&args.file)?.into();
    let cluster = Nodes::new(&args.endpoints.endpoints, args.wait.max(Duration::from_secs(5)))?;
    let uploaded = spread(&cluster, module, args.wait).await?;
    match args.output.output {
        Format::Json => output::print_json(&uploaded.json())?,
        Format::Table => {
            let Uploaded { hash, description, bytes, .. } = &uploaded;
            println!("{description}");
            println!("{} ({})", output::hex(hash), output::bytes(*bytes));
            let mut table = output::table(&["node", "module", ""]);
            for node in &uploaded.nodes {
                table.add_row([node.node_id.clone(), nodes::state_name(node.state()), node.detail.clone()]);
            }
            output::print_table(&mut table)?;
        }
    }
    uploaded.judge()?;
    Ok(())
}

/// A module that was uploaded, and what has become of it at each replica.
pub(in crate::cli) struct Uploaded {
    pub(in crate::cli) hash: Bytes,
    description: String,
    bytes: u64,
    nodes: Vec<pb::NodeModule>,
}

impl Uploaded {
    fn json(&self) -> Value {
        json!({
            "sha256": output::hex(&self.hash),
            "module": self.description,
            "bytes": self.bytes,
            "nodes": nodes_json(&self.nodes),
        })
    }

    fn count(&self, state: pb::ModuleState) -> usize {
        self.nodes.iter().filter(|node| node.state() == state).count()
    }

    /// # Errors
    /// If a replica refuses it, or no majority is ready.
    pub(in crate::cli) fn judge(&self) -> anyhow::Result<()> {
        if let Some(node) = self.nodes.iter().find(|node| node.state() == pb::ModuleState::Refused) {
            return Err(anyhow!("{} refuses the module: {}", node.node_id, node.detail));
        }
        let ready = self.count(pb::ModuleState::Ready);
        if 2 * ready > self.nodes.len() {
            return Ok(());
        }
        Err(anyhow!(
            "only {ready} of {} replicas are ready to run it; `replicator module list` shows how the others get on",
            self.nodes.len()
        ))
    }
}

pub(super) fn nodes_json(nodes: &[pb::NodeModule]) -> Value {
    let node = |node: &pb::NodeModule| json!({ "node_id": node.node_id, "state": nodes::state_name(node.state()), "detail": node.detail });
    nodes.iter().map(node).collect()
}

/// Gives a module to one replica, and waits until the others have it and all have checked it.
pub(in crate::cli) async fn spread(cluster: &Nodes, module: Bytes, wait: Duration) -> anyhow::Result<Uploaded> {
    let bytes = module.len() as u64;
    let bar = saved::bar("uploading", bytes);
    let stored = cluster.call(async |mut admin| send(&mut admin, module.clone(), &bar).await).await?;
    bar.finish_and_clear();
    let mut uploaded = Uploaded { hash: stored.sha256, description: stored.description, bytes, nodes: Vec::new() };
    let spinner = ProgressBar::new_spinner();
    let began = Instant::now();
    loop {
        let modules = cluster.list().await?;
        if let Some(module) = modules.into_iter().find(|module| module.sha256 == uploaded.hash) {
            uploaded.nodes = module.nodes;
        }
        let states = uploaded.nodes.iter().map(|node| format!("{} {}", node.node_id, nodes::state_name(node.state())));
        spinner.set_message(states.collect::<Vec<_>>().join(", "));
        spinner.tick();
        let waits = uploaded.count(pb::ModuleState::Missing) + uploaded.count(pb::ModuleState::Checking);
        let silent = uploaded.count(pb::ModuleState::Unknown) > 0 && began.elapsed() < SILENT_MAX;
        if (!uploaded.nodes.is_empty() && waits == 0 && !silent) || began.elapsed() >= wait {
            spinner.finish_and_clear();
            return Ok(uploaded);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sends a module to one node.
///
/// # Errors
/// What the node answers.
pub(in crate::cli) async fn send(
    admin: &mut AdminServiceClient<Channel>,
    module: Bytes,
    bar: &ProgressBar,
) -> Result<pb::UploadModuleResponse, Status> {
    let sha256 = Bytes::copy_from_slice(&Sha256::digest(&module));
    let (sent, length) = (Arc::new(AtomicU64::new(0)), module.len());
    let counting = (sent.clone(), bar.clone());
    let chunks = (0..length.max(1)).step_by(CHUNK_BYTES).map(move |at| {
        let chunk = module.slice(at..length.min(at + CHUNK_BYTES));
        let sent = counting.0.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
        counting.1.set_position(sent);
        pb::UploadModuleRequest { chunk, sha256: if at == 0 { sha256.clone() } else { Bytes::new() } }
    });
    let mut request = tonic::Request::new(futures::stream::iter(chunks));
    request.set_timeout(SEND_MAX);
    Ok(admin.upload_module(request).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_must_be_ready_and_nobody_may_refuse() {
        use pb::ModuleState::{Checking, Missing, Ready, Refused, Unknown};
        let judged = |states: &[pb::ModuleState]| {
            let node = |state: &pb::ModuleState| pb::NodeModule {
                node_id: "n".into(),
                state: (*state).into(),
                detail: "no".into(),
            };
            let nodes = states.iter().map(node).collect();
            Uploaded { hash: Bytes::new(), description: String::new(), bytes: 0, nodes }.judge().is_ok()
        };
        assert!(judged(&[Ready, Ready, Unknown]) && judged(&[Ready]));
        assert!(!judged(&[Ready, Ready, Refused]) && !judged(&[Ready, Missing, Checking]) && !judged(&[]));
    }
}
