//! `replicator status`: the nodes side by side.

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, Instant},
};

use anstyle::AnsiColor;
use anyhow::anyhow;
use clap::Args;
use futures::future::join_all;
use replicator_client::Client;
use replicator_proto::replicator::v1::{Divergence, Member, NodeState, StatusResponse};
use serde_json::{Value, json};

use super::{Endpoints, Failure, Output, chain, output, restart, watch};

/// How long a node may take to tell its status, so that one that stands still doesn't hold up the others for long.
const NODE_MAX: Duration = Duration::from_secs(2);
/// How long `--verify` waits for the replicas to stand at the same index.
const VERIFY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    endpoints: Endpoints,
    /// Hash the whole state of every replica and compare them at the same log index; exit code 3 if they differ
    #[arg(long)]
    verify: bool,
    /// Show it again every so many seconds, 1 if none are given, until Ctrl-C: in place on a terminal, one after the other in a pipe
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds, num_args = 0..=1, default_missing_value = "1", conflicts_with = "verify")]
    watch: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

/// One node's answer, or why there is none.
pub(super) struct Surveyed {
    pub(super) endpoint: String,
    pub(super) status: Result<StatusResponse, String>,
}

pub(super) async fn run(args: StatusArgs) -> Result<(), Failure> {
    if let Some(period) = args.watch {
        return watch::run(&args.endpoints.endpoints, period, args.output.output).await;
    }
    let client = Client::builder().endpoints(args.endpoints.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client.with_deadline(NODE_MAX), &args.endpoints.endpoints).await;
    let verdict = if args.verify { Some(verify(&client, &nodes).await) } else { None };
    match args.output.output {
        output::Format::Json => {
            let mut value = json!({ "nodes": nodes.iter().map(node_json).collect::<Vec<_>>() });
            if let Some(verdict) = &verdict {
                value["verified"] = verdict.json();
            }
            output::print_json(&value)?;
        }
        output::Format::Table => {
            print(&nodes)?;
            if let Some(verdict @ Verdict::Equal { .. }) = &verdict {
                let silent = nodes.iter().filter(|node| node.status.is_err()).count();
                let rest = if silent == 0 { String::new() } else { format!("; {silent} did not answer") };
                println!("{verdict}{rest}");
            }
        }
    }
    match verdict {
        Some(Verdict::Differ(what)) => Err(Failure::Damage(anyhow!("the replicas differ: {what}"))),
        Some(Verdict::Unknown(why)) => Err(Failure::Failed(anyhow!("the replicas could not be compared: {why}"))),
        _ if nodes.iter().all(|node| node.status.is_err()) => Err(Failure::Failed(anyhow!(
            "none of the endpoints answers; is the cluster running, and are these client addresses?"
        ))),
        _ => Ok(()),
    }
}

/// Asks the endpoints, and the other members that they name.
pub(super) async fn survey(client: &Client, endpoints: &[String]) -> Vec<Surveyed> {
    let ask = |endpoints: Vec<String>| async move {
        join_all(endpoints.into_iter().map(|endpoint| async move {
            let status = client.status(&endpoint, false).await.map_err(|error| error.to_string());
            Surveyed { endpoint, status }
        }))
        .await
    };
    let mut asked: Vec<String> = Vec::new();
    endpoints.iter().filter(|e| !e.is_empty()).for_each(|e| {
        if !asked.contains(e) {
            asked.push(e.clone())
        }
    });
    let mut nodes = ask(asked).await;
    let mut known: Vec<String> = nodes.iter().map(|node| node.endpoint.clone()).collect();
    let answered = nodes.iter().filter_map(|node| node.status.as_ref().ok());
    let named: Vec<&str> = answered.clone().map(|status| status.node_id.as_str()).collect();
    let mut others = Vec::new();
    for member in answered.flat_map(|status| &status.members) {
        // A place that nobody has joined yet, as a restore leaves it, has no client address.
        let elsewhere = !member.client_address.is_empty() && !known.contains(&member.client_address);
        if !named.contains(&member.node_id.as_str()) && elsewhere {
            known.push(member.client_address.clone());
            others.push(member.client_address.clone());
        }
    }
    nodes.extend(ask(others).await);
    nodes.sort_by_key(|node| {
        node.status.as_ref().map_or_else(|_| (true, node.endpoint.clone()), |s| (false, s.node_id.clone()))
    });
    nodes
}

pub(super) fn state_name(state: NodeState) -> String {
    state.as_str_name().trim_start_matches("NODE_STATE_").to_lowercase()
}

