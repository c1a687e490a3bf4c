//! `replicator replay --diff`: what changed between two indices.

use replicator_machine::SURVEY_PAGE_BYTES;
use replicator_offline::{
    History,
    changes::{Changes, changes},
};
use replicator_types::{LogIndex, SessionId};
use serde_json::{Value, json};

use super::{
    ReplayArgs,
    source::{bar, on_machine_thread, unusable},
    state::{counts, tally_json},
};
use crate::cli::{
    Failure,
    output::{self, Format},
};

/// Sessions that are named; the others are counted.
const SESSIONS_NAMED: usize = 8;

pub(super) fn run(args: &ReplayArgs, history: &dyn History, (from, to): (LogIndex, LogIndex)) -> Result<(), Failure> {
    if from >= to {
        return Err(Failure::Usage(format!("--diff {from} {to}: the second index is to be above the first")));
    }
    super::end(history, Some(to), args.to_end)?;
    let changes = on_machine_thread(|| {
        let bar = bar("replaying", LogIndex(0), to);
        let found = changes(history, from, to, &mut |at| bar.set_position(at.0)).map_err(unusable)?;
        bar.finish_and_clear();
        Ok(found)
    })?;
    let format = args.output.output;
    changes.notes.iter().for_each(|note| output::note(format, note));
    match format {
        Format::Json => output::print_json(&changes_json(&changes))?,
        Format::Table => print(&changes)?,
    }
    Ok(())
}

fn print(changes: &Changes) -> std::io::Result<()> {
    let Changes { before, after, tally, memory, sessions, .. } = changes;
    let mut table = output::table(&["part", "before", "after", "what changed"]);
    let at = |survey: &replicator_machine::Survey| survey.position.map_or("-".to_owned(), |at| at.to_string());
    let hex = |hash: u64| format!("{hash:016x}");
    let differs = |a: u64, b: u64| if a == b { "nothing" } else { "differs" };
    let (old, new) = (&before.parts, &after.parts);
    table.add_row(["position", &at(before), &at(after), &counts(tally.kinds())]);
    table.add_row(["outcomes", "", "", &counts(tally.outcomes())]);
    table.add_row(["digest", &before.digest.to_string(), &after.digest.to_string(), differs(old.digest, new.digest)]);
    let pages = format!(
        "{} of {} pages of {SURVEY_PAGE_BYTES} bytes differ, {} are new",
        memory.differing,
        before.pages.len(),
        memory.grown
    );
    table.add_row(["memory", &output::bytes(before.memory_bytes), &output::bytes(after.memory_bytes), &pages]);
    table.add_row(["globals", &hex(old.globals), &hex(new.globals), differs(old.globals, new.globals)]);
    let told = format!(
        "{} opened, {} closed, {} used, {} untouched",
        sessions.opened.len(),
        sessions.closed.len(),
        sessions.used.len(),
        sessions.untouched
    );
    table.add_row(["sessions", &before.sessions.len().to_string(), &after.sessions.len().to_string(), &told]);
    let pushed = format!("{} pushes of {}", tally.pushes, output::bytes(tally.push_bytes));
    table.add_row(["retained pushes", &before.pushes_len.to_string(), &after.pushes_len.to_string(), &pushed]);
    table.add_row(["clock and lineages", &hex(old.clock), &hex(new.clock), differs(old.clock, new.clock)]);
    output::print_table(&mut table)?;
    for run in &memory.runs {
        println!("memory from byte {:#x} to {:#x} differs", run.start(), run.end());
    }
    for (what, ids) in [("opened", &sessions.opened), ("closed", &sessions.closed), ("used", &sessions.used)] {
        if !ids.is_empty() {
            println!("{what}: {}", named(ids));
        }
    }
    Ok(())
}

fn named(ids: &[SessionId]) -> String {
    let names: Vec<String> = ids.iter().take(SESSIONS_NAMED).map(ToString::to_string).collect();
    let more = ids.len().saturating_sub(SESSIONS_NAMED);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}

fn changes_json(changes: &Changes) -> Value {
    let Changes { before, after, tally, memory, sessions, .. } = changes;
    let survey = |survey: &replicator_machine::Survey| {
        let parts = &survey.parts;
        let hex = |hash: u64| format!("{hash:016x}");
        json!({
            "log_index": survey.position.map(|at| at.index.0),
            "epoch": survey.position.map(|at| at.epoch.0),
            "state_digest": survey.digest.to_string(),
            "state_hash": survey.state_hash.to_string(),
            "memory_bytes": survey.memory_bytes,
            "sessions": survey.sessions.len(),
            "retained_pushes": survey.pushes_len,
            "parts": {
                "memory": hex(parts.memory),
                "globals": hex(parts.globals),
                "sessions": hex(parts.sessions),
                "pushes": hex(parts.pushes),
                "clock": hex(parts.clock),
                "digest": hex(parts.digest),
            },
        })
    };
    let ids = |ids: &[SessionId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "before": survey(before),
        "after": survey(after),
        "applied": tally_json(tally),
        "memory": {
            "page_bytes": SURVEY_PAGE_BYTES,
            "pages": after.pages.len(),
            "differing": memory.differing,
            "grown": memory.grown,
            "runs": memory.runs.iter().map(|run| [*run.start(), *run.end()]).collect::<Vec<_>>(),
        },
        "sessions": {
            "opened": ids(&sessions.opened),
            "closed": ids(&sessions.closed),
            "used": ids(&sessions.used),
            "untouched": sessions.untouched,
        },
    })
}
