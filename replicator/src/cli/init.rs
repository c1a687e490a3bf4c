//! `replicator init`: makes a cluster of blank nodes, once.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;
use serde_json::json;

use super::{Failure, Output, module::upload, output};

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Client addresses of all nodes of the new cluster, each once
    #[arg(long, env = "REPLICATOR_ENDPOINTS", value_name = "HOST:PORT,…", value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// The module to run
    #[arg(long, value_name = "FILE.wasm")]
    module: PathBuf,
    /// The application's configuration, passed to the module as it is
    #[arg(long, value_name = "FILE")]
    app_config: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    output: Output,
}

/// The limits that become part of the log. All have defaults.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Limits, part of the log for ever")]
struct LimitFlags {
    /// Fuel of one applied request, about one unit per wasm instruction
    #[arg(long, value_name = "N")]
    apply_fuel: Option<u64>,
    /// Fuel of one query
    #[arg(long, value_name = "N")]
    query_fuel: Option<u64>,
    /// Linear memory, in pages of 64 KiB
    #[arg(long, value_name = "PAGES")]
    memory_pages: Option<u32>,
    /// Bytes of one request
    #[arg(long, value_name = "BYTES")]
    request_bytes: Option<u32>,
    /// Bytes of what one call of the module may put out
    #[arg(long, value_name = "BYTES")]
    output_bytes: Option<u32>,
    /// Sessions open at once
    #[arg(long, value_name = "N")]
    sessions: Option<u32>,
    /// Outcomes kept for each session
    #[arg(long, value_name = "N")]
    session_window: Option<u32>,
    /// A session's time to live unless its client asks for another, milliseconds
    #[arg(long, value_name = "MS")]
    session_ttl_ms: Option<u64>,
    /// The longest time to live that a client may ask for, milliseconds
    #[arg(long, value_name = "MS")]
    session_ttl_max_ms: Option<u64>,
    /// Period of the session clock, milliseconds: sessions expire with about this precision
    #[arg(long, value_name = "MS")]
    tick_ms: Option<u64>,
    /// Pushed events kept for subscribers that come back, bytes
    #[arg(long, value_name = "BYTES")]
    retained_push_bytes: Option<u64>,
    /// Fuel for the whole snapshot that the active module writes when another one is activated, beside 64 for each byte
    #[arg(long, value_name = "N")]
    snapshot_fuel: Option<u64>,
    /// Fuel for the new module's restore of it, beside 64 for each byte
    #[arg(long, value_name = "N")]
    restore_fuel: Option<u64>,
    /// Bytes of one chunk of such a snapshot
    #[arg(long, value_name = "BYTES")]
    chunk_bytes: Option<u32>,
}

impl From<LimitFlags> for pb::Limits {
    fn from(flags: LimitFlags) -> Self {
        Self {
            apply_fuel: flags.apply_fuel.unwrap_or_default(),
            query_fuel: flags.query_fuel.unwrap_or_default(),
            memory_pages: flags.memory_pages.unwrap_or_default(),
            request_bytes: flags.request_bytes.unwrap_or_default(),
            output_bytes: flags.output_bytes.unwrap_or_default(),
            sessions: flags.sessions.unwrap_or_default(),
            session_window: flags.session_window.unwrap_or_default(),
            session_ttl_ms: flags.session_ttl_ms.unwrap_or_default(),
            session_ttl_max_ms: flags.session_ttl_max_ms.unwrap_or_default(),
            retained_push_bytes: flags.retained_push_bytes.unwrap_or_default(),
            tick_ms: flags.tick_ms.unwrap_or_default(),
            snapshot_fuel: flags.snapshot_fuel.unwrap_or_default(),
            restore_fuel: flags.restore_fuel.unwrap_or_default(),
            chunk_bytes: flags.chunk_bytes.unwrap_or_default(),
        }
    }
}