/// Prints the table, and below it what the nodes have to say.
pub(super) fn print(nodes: &[Surveyed]) -> anyhow::Result<()> {
    let head =
        ["node", "state", "epoch", "log", "committed", "applied", "digest", "sessions", "memory", "version", "address"];
    let mut table = output::table(&head);
    let mut notes = Vec::new();
    for node in nodes {
        match &node.status {
            Ok(status) => {
                table.add_row([
                    status.node_id.clone(),
                    state_name(status.state()),
                    status.epoch.to_string(),
                    status.last_log_index.to_string(),
                    status.committed_log_index.to_string(),
                    status.applied_log_index.to_string(),
                    format!("{:016x}", status.state_digest),
                    status.sessions.to_string(),
                    output::bytes(status.memory_bytes),
                    status.version.clone(),
                    node.endpoint.clone(),
                ]);
                if let Some(catching_up) = status.restart.as_ref().and_then(restart::line) {
                    notes.push((status.node_id.clone(), catching_up));
                }
                for repaired in status.restart.iter().flat_map(|restart| &restart.repaired) {
                    notes.push((status.node_id.clone(), format!("mended {repaired}")));
                }
                if !status.detail.is_empty() {
                    notes.push((status.node_id.clone(), status.detail.clone()));
                }
            }
            Err(error) => {
                let mut row = vec!["-".to_owned(), "unreachable".to_owned()];
                row.resize(head.len() - 1, "-".to_owned());
                row.push(node.endpoint.clone());
                table.add_row(row);
                notes.push((node.endpoint.clone(), error.clone()));
            }
        }
    }
    output::print_table(&mut table)?;
    for line in module_lines(nodes).into_iter().chain(chain::lines(nodes)) {
        writeln!(anstream::stdout(), "{line}")?;
    }
    let yellow = output::paint(AnsiColor::Yellow);
    for (node, note) in notes {
        writeln!(anstream::stdout(), "{yellow}{node}:{yellow:#} {note}")?;
    }
    Ok(())
}

/// What runs, and where, if that isn't the same everywhere.
fn module_lines(nodes: &[Surveyed]) -> Vec<String> {
    let replicas = nodes.iter().filter_map(|node| node.status.as_ref().ok());
    let replicas: Vec<&StatusResponse> = replicas.filter(|status| !status.module_sha256.is_empty()).collect();
    let mut running: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for status in &replicas {
        let since = match status.module_since_log_index {
            0 => String::new(),
            since => format!(", since log index {since}"),
        };
        let hash = &output::hex(&status.module_sha256)[..12];
        let line = format!("module {hash} ({}){since}", status.module_description);
        running.entry(line).or_default().push(&status.node_id);
    }
    let everywhere = running.len() == 1;
    let told = |(line, nodes): (String, Vec<&str>)| {
        if everywhere { line } else { format!("{line} at {}", nodes.join(", ")) }
    };
    running.into_iter().map(told).collect()
}

/// A node for programs.
pub(super) fn node_json(node: &Surveyed) -> Value {
    match &node.status {
        Err(error) => json!({ "endpoint": node.endpoint, "error": error }),
        Ok(status) => described(node, status),
    }
}

fn described(node: &Surveyed, status: &StatusResponse) -> Value {
    let mut described = json!({
            "endpoint": node.endpoint,
            "node_id": status.node_id,
            "disk_id": format!("{:016x}", status.disk_id),
            "incarnation": status.incarnation,
            "cluster_id": output::hex(&status.cluster_id),
            "lineage": format!("{:016x}", status.lineage),
            "mode": status.mode,
            "state": state_name(status.state()),
            "detail": status.detail,
            "epoch": status.epoch,
            "primary_node_id": status.primary_node_id,
            "primary_address": status.primary_address,
            "last_log_index": status.last_log_index,
            "durable_log_index": status.durable_log_index,
            "committed_log_index": status.committed_log_index,
            "applied_log_index": status.applied_log_index,
            "state_digest": format!("{:016x}", status.state_digest),
            "module_sha256": output::hex(&status.module_sha256),
            "module": status.module_description,
            "engine": status.engine,
            "sessions": status.sessions,
            "memory_bytes": status.memory_bytes,
            "traps": status.traps,
            "version": status.version,
            "witness": status.witness,
            "snapshot_log_index": status.snapshot_log_index,
            "purged_log_index": status.purged_log_index,
            "disk_free_bytes": status.disk_free_bytes,
            "disk_full": status.disk_full,
            "restart": status.restart.as_ref().map(restart::json),
            "divergence": status.divergence.as_ref().map(divergence_json),
            "chain": status.chain.as_ref().map(chain::json),
    });
    // Apart, as one list of all would be too long for the macro.
    described["module_since_log_index"] = status.module_since_log_index.into();
    described["previous_module_sha256"] = output::hex(&status.previous_module_sha256).into();
    described["module_paused_us"] = status.module_paused_us.into();
    described["awaited_engine"] = status.awaited_engine.as_str().into();
    described["members"] = status.members.iter().map(member_json).collect();
    described
}

