//! `replicator replay`: runs a stopped node's log again, offline, and tells what came of it.

mod changes;
pub(super) mod examples;
mod export;
mod fixture;
mod queries;
pub(super) mod source;
pub(super) mod state;

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use replicator_offline::{History, OfflineError, Replay};
use replicator_types::LogIndex;

use self::source::{Source, on_machine_thread};
use super::{Failure, Output, module, output};

#[derive(Debug, Args)]
#[command(
    after_help = "A log doesn't say how far it is committed. By default entries are applied up to the last one that is known to be: from images, from what the
peers have told, from where a chain's epoch began. --to-end applies those after it too, which perhaps nobody was told of.

Examples:
  replicator replay /var/lib/replicator/n1
  replicator replay /var/lib/replicator/n1 --until 5000 --query 'get hits' --query @request.bin
  replicator replay /var/lib/replicator/n1 --diff 4000 5000
  replicator replay /var/lib/replicator/n1 --against target/modules/new.wasm
  replicator replay /var/lib/replicator/n1 --export tests/run.fixture
  replicator replay tests/run.fixture --module target/modules/counter.wasm"
)]
pub(super) struct ReplayArgs {
    /// A stopped node's data folder, a saved snapshot, or a fixture that --export wrote: that one is also compared with what came of it then
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Stop after the entry with this index
    #[arg(long, value_name = "N", conflicts_with = "diff")]
    until: Option<u64>,
    /// Apply the entries at the log's end too that aren't known to be committed
    #[arg(long)]
    to_end: bool,
    /// Ask the module this at the end; @FILE takes the request from a file. May be given several times
    #[arg(long, value_name = "TEXT|@FILE")]
    query: Vec<String>,
    /// Queries are written in hexadecimal digits, also in files
    #[arg(long, requires = "query")]
    hex: bool,
    /// Show what changed between two indices: entries, outcomes, sessions, pages of memory
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["query", "against", "export"])]
    diff: Option<Vec<u64>>,
    /// Run this module beside the one that ran, and show the requests of which something else comes; see `replicator module diff`
    #[arg(long, value_name = "FILE.wasm", conflicts_with_all = ["query", "export"])]
    against: Option<PathBuf>,
    /// Write the run into this file, to be kept beside the module's tests
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Replace the file of --export, if there is one
    #[arg(long, requires = "export")]
    force: bool,
    /// With a fixture: run this module instead of the one that ran
    #[arg(long, value_name = "FILE.wasm")]
    module: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let source = Source::open(&args.path)?;
    source.tell_notes(args.output.output);
    if let Source::Fixture(fixture) = source {
        return fixture::run(args, *fixture);
    }
    if args.module.is_some() {
        let why = "--module runs a fixture by another module; for a folder, use --against";
        return Err(Failure::Usage(why.into()));
    }
    let history = source.history();
    match (&args.diff, &args.against) {
        (Some(between), _) => changes::run(args, history, (LogIndex(between[0]), LogIndex(between[1]))),
        (None, Some(other)) => {
            let until = args.end(history)?;
            module::diff::compare(history, other, until, args.output.output)
        }
        (None, None) => replay(args, &source),
    }
}

impl ReplayArgs {
    /// The last entry to be applied.
    fn end(&self, history: &dyn History) -> Result<LogIndex, Failure> {
        end(history, self.until.map(LogIndex), self.to_end)
    }
}

/// The last entry to be applied: the one that was asked for, or the last that is known to be committed.
pub(super) fn end(history: &dyn History, until: Option<LogIndex>, to_end: bool) -> Result<LogIndex, Failure> {
    let last = history.last().ok_or(OfflineError::Empty).map_err(source::unusable)?.index;
    let committed = history.committed();
    match (until, committed) {
        (Some(wanted), _) if wanted > last => Err(source::unusable(OfflineError::Beyond { wanted, last })),
        _ if to_end => Ok(until.unwrap_or(last)),
        (Some(until), Some(committed)) if until <= committed => Ok(until),
        (None, Some(committed)) => Ok(committed),
        (Some(until), known) => Err(Failure::Usage(format!(
            "entry {until} isn't known to be committed: {}. Give --to-end too to apply entries that perhaps nobody was told of",
            known.map_or_else(|| "nothing is".to_owned(), |known| format!("{known} is the last one that is"))
        ))),
        (None, None) => Err(Failure::Failed(anyhow!(
            "no entry of this log is known to be committed; give --to-end to apply entries that perhaps nobody was told of"
        ))),
    }
}

fn replay(args: &ReplayArgs, source: &Source) -> Result<(), Failure> {
    let (history, format) = (source.history(), args.output.output);
    let queries = queries::read(&args.query, args.hex)?;
    let until = args.end(history)?;
    on_machine_thread(|| {
        let mut replay = Replay::begin(history, until, history.modules()).map_err(source::unusable)?;
        replay.notes().iter().for_each(|note| output::note(format, note));
        let timed = match &args.export {
            None => state::run(&mut replay, until)?,
            Some(file) => export::run(&mut replay, until, file, args.force)?,
        };
        let answers = queries::ask(replay.machine(), &queries)?;
        state::print(source, &mut replay, timed, &answers, args.export.as_deref(), format)
    })
}