pub(super) async fn run(args: InitArgs) -> Result<(), Failure> {
    let module = read(&args.module)?;
    let app_config = match &args.app_config {
        Some(path) => read(path)?,
        None => Vec::new(),
    };
    let made = make_cluster(&args.endpoints, module.into(), app_config.into(), args.limits.into()).await?;
    match args.output.output {
        output::Format::Json => output::print_json(&json!({
            "cluster_id": output::hex(&made.cluster_id),
            "module_sha256": output::hex(&made.module_sha256),
            "module": made.module_description,
            "nodes": made.nodes,
        }))?,
        output::Format::Table => {
            println!("cluster {} of {}", output::hex(&made.cluster_id), made.nodes.join(", "));
            println!("runs {} ({})", made.module_description, output::hex(&made.module_sha256));
        }
    }
    Ok(())
}

/// Reads a file that may be as large as a module.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("can't read {}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{} has more than {} MiB", path.display(), FILE_BYTES_MAX >> 20);
    }
    Ok(bytes)
}

/// What came of it.
pub(super) struct Made {
    pub(super) cluster_id: Vec<u8>,
    pub(super) module_sha256: Bytes,
    pub(super) module_description: String,
    pub(super) nodes: Vec<String>,
}

/// Puts the module on every node, then founds the cluster at the first replica.
pub(super) async fn make_cluster(
    endpoints: &[String],
    module: Bytes,
    app_config: Bytes,
    limits: pb::Limits,
) -> anyhow::Result<Made> {
    let client = Client::builder().endpoints(endpoints.iter().cloned()).build()?;
    let mut members = Vec::new();
    let mut founded = None;
    for endpoint in endpoints {
        let status = client.status(endpoint, false).await.with_context(|| format!("{endpoint} doesn't answer"))?;
        if !status.module_sha256.is_empty() {
            bail!(
                "{} at {endpoint} belongs to cluster {} already; `init` makes new clusters only, of blank nodes",
                status.node_id,
                output::hex(&status.cluster_id)
            );
        }
        if !status.cluster_id.is_empty() {
            // An earlier `init` was interrupted between founding the group and its genesis entry.
            founded = Some(status.cluster_id.to_vec());
        }
        members.push(pb::Member {
            node_id: status.node_id,
            disk_id: status.disk_id,
            client_address: endpoint.clone(),
            peer_address: status.peer_address,
            voter: true,
            witness: status.witness,
            matched_log_index: 0,
        });
    }
    let names: BTreeSet<&str> = members.iter().map(|member| member.node_id.as_str()).collect();
    if names.len() < members.len() {
        bail!("two of the endpoints lead to the same node, or two nodes have the same name; each must differ");
    }
    let mut module_sha256 = Bytes::new();
    let mut module_description = String::new();
    for (endpoint, member) in endpoints.iter().zip(&members) {
        let mut admin = client.admin(endpoint).await?;
        let stored = upload::send(&mut admin, module.clone(), &ProgressBar::hidden()).await;
        let stored = stored.map_err(|status| anyhow::anyhow!("{}: {}", member.node_id, status.message()))?;
        (module_sha256, module_description) = (stored.sha256, stored.description);
    }
    let cluster_id = match founded {
        Some(id) => id,
        None => {
            let mut id = vec![0; 16];
            getrandom::fill(&mut id).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
            id
        }
    };
    let nodes = members.iter().map(|member| member.node_id.clone()).collect();
    // The genesis entry goes into the application's log, which witnesses don't have.
    let founder = endpoints.iter().zip(&members).find(|(_, member)| !member.witness);
    let (founder, _) = founder.context("all of the endpoints are witnesses; a chain has at least one replica")?;
    let request = pb::BootstrapRequest {
        cluster_id: cluster_id.clone().into(),
        members,
        module_sha256: module_sha256.clone(),
        app_config,
        limits: Some(limits),
    };
    let founding = client.admin(founder).await?.bootstrap(request).await;
    founding.map_err(|status| anyhow::anyhow!("{founder} can't found the cluster: {}", status.message()))?;
    Ok(Made { cluster_id, module_sha256, module_description, nodes })
}
