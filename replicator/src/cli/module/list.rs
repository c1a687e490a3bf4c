//! `replicator module list`.

use std::{io::Write as _, time::Duration};

use anstyle::AnsiColor;
use clap::Args;
use replicator_proto::replicator::v1 as pb;
use serde_json::{Value, json};

use super::{
    super::{
        Endpoints, Failure, Output,
        output::{self, Format},
    },
    nodes::{self, Nodes, short, state_name},
    upload::nodes_json,
};

/// How long a cluster may take to tell.
const LIST_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: ListArgs) -> Result<(), Failure> {
    let modules = Nodes::new(&args.endpoints.endpoints, LIST_MAX)?.list().await?;
    match args.output.output {
        Format::Json => output::print_json(&json!({ "modules": modules.iter().map(module_json).collect::<Vec<_>>() }))?,
        Format::Table => print(&modules)?,
    }
    Ok(())
}

fn word<'a>(module: &'a pb::Module, key: &str) -> &'a str {
    nodes::word(&module.description, key).unwrap_or("-")
}

const fn part(module: &pb::Module) -> &'static str {
    match (module.active, module.previous) {
        (true, _) => "active",
        (_, true) => "previous",
        _ => "",
    }
}

fn module_json(module: &pb::Module) -> Value {
    json!({
        "sha256": output::hex(&module.sha256),
        "module": module.description,
        "bytes": module.bytes,
        "active": module.active,
        "previous": module.previous,
        "since_log_indexes": module.since_log_indexes,
        "nodes": nodes_json(&module.nodes),
    })
}

fn print(modules: &[pb::Module]) -> anyhow::Result<()> {
    let nodes: Vec<&str> = modules
        .first()
        .map(|module| module.nodes.iter().map(|node| node.node_id.as_str()).collect())
        .unwrap_or_default();
    let head = ["module", "", "app", "version", "schema", "size", "ran from"];
    let head: Vec<&str> = head.into_iter().chain(nodes).collect();
    let mut table = output::table(&head);
    let mut notes = Vec::new();
    for module in modules {
        let since: Vec<String> = module.since_log_indexes.iter().map(u64::to_string).collect();
        let of_module = [
            short(&module.sha256),
            part(module).to_owned(),
            word(module, "app").to_owned(),
            word(module, "version").to_owned(),
            word(module, "schema").to_owned(),
            output::bytes(module.bytes),
            if since.is_empty() { "-".to_owned() } else { since.join(", ") },
        ];
        table.add_row(of_module.into_iter().chain(module.nodes.iter().map(|node| state_name(node.state()))));
        for node in module.nodes.iter().filter(|node| !node.detail.is_empty()) {
            notes.push((format!("{} at {}", short(&module.sha256), node.node_id), &node.detail));
        }
    }
    output::print_table(&mut table)?;
    let yellow = output::paint(AnsiColor::Yellow);
    for (which, note) in notes {
        writeln!(anstream::stdout(), "{yellow}{which}:{yellow:#} {note}")?;
    }
    Ok(())
}
