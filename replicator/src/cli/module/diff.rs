//! `replicator module diff`: a new module beside the one that runs, over a snapshot and the real log after it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use replicator_offline::{
    History,
    beside::{BesideError, Compared, Example, Kind, States, beside},
};
use replicator_types::LogIndex;
use serde_json::{Value, json};

use super::online;
use crate::cli::{
    Failure, Output, init,
    output::{self, Format},
    replay::{
        self,
        examples::{entry_text, outcome_json, outcome_text},
        source::{Source, bar, on_machine_thread, unusable},
        state::{counts, rate, tally_json},
    },
};

#[derive(Debug, Args)]
#[command(
    after_help = "The new module takes over the logical state as at an activation, and gets the same entries as the one that runs. Shown are the requests of which
something else comes: another response, a trap, other pushes. Requests that only the new version knows are among them: they are no errors. Exits
with 0 whether anything differs or not, and with 1 if the module would be refused.

Of a running cluster only one replica is read, and not the primary if there is another: for reading it takes about a tenth of one core at most.

Examples:
  replicator module diff new.wasm --data-dir /var/lib/replicator/n1
  replicator module diff new.wasm --endpoints 10.0.0.1:7101,10.0.0.2:7101"
)]
pub(in crate::cli) struct DiffArgs {
    /// The new module
    #[arg(value_name = "FILE.wasm")]
    module: PathBuf,
    /// A stopped node's data folder, a saved snapshot, or a fixture
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "node")]
    data_dir: Option<PathBuf>,
    /// Client addresses of one or more nodes of a running cluster: a replica's newest image and the log after it are compared here
    #[arg(
        long,
        env = "REPLICATOR_ENDPOINTS",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        required_unless_present = "data_dir"
    )]
    endpoints: Vec<String>,
    /// With --endpoints: of which node; if not given, a replica that isn't the primary
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Stop after the entry with this index
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Compare the entries at the log's end too that aren't known to be committed
    #[arg(long, requires = "data_dir")]
    to_end: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: DiffArgs) -> Result<(), Failure> {
    let (until, format) = (args.until.map(LogIndex), args.output.output);
    let Some(folder) = &args.data_dir else {
        let collected = online::collect(&args.endpoints, args.node.as_deref(), format).await?;
        let until = replay::end(&collected, until, false)?;
        return compare(&collected, &args.module, until, format);
    };
    let source = Source::open(folder)?;
    source.tell_notes(format);
    let history = source.history();
    let until = replay::end(history, until, args.to_end)?;
    compare(history, &args.module, until, format)
}

/// Runs the module beside what ran, and tells what differs.
pub(in crate::cli) fn compare(
    history: &dyn History,
    module: &Path,
    until: LogIndex,
    format: Format,
) -> Result<(), Failure> {
    let module = init::read(module)?;
    let (compared, took) = on_machine_thread(|| {
        let bar = bar("comparing", LogIndex(0), until);
        let (mut began, mut reached) = (Instant::now(), Instant::now());
        let mut progress = |at: LogIndex| {
            reached = Instant::now();
            bar.set_position(at.0);
        };
        let compared = beside(history, module.into(), until, &mut progress, &mut || began = Instant::now());
        let compared = compared.map_err(|error| match error {
            BesideError::Offline(error) => unusable(error),
            error @ BesideError::Same(_) => Failure::Usage(error.to_string()),
            error @ BesideError::Refused(_) => Failure::Failed(error.into()),
        })?;
        bar.finish_and_clear();
        Ok((compared, reached.saturating_duration_since(began)))
    })?;
    compared.notes.iter().for_each(|note| output::note(format, note));
    match format {
        Format::Json => output::print_json(&compared_json(&compared, took))?,
        Format::Table => print(&compared, took)?,
    }
    Ok(())
}

fn print(compared: &Compared, took: Duration) -> anyhow::Result<()> {
    let Compared { from, to, old, new, state_bytes, tally, traps, differences, states, .. } = compared;
    println!("active:  {} ({})", old.1, old.0);
    println!("new:     {} ({})", new.1, new.0);
    println!(
        "over:    the state after entry {}, of which the new one took over {}, and the entries up to {}: {}",
        from.index,
        output::bytes(*state_bytes),
        to.index,
        counts(tally.kinds())
    );
    println!("traps:   {} in the active one, {} in the new one", traps.0, traps.1);
    println!("speed:   {:.0} requests/s", rate(tally.requests(), took));
    let told: Vec<(&str, u64)> = Kind::ALL
        .into_iter()
        .map(|kind| (kind.name(), differences.count(kind)))
        .filter(|(_, count)| *count > 0)
        .collect();
    match differences.total() {
        0 => println!("results: every response and push is the same"),
        total => println!("results: {total} of {} entries differ: {}", tally.entries(), counts(told.into_iter())),
    }
    match states {
        States::Equal { bytes } => {
            println!(
                "state:   the new one has come to what it would make of the active one's state: {}",
                output::bytes(*bytes)
            );
        }
        States::Differ { old_bytes, new_bytes, at } => println!(
            "state:   the new one has come to another state ({new_bytes} bytes) than what it would make of the active one's ({old_bytes} bytes): \
             they differ from byte {at} on"
        ),
        States::Refused(refusal) => println!("state:   the state at the end can't be taken over: {refusal}"),
    }
    for Example { kind, position, entry, old, new } in differences.examples() {
        println!("\n{} at entry {position}: {}", kind.name(), entry_text(entry));
        println!("  active: {}", outcome_text(old));
        println!("  new:    {}", outcome_text(new));
    }
    Ok(())
}

fn compared_json(compared: &Compared, took: Duration) -> Value {
    let Compared { from, to, old, new, state_bytes, tally, traps, differences, states, .. } = compared;
    let counts: serde_json::Map<String, Value> =
        Kind::ALL.into_iter().map(|kind| (kind.name().to_owned(), differences.count(kind).into())).collect();
    let example = |example: &Example| {
        json!({
            "kind": example.kind.name(),
            "log_index": example.position.index.0,
            "epoch": example.position.epoch.0,
            "entry": entry_text(&example.entry),
            "active": outcome_json(&example.old),
            "new": outcome_json(&example.new),
        })
    };
    json!({
        "active": { "module": old.1, "module_sha256": old.0.to_string(), "traps": traps.0 },
        "new": { "module": new.1, "module_sha256": new.0.to_string(), "traps": traps.1 },
        "from_log_index": from.index.0,
        "to_log_index": to.index.0,
        "state_bytes": state_bytes,
        "applied": tally_json(tally),
        "differing": differences.total(),
        "differences": counts,
        "examples": differences.examples().iter().map(example).collect::<Vec<_>>(),
        "state": match states {
            States::Equal { bytes } => json!({ "equal": true, "bytes": bytes }),
            States::Differ { old_bytes, new_bytes, at } => {
                json!({ "equal": false, "active_bytes": old_bytes, "new_bytes": new_bytes, "differs_at": at })
            }
            States::Refused(refusal) => json!({ "equal": false, "refused": refusal.to_string() }),
        },
        "requests_per_second": rate(tally.requests(), took).round(),
    })
}
