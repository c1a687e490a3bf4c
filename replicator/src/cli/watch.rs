//! `replicator status --watch`: the nodes side by side, again and again.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use replicator_client::Client;
use replicator_proto::replicator::v1::{NodeState, StatusResponse};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Failure,
    output::{self, Format},
    status::{self, Surveyed},
};

/// How long a node may take to answer, so that one that is gone doesn't hold up the others.
const NODE_MAX: Duration = Duration::from_secs(1);
/// To the upper left corner, without clearing: what is drawn over doesn't flicker.
const HOME: &str = "\x1b[H";
/// Clears the rest of a line, and the rest of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows the nodes every `period` until it is interrupted.
pub(super) async fn run(endpoints: &[String], period: Duration, format: Format) -> Result<(), Failure> {
    let client =
        Client::builder().endpoints(endpoints.iter().cloned()).deadline(NODE_MAX).connect_timeout(NODE_MAX).build()?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        failed = watch(&client, endpoints, period, format) => failed,
    }
}

async fn watch(client: &Client, endpoints: &[String], period: Duration, format: Format) -> Result<(), Failure> {
    let mut history = History::new();
    let mut asked = endpoints.to_vec();
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let nodes = status::survey(client, &asked).await;
        // Once known, a node is asked together with the others, and shown also when nobody names it.
        asked = nodes.iter().map(|node| node.endpoint.clone()).collect();
        let sample = history.next(nodes);
        match format {
            Format::Json => output::print_json_line(&sample.json())?,
            Format::Table => draw(&sample)?,
        }
    }
}

fn draw(sample: &Sample) -> anyhow::Result<()> {
    let text = sample.text();
    let mut out = anstream::stdout().lock();
    if io::stdout().is_terminal() {
        // Past anstream, which takes escape codes for colours and drops both together.
        let mut screen = io::stdout().lock();
        write!(screen, "{}", if sample.first { "\x1b[2J\x1b[H" } else { HOME })?;
        for line in text.lines() {
            write!(out, "{line}")?;
            writeln!(screen, "{CLEAR_LINE}")?;
        }
        write!(screen, "{CLEAR_BELOW}")?;
        screen.flush()?;
    } else {
        writeln!(out, "{text}")?;
        out.flush()?;
    }
    Ok(())
}

/// What one node had applied, and when.
struct Applied {
    index: u64,
    at: Instant,
}

/// What was seen before.
struct History {
    began: Instant,
    /// By the node's address.
    last: HashMap<String, Applied>,
    /// The nodes' names, by address: one that is gone can't tell its own.
    names: HashMap<String, String>,
    first: bool,
}

impl History {
    fn new() -> Self {
        Self { began: Instant::now(), last: HashMap::new(), names: HashMap::new(), first: true }
    }

    fn next(&mut self, nodes: Vec<Surveyed>) -> Sample {
        let now = Instant::now();
        for node in &nodes {
            if let Ok(status) = &node.status {
                self.names.insert(node.endpoint.clone(), status.node_id.clone());
                let members = status.members.iter().map(|m| (m.client_address.clone(), m.node_id.clone()));
                members.for_each(|(address, name)| {
                    self.names.entry(address).or_insert(name);
                });
            }
        }
        let mut rows: Vec<Row> = nodes
            .into_iter()
            .map(|node| {
                let name = self.names.get(&node.endpoint).cloned();
                let index = node.status.as_ref().ok().map(|status| status.applied_log_index);
                let last = index.and_then(|index| self.last.insert(node.endpoint.clone(), Applied { index, at: now }));
                let rate = index.zip(last).map(|(index, last)| {
                    // A node that came back with an empty disk begins at 0.
                    let seconds = now.duration_since(last.at).as_secs_f64().max(0.001);
                    index.saturating_sub(last.index) as f64 / seconds
                });
                Row { node, name, rate }
            })
            .collect();
        // A node that dies keeps its place.
        rows.sort_by(|a, b| (a.name.is_none(), &a.name).cmp(&(b.name.is_none(), &b.name)));
        let first = std::mem::take(&mut self.first);
        Sample { rows, since: now.duration_since(self.began), first }
    }
}

/// A node in a sample.
struct Row {
    node: Surveyed,
    /// Its name, if it was ever told.
    name: Option<String>,
    /// Entries applied in each second since the last sample.
    rate: Option<f64>,
}

impl Row {
    fn status(&self) -> Option<&StatusResponse> {
        self.node.status.as_ref().ok()
    }
}

/// All nodes at one time.
struct Sample {
    rows: Vec<Row>,
    since: Duration,
    first: bool,
}

impl Sample {
    fn answers(&self) -> impl Iterator<Item = &StatusResponse> {
        self.rows.iter().filter_map(Row::status)
    }

