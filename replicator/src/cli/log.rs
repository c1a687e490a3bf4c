//! `replicator log`: what is in a stopped node's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use replicator_machine::{Command, Entry};
use replicator_storage::{LogReport, LoggedRecord, NodeDir, NodeReport, RecordKind, SnapshotsReport, StorageError};
use replicator_types::{LogIndex, codec};
use serde_json::{Value, json};

use super::{
    Failure, Output,
    output::{self, Format},
};
use crate::config::Mode;

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Read every byte of a stopped node's folder and name all damage: logs, meta, modules, snapshots. Changes nothing; exits with 3 if there is any
    Verify(VerifyArgs),
    /// Print the records of a stopped node's log
    Dump(DumpArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The node's data folder
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// The node's data folder
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Which log: `log`, or `configuration` for that of a chain's configuration group
    #[arg(long, default_value = "log", value_name = "NAME")]
    log: String,
    /// From this index on
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    from: u64,
    /// At most so many records
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Verify(args) => verify(&args),
        LogCommand::Dump(args) => dump(&args),
    }
}

/// A folder that nobody can look at isn't damaged.
pub(super) fn unreadable(error: StorageError) -> Failure {
    match error {
        StorageError::Damaged { .. }
        | StorageError::DamagedSnapshot { .. }
        | StorageError::DamagedSave { .. }
        | StorageError::Version { .. } => Failure::Damage(error.into()),
        other => Failure::Failed(other.into()),
    }
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let report = NodeDir::verify(&args.data_dir).map_err(unreadable)?;
    match args.output.output {
        Format::Json => output::print_json(&report_json(&report))?,
        Format::Table => print_report(&report)?,
    }
    match report.damages().count() {
        0 => Ok(()),
        n => Err(Failure::Damage(anyhow!(
            "{} found in {}. Start the node: it mends what its peers still have. If it can't, it says so; then start it with --rejoin, which sets the folder's content aside, and takes everything from its peers",
            output::count(n, "damage"),
            args.data_dir.display()
        ))),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn print_report(report: &NodeReport) -> anyhow::Result<()> {
    if let Ok(meta) = &report.meta {
        println!("node {}, disk {}, started {} times", meta.node, meta.disk, meta.incarnation.0);
    }
    let mut table = output::table(&["file", "holds", "bytes", "first", "last"]);
    let at = |position: Option<replicator_types::Position>| position.map_or("-".to_owned(), |at| at.to_string());
    for log in &report.logs {
        for segment in &log.segments {
            let file = format!("{}/{}", name(&log.path), name(&segment.path));
            let holds = match segment.start {
                Some(_) => format!("{} records", segment.records),
                None => "nothing".to_owned(),
            };
            table.add_row([file, holds, output::bytes(segment.bytes), at(segment.first), at(segment.last)]);
        }
    }
    for hash in &report.modules.whole {
        table.add_row(["modules/", &format!("{hash}.wasm"), "", "", ""]);
    }
    for folder in &report.snapshots {
        for snapshot in folder.snapshots.iter().filter_map(|snapshot| snapshot.manifest.as_ref().ok()) {
            let (file, last) = (format!("{}/", name(&folder.path)), snapshot.position().to_string());
            table.add_row([file, "image".into(), output::bytes(snapshot.data_bytes), "-".into(), last]);
        }
    }
    output::print_table(&mut table)?;
    for log in &report.logs {
        let purged = log.purged.map_or(String::new(), |purged| format!(", begins after {purged}"));
        println!("{}: ends at {}, durable to {}{purged}", name(&log.path), at(log.last), at(log.durable));
        if let Some(tail) = &log.torn_tail {
            println!(
                "{}: torn tail in {} at byte {}: {} bytes, {} whole records; nobody was told of them",
                name(&log.path),
                tail.file.display(),
                tail.offset,
                tail.bytes,
                tail.records
            );
        }
    }
    let red = output::paint(anstyle::AnsiColor::Red);
    for damage in report.damages() {
        anstream::println!("{red}damage:{red:#} {damage}");
    }
    for repair in &report.repairs {
        println!("mended before, in seconds since 1970: {repair}");
    }
    if report.is_whole() {
        println!("everything is as it was written");
    }
    Ok(())
}

fn report_json(report: &NodeReport) -> Value {
    let log = |log: &LogReport| {
        json!({
            "name": name(&log.path),
            "purged": log.purged.map(|at| at.index.0),
            "last": log.last.map(|at| at.index.0),
            "durable": log.durable.map(|at| at.index.0),
            "torn_tail": log.torn_tail.as_ref().map(|tail| json!({
                "file": tail.file, "offset": tail.offset, "bytes": tail.bytes, "records": tail.records,
            })),
            "segments": log.segments.iter().map(|segment| json!({
                "file": name(&segment.path),
                "bytes": segment.bytes,
                "records": segment.records,
                "first": segment.first.map(|at| at.index.0),
                "last": segment.last.map(|at| at.index.0),
            })).collect::<Vec<_>>(),
        })
    };
    let snapshots = |folder: &SnapshotsReport| {
        let whole = folder.snapshots.iter().filter_map(|snapshot| snapshot.manifest.as_ref().ok());
        json!({ "name": name(&folder.path), "log_indexes": whole.map(|m| m.position().index.0).collect::<Vec<_>>() })
    };
    json!({
        "node_id": report.meta.as_ref().ok().map(|meta| meta.node.clone()),
        "disk_id": report.meta.as_ref().ok().map(|meta| meta.disk.to_string()),
        "logs": report.logs.iter().map(log).collect::<Vec<_>>(),
        "modules": report.modules.whole.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "snapshots": report.snapshots.iter().map(snapshots).collect::<Vec<_>>(),
        "repairs": report.repairs,
        "damages": report.damages().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let framed = framing(&args.data_dir, &args.log)?;
    let records = NodeDir::dump(&args.data_dir, &args.log, LogIndex(args.from)).map_err(unreadable)?;
    let mut damages = 0;
    for record in records.take(args.limit.unwrap_or(usize::MAX)) {
        match (record, args.output.output) {
            (Ok(record), Format::Json) => output::print_json_line(&record_json(&record, framed))?,
            (Ok(record), Format::Table) => {
                let kind = kind(record.kind);
                let (at, what) = (record.position, described(&record, framed));
                print_line(&format!("{at:<16} {kind:<14} {:>8} B  {what}", record.payload.len()))?;
            }
            (Err(error), _) => {
                damages += 1;
                output::note(args.output.output, &error.to_string());
            }
        }
    }
    if damages > 0 {
        let why = "see `replicator log verify` for whether it is damage or a torn tail";
        return Err(Failure::Damage(anyhow!("{} can't be read; {why}", output::count(damages, "place"))));
    }
    Ok(())
}

fn print_line(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// Whether the entries of this log begin with a kind byte: those of openraft's groups do.
fn framing(dir: &Path, log: &str) -> Result<bool, Failure> {
    let report = NodeDir::verify_meta(dir).map_err(unreadable)?;
    let mode = report.mode.as_deref().context("this node belongs to no cluster")?;
    Ok(log != "log" || mode == Mode::Majority.to_string())
}

const fn kind(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Append => "append",
        RecordKind::TruncateAfter => "truncate after",
        RecordKind::PurgeThrough => "purge through",
        RecordKind::TruncateAll => "truncate all",
    }
}

/// What an entry orders, as far as this program can tell.
fn described(record: &LoggedRecord, framed: bool) -> String {
    if record.kind != RecordKind::Append {
        return String::new();
    }
    let payload = match (framed, record.payload.split_first()) {
        (false, _) => &record.payload[..],
        (true, Some((1, rest))) => rest,
        (true, Some((0, _))) => return "blank: a primary begins its term".into(),
        (true, Some((2, _))) => return "members".into(),
        (true, _) => return "unknown".into(),
    };
    let Ok(entry) = codec::decode::<Entry>(payload) else { return "an entry of another kind".into() };
    command_text(&entry.command)
}

/// What a command orders.
pub(super) fn command_text(command: &Command) -> String {
    match command {
        Command::Genesis(genesis) => format!("genesis of cluster {}, module {}", genesis.cluster, genesis.module),
        Command::OpenSession { ttl_us } => format!("open a session for {} s", ttl_us / 1_000_000),
        Command::CloseSession { session } => format!("close session {session}"),
        Command::KeepAlive { session } => format!("keep session {session}"),
        Command::Request { session, sequence, request, .. } => {
            format!("request {sequence} of session {session}, {} bytes", request.len())
        }
        Command::Tick => "tick".into(),
        Command::Recover { replaces, lineage } => format!("recovery: lineage {lineage} after {replaces}"),
        Command::Activate { module, expected } => format!("activate module {module} in place of {expected}"),
        Command::Upgrade { from, to } => format!("engine barrier: {to} after {from}"),
    }
}

fn record_json(record: &LoggedRecord, framed: bool) -> Value {
    json!({
        "epoch": record.position.epoch.0,
        "log_index": record.position.index.0,
        "kind": kind(record.kind),
        "segment": record.segment,
        "byte": record.byte,
        "payload_bytes": record.payload.len(),
        "entry": described(record, framed),
    })
}
