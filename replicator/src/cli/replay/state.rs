//! Where a replay has come to, told.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use replicator_machine::{QueryOutcome, RequestResult};
use replicator_offline::{Beginning, Replay, Tally};
use replicator_types::LogIndex;
use serde_json::{Value, json};

use super::source::{Source, bar, unusable};
use crate::cli::{
    Failure,
    call::print::{readable, with_response},
    output::{self, Format},
};

/// Applies the entries up to `until`, and says how long that took.
pub(super) fn run(replay: &mut Replay<'_>, until: LogIndex) -> Result<Duration, Failure> {
    let from = match replay.beginning() {
        Beginning::Genesis => LogIndex(0),
        Beginning::Image(at) => at.index.next(),
    };
    let bar = bar("replaying", from, until);
    let began = Instant::now();
    replay.run_to(until, &mut |at| bar.set_position(at.0 - from.0)).map_err(unusable)?;
    bar.finish_and_clear();
    Ok(began.elapsed())
}

/// Entries or requests for each second.
pub(in crate::cli) fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(1e-9)
}

/// Counts, for programs.
pub(in crate::cli) fn tally_json(tally: &Tally) -> Value {
    json!({
        "entries": tally.entries(),
        "kinds": tally.kinds().collect::<std::collections::BTreeMap<_, _>>(),
        "outcomes": tally.outcomes().collect::<std::collections::BTreeMap<_, _>>(),
        "pushes": tally.pushes,
        "push_bytes": tally.push_bytes,
        "request_bytes": tally.request_bytes,
    })
}

/// `3 request, 1 tick`.
pub(in crate::cli) fn counts<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let counts: Vec<String> = counts.map(|(what, count)| format!("{count} {what}")).collect();
    if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") }
}

/// Prints the position, the state there and what queries were answered.
pub(super) fn print(
    source: &Source,
    replay: &mut Replay<'_>,
    took: Duration,
    answers: &[(String, QueryOutcome)],
    exported: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let mut told = described(source, replay, took);
    if let Some(file) = exported {
        told["exported"] = file.display().to_string().into();
    }
    match format {
        Format::Json => {
            told["queries"] = answers.iter().map(|(request, outcome)| answer_json(request, outcome)).collect();
            output::print_json(&told)?;
        }
        Format::Table => {
            let tally = replay.tally();
            told["applied"] = format!("{} entries: {}", tally.entries(), counts(tally.kinds())).into();
            told["outcomes"] = counts(tally.outcomes()).into();
            told["pushes"] = tally.pushes.into();
            crate::cli::snapshot::images::print_fields(&told);
            for (request, outcome) in answers {
                println!("{request}\n  {}", answer_text(outcome).replace('\n', "\n  "));
            }
            uncommitted(source, replay, format);
        }
    }
    Ok(())
}

fn uncommitted(source: &Source, replay: &mut Replay<'_>, format: Format) {
    let history = source.history();
    let (last, applied) = (history.last().map(|last| last.index), replay.machine().applied().map(|at| at.index));
    let committed = history.committed();
    if applied > committed {
        let from = committed.map_or(LogIndex(0), LogIndex::next);
        output::note(format, &format!("entries from {from} on were applied, and aren't known to be committed"));
    } else if last > committed && applied == committed {
        let (from, last) = (committed.map_or(LogIndex(0), LogIndex::next), last.unwrap_or_default());
        let what = format!(
            "entries {from} to {last} are in this log too, and aren't known to be committed; --to-end applies them"
        );
        output::note(format, &what);
    }
}

fn described(source: &Source, replay: &mut Replay<'_>, took: Duration) -> Value {
    let (history, tally) = (source.history(), replay.tally().clone());
    let image = match replay.beginning() {
        Beginning::Genesis => None,
        Beginning::Image(at) => Some(at.index.0),
    };
    let machine = replay.machine();
    let (position, stats) = (machine.applied().unwrap_or_default(), machine.stats());
    let genesis = machine.genesis();
    let mut told = json!({
        "cluster_id": genesis.map(|genesis| genesis.cluster.to_string()),
        "module_sha256": machine.active_module().map(|module| module.to_string()),
        "engine": machine.engine(),
    });
    told["module"] = stats.module_description.into();
    told["lineage"] = machine.lineages().last().map(ToString::to_string).into();
    told["began_with_image"] = image.into();
    told["log_index"] = position.index.0.into();
    told["epoch"] = position.epoch.0.into();
    told["committed_log_index"] = history.committed().map(|at| at.0).into();
    told["last_log_index"] = history.last().map(|at| at.index.0).into();
    told["state_digest"] = machine.digest().to_string().into();
    told["state_hash"] = machine.state_hash().to_string().into();
    told["sessions"] = stats.sessions.into();
    told["memory_bytes"] = stats.memory_bytes.into();
    told["traps"] = stats.traps.into();
    told["applied"] = tally_json(&tally);
    told["seconds"] = json!((took.as_secs_f64() * 1e3).round() / 1e3);
    told["entries_per_second"] = json!(rate(tally.entries(), took).round());
    told["requests_per_second"] = json!(rate(tally.requests(), took).round());
    told
}

fn answer_json(request: &str, outcome: &QueryOutcome) -> Value {
    let asked = json!({ "query": request });
    match outcome {
        QueryOutcome::Answered { result: RequestResult::Reply(reply), .. } => with_response(asked, reply),
        QueryOutcome::Answered { result: RequestResult::Trap(trap), .. } => {
            json!({ "query": request, "error": { "reason": "MODULE_TRAPPED", "message": trap.to_string() } })
        }
        QueryOutcome::Refused(refusal) => json!({ "query": request, "error": { "message": refusal.to_string() } }),
    }
}

fn answer_text(outcome: &QueryOutcome) -> String {
    match outcome {
        QueryOutcome::Answered { result: RequestResult::Reply(reply), .. } => readable(reply, false),
        QueryOutcome::Answered { result: RequestResult::Trap(trap), .. } => format!("the module trapped: {trap}"),
        QueryOutcome::Refused(refusal) => format!("refused: {refusal}"),
    }
}
