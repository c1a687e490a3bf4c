//! `replicator replay FIXTURE`: the run again, compared entry by entry with what came of it when it was kept.

use std::time::Instant;

use anyhow::anyhow;
use bytes::Bytes;
use replicator_offline::{Fixture, Replay, Verified};
use replicator_types::LogIndex;
use serde_json::json;

use super::{
    ReplayArgs, changes,
    examples::{entry_text, outcome_json, outcome_text},
    queries,
    source::{Source, bar, on_machine_thread, unusable},
    state,
};
use crate::cli::{
    Failure, init, module,
    output::{self, Format},
};

pub(super) fn run(args: &ReplayArgs, fixture: Fixture) -> Result<(), Failure> {
    let other_use = args.until.is_some() || args.diff.is_some() || args.against.is_some() || !args.query.is_empty();
    if args.module.is_some() && other_use {
        let why = "--module runs all of a fixture by another module; leave --until, --query, --diff and --against out";
        return Err(Failure::Usage(why.into()));
    }
    if let Some(between) = &args.diff {
        return changes::run(args, &fixture, (LogIndex(between[0]), LogIndex(between[1])));
    }
    if let Some(other) = &args.against {
        let until = super::end(&fixture, args.until.map(LogIndex), args.to_end)?;
        return module::diff::compare(&fixture, other, until, args.output.output);
    }
    if args.export.is_some() {
        return Err(Failure::Usage("this is a fixture already; --export writes one of a stopped node's folder".into()));
    }
    if args.until.is_some() || !args.query.is_empty() {
        return look(args, fixture);
    }
    verify(args, &fixture)
}

/// At an index within the run, or with queries: as from a folder.
fn look(args: &ReplayArgs, fixture: Fixture) -> Result<(), Failure> {
    let source = Source::Fixture(Box::new(fixture));
    let history = source.history();
    let until = super::end(history, args.until.map(LogIndex), args.to_end)?;
    let queries = queries::read(&args.query, args.hex)?;
    on_machine_thread(|| {
        let mut replay = Replay::begin(history, until, history.modules()).map_err(unusable)?;
        let took = state::run(&mut replay, until)?;
        let answers = queries::ask(replay.machine(), &queries)?;
        state::print(&source, &mut replay, took, &answers, None, args.output.output)
    })
}

fn verify(args: &ReplayArgs, fixture: &Fixture) -> Result<(), Failure> {
    let last = fixture.tail().last.index;
    let module: Option<Bytes> = args.module.as_deref().map(init::read).transpose()?.map(Bytes::from);
    let (verified, took) = on_machine_thread(|| {
        let bar = bar("replaying", LogIndex(0), last);
        let began = Instant::now();
        let progress = &mut |at: LogIndex| bar.set_position(at.0);
        let verified = match module {
            None => fixture.verify(progress),
            Some(module) => fixture.verify_by(module, progress),
        };
        let verified = verified.map_err(unusable)?;
        bar.finish_and_clear();
        Ok((verified, began.elapsed()))
    })?;
    let Verified { tally, differing, first, digest, state_hash, .. } = &verified;
    match args.output.output {
        Format::Json => output::print_json(&json!({
            "cluster_id": fixture.tail().cluster.to_string(),
            "module_then": fixture.tail().description,
            "module_sha256_then": fixture.tail().module.to_string(),
            "equal": verified.is_equal(),
            "differing": differing,
            "first": first.as_ref().map(|(position, entry, applied)| json!({
                "log_index": position.index.0,
                "epoch": position.epoch.0,
                "entry": entry_text(entry),
                "now": outcome_json(applied),
            })),
            "log_index": last.0,
            "state_digest": digest.0.to_string(),
            "state_digest_then": digest.1.to_string(),
            "state_hash": state_hash.map(|(now, _)| now.to_string()),
            "state_hash_then": fixture.tail().state_hash.to_string(),
            "applied": state::tally_json(tally),
            "requests_per_second": state::rate(tally.requests(), took).round(),
        }))?,
        Format::Table => {
            println!(
                "{} entries and {} up to entry {last}, {:.0} requests/s",
                tally.entries(),
                output::count(tally.requests() as usize, "request"),
                state::rate(tally.requests(), took)
            );
            if let Some((position, entry, applied)) = first {
                println!("first difference at entry {position}: {}", entry_text(entry));
                println!("  now: {}", outcome_text(applied));
            } else if verified.is_equal() {
                println!("every outcome and the state are as they were: digest {}", digest.0);
            }
        }
    }
    if let Some((position, ..)) = first {
        return Err(Failure::Damage(anyhow!(
            "something else came of {differing} of {} entries than when the run was kept; the first is {position}",
            tally.entries()
        )));
    }
    if !verified.is_equal() {
        let what = "every outcome is as it was, and the state at the end isn't: this program or its engine gives another memory to the module";
        return Err(Failure::Damage(anyhow!("{what}")));
    }
    Ok(())
}