fn member_json(member: &Member) -> Value {
    json!({
        "node_id": member.node_id,
        "disk_id": format!("{:016x}", member.disk_id),
        "client_address": member.client_address,
        "peer_address": member.peer_address,
        "voter": member.voter,
        "witness": member.witness,
        "matched_log_index": member.matched_log_index,
    })
}

fn divergence_json(found: &Divergence) -> Value {
    json!({
        "outvoted": found.outvoted,
        "against_node_ids": found.against_node_ids,
        "answers_differ": found.answers_differ,
        "equal_log_index": found.equal_log_index,
        "log_index": found.log_index,
        "exact": found.exact,
        "digest": format!("{:016x}", found.digest),
        "digest_there": format!("{:016x}", found.digest_there),
        "found_us": found.found_us,
        "request": found.request.as_ref().map(|request| json!({
            "session_id": output::hex(&request.session_id),
            "sequence": request.sequence,
            "sha256": output::hex(&request.sha256),
            "bytes": request.bytes,
            "preview": request.preview,
        })),
    })
}

/// What a comparison of the replicas found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that answer are equal.
    Equal { replicas: usize, log_index: u64, digest: u64, state_hash: u64 },
    /// They are not.
    Differ(String),
    /// They could not be compared.
    Unknown(String),
}

impl Verdict {
    fn json(&self) -> Value {
        match self {
            Self::Equal { replicas, log_index, digest, state_hash } => json!({
                "result": "equal", "replicas": replicas, "log_index": log_index,
                "state_digest": format!("{digest:016x}"), "state_hash": format!("{state_hash:016x}"),
            }),
            Self::Differ(what) => json!({ "result": "differ", "detail": what }),
            Self::Unknown(why) => json!({ "result": "unknown", "detail": why }),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Equal { replicas, log_index, digest, state_hash } => write!(
                f,
                "{replicas} replicas are equal at log index {log_index}: digest {digest:016x}, whole state {state_hash:016x}"
            ),
            Self::Differ(what) => write!(f, "the replicas differ: {what}"),
            Self::Unknown(why) => write!(f, "not compared: {why}"),
        }
    }
}

/// Waits until all replicas that answer stand at the same index, then compares their digests and the hashes of their whole states.
pub(super) async fn verify(client: &Client, nodes: &[Surveyed]) -> Verdict {
    let replicas = nodes.iter().filter(|node| node.status.as_ref().is_ok_and(|status| !status.witness));
    let endpoints: Vec<&str> = replicas.clone().map(|node| node.endpoint.as_str()).collect();
    if let Some(blank) = replicas.filter_map(|node| node.status.as_ref().ok()).find(|s| s.module_sha256.is_empty()) {
        return Verdict::Unknown(format!("{} has no state yet ({})", blank.node_id, state_name(blank.state())));
    }
    if endpoints.len() < 2 {
        return Verdict::Unknown(format!("{} replicas answer; a comparison needs two", endpoints.len()));
    }
    let began = Instant::now();
    loop {
        let answers = join_all(endpoints.iter().map(|endpoint| client.status(endpoint, true))).await;
        let answers: Result<Vec<StatusResponse>, _> = answers.into_iter().collect();
        if let Ok(answers) = &answers {
            let by_index: BTreeMap<u64, usize> = answers.iter().fold(BTreeMap::new(), |mut all, answer| {
                *all.entry(answer.applied_log_index).or_default() += 1;
                all
            });
            if by_index.len() == 1 {
                return compare(answers);
            }
        }
        if began.elapsed() > VERIFY_MAX {
            let why = answers.map_or_else(
                |error| error.to_string(),
                |answers| {
                    let places = answers.iter().map(|a| format!("{} at {}", a.node_id, a.applied_log_index));
                    format!(
                        "they did not come to the same log index ({}); pause the writes",
                        places.collect::<Vec<_>>().join(", ")
                    )
                },
            );
            return Verdict::Unknown(why);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn compare(answers: &[StatusResponse]) -> Verdict {
    let first = &answers[0];
    let different = answers.iter().find(|a| (a.state_digest, a.state_hash) != (first.state_digest, first.state_hash));
    match different {
        None => Verdict::Equal {
            replicas: answers.len(),
            log_index: first.applied_log_index,
            digest: first.state_digest,
            state_hash: first.state_hash,
        },
        Some(other) => Verdict::Differ(format!(
            "at log index {}, {} has digest {:016x} and state {:016x}, {} has digest {:016x} and state {:016x}",
            first.applied_log_index,
            first.node_id,
            first.state_digest,
            first.state_hash,
            other.node_id,
            other.state_digest,
            other.state_hash
        )),
    }
}