    /// The primary of the latest epoch: one that is cut off may not know yet that there is another.
    fn primary(&self) -> Option<&str> {
        let primaries = self.answers().filter(|status| status.state() == NodeState::Primary);
        primaries.max_by_key(|status| status.epoch).map(|status| status.node_id.as_str())
    }

    /// The greatest index that any node knows to be committed.
    fn committed(&self) -> u64 {
        self.answers().map(|status| status.committed_log_index.max(status.applied_log_index)).max().unwrap_or_default()
    }

    /// How many entries each node has still to apply.
    fn behind(&self, status: &StatusResponse) -> u64 {
        self.committed().saturating_sub(status.applied_log_index)
    }

    fn json(&self) -> Value {
        let nodes = self.rows.iter().map(|row| {
            let mut json = status::node_json(&row.node);
            json["node_id"] = row.name.clone().into();
            if let Some(status) = row.status() {
                json["behind"] = self.behind(status).into();
                json["applied_per_sec"] = row.rate.map(|rate| (rate * 10.0).round() / 10.0).into();
            }
            json
        });
        let nodes: Vec<Value> = nodes.collect();
        json!({
            "elapsed_ms": u64::try_from(self.since.as_millis()).unwrap_or(u64::MAX),
            "primary_node_id": self.primary(),
            "nodes": nodes,
        })
    }

    fn text(&self) -> String {
        let (bold, yellow) = (anstyle::Style::new().bold(), output::paint(anstyle::AnsiColor::Yellow));
        let primary = match self.primary() {
            Some(name) => format!("{bold}{name}{bold:#} is the primary"),
            None => format!("{yellow}no primary{yellow:#}"),
        };
        let up = self.answers().count();
        let of = output::count(self.rows.len(), "node");
        let head = format!(
            "{primary}; {up} of {of} answer; committed {}; +{:.1} s",
            self.committed(),
            self.since.as_secs_f64()
        );
        let columns = ["node", "state", "epoch", "applied", "behind", "entries/s", "sessions", "memory", "address"];
        let mut table = output::table(&columns);
        let mut notes = String::new();
        for row in &self.rows {
            let address = row.node.endpoint.clone();
            let name = row.name.clone().unwrap_or_else(|| "-".to_owned());
            let note = match &row.node.status {
                Ok(status) => {
                    table.add_row([
                        name.clone(),
                        status::state_name(status.state()),
                        status.epoch.to_string(),
                        status.applied_log_index.to_string(),
                        self.behind(status).to_string(),
                        row.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")),
                        status.sessions.to_string(),
                        output::bytes(status.memory_bytes),
                        address,
                    ]);
                    &status.detail
                }
                Err(error) => {
                    let mut cells = vec![name.clone(), "unreachable".to_owned()];
                    cells.resize(columns.len() - 1, "-".to_owned());
                    cells.push(address);
                    table.add_row(cells);
                    error
                }
            };
            if !note.is_empty() {
                notes.push_str(&format!("{yellow}{name}:{yellow:#} {note}\n"));
            }
        }
        format!("{head}\n{}{notes}", output::table_text(&mut table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, epoch: u64, state: NodeState, applied: u64) -> Surveyed {
        let status = StatusResponse {
            node_id: name.to_owned(),
            epoch,
            state: state.into(),
            applied_log_index: applied,
            ..StatusResponse::default()
        };
        Surveyed { endpoint: format!("{name}:1"), status: Ok(status) }
    }

    fn gone(name: &str) -> Surveyed {
        Surveyed { endpoint: format!("{name}:1"), status: Err("no answer in time".to_owned()) }
    }

    #[test]
    fn rates_and_lag_come_from_two_samples() {
        let mut history = History::new();
        let first = history.next(vec![node("a", 2, NodeState::Primary, 100), node("b", 2, NodeState::Follower, 90)]);
        assert!(first.first && first.rows.iter().all(|row| row.rate.is_none()));
        assert_eq!(first.json()["nodes"][1]["behind"], 10);
        history.last.values_mut().for_each(|last| last.at -= Duration::from_secs(10));
        let second = history.next(vec![node("a", 2, NodeState::Primary, 200), gone("b")]);
        let rate = second.rows[0].rate.unwrap();
        assert!(!second.first && (9.0..10.1).contains(&rate), "{rate}");
        let text = second.text();
        assert!(text.contains("1 of 2 nodes answer") && text.contains("b     unreachable"), "{text}");
        assert_eq!(second.json()["nodes"][1]["error"], "no answer in time");
    }

    #[test]
    fn primary_of_the_latest_epoch_counts() {
        let mut history = History::new();
        let both = history.next(vec![node("a", 2, NodeState::Primary, 1), node("b", 3, NodeState::Primary, 1)]);
        assert_eq!(both.primary(), Some("b"));
        assert_eq!(history.next(vec![gone("a")]).primary(), None);
    }
}
