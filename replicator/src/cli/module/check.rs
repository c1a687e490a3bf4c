//! `replicator module check`: what is wrong with a module, without a cluster.

use std::path::PathBuf;

use anyhow::anyhow;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use replicator_offline::check::{Report, Trial, Verdict, check};
use replicator_types::LogIndex;
use serde_json::json;

use crate::cli::{
    Failure, Output, init,
    output::{self, Format, paint},
    replay::source::{Source, on_machine_thread, unusable},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Without --log the module gets requests that are made up: words, random bytes, and earlier ones changed. Exits with 0 if all is well, 1 if a cluster
would refuse the module or couldn't swap it, 3 if what comes out depends on more than the log and the logical state.

Examples:
  replicator module check target/wasm32-unknown-unknown/release/my_app.wasm
  replicator module check my_app.wasm --log tests/run.fixture"
)]
pub(in crate::cli) struct CheckArgs {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    module: PathBuf,
    /// Run it with a real log: a fixture that `replicator replay --export` wrote, or a stopped node's data folder
    #[arg(long, value_name = "DIR|FILE")]
    log: Option<PathBuf>,
    /// How many requests to make up
    #[arg(long, value_name = "N", default_value_t = 2_000, conflicts_with = "log", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: u64,
    /// The application's configuration, passed to the module as it is
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    app_config: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let module: Bytes = init::read(&args.module)?.into();
    let config = args.app_config.as_deref().map(init::read).transpose()?.unwrap_or_default();
    let source = args.log.as_deref().map(Source::open).transpose()?;
    let trial = match &source {
        None => Trial::MadeUp { requests: args.requests, config: config.into() },
        Some(source) => {
            source.tell_notes(args.output.output);
            Trial::Log(source.history())
        }
    };
    let report = on_machine_thread(|| {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("checking {spinner} {pos} entries")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let report = check(&module, &trial, &mut |at: LogIndex| bar.set_position(at.0)).map_err(unusable)?;
        bar.finish_and_clear();
        Ok(report)
    })?;
    tell(&report, args.output.output)?;
    let told = |verdict: Verdict| {
        let lines = report.lines.iter().filter(|line| line.verdict == verdict);
        lines.map(|line| line.what).collect::<Vec<_>>().join(", ")
    };
    if report.has(Verdict::Refused) {
        return Err(Failure::Failed(anyhow!("the module is refused: see {}", told(Verdict::Refused))));
    }
    if report.has(Verdict::Nondeterministic) {
        return Err(Failure::Damage(anyhow!(
            "the module isn't deterministic: see {}",
            told(Verdict::Nondeterministic)
        )));
    }
    Ok(())
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Refused | Verdict::Nondeterministic => "fail",
    }
}

fn tell(report: &Report, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let lines = report.lines.iter().map(|line| {
            let kind = match line.verdict {
                Verdict::Refused => Some("refused"),
                Verdict::Nondeterministic => Some("nondeterministic"),
                Verdict::Ok | Verdict::Warn => None,
            };
            json!({ "check": line.what, "result": word(line.verdict), "kind": kind, "message": line.told })
        });
        let floats = report.floats.iter().map(|function| {
            json!({
                "function": function.index,
                "name": function.name,
                "byte": function.offset,
                "operations": function.operations,
            })
        });
        let info = report.info.as_ref();
        output::print_json(&json!({
            "module": info.map(|info| info.description.as_str()),
            "bytes": info.map(|info| info.bytes),
            "compile_ms": report.compile_time.map(|time| (time.as_secs_f64() * 1e3).round()),
            "refused": report.has(Verdict::Refused),
            "nondeterministic": report.has(Verdict::Nondeterministic),
            "checks": lines.collect::<Vec<_>>(),
            "floats": floats.collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    for line in &report.lines {
        let colour = paint(match line.verdict {
            Verdict::Ok => anstyle::AnsiColor::Green,
            Verdict::Warn => anstyle::AnsiColor::Yellow,
            Verdict::Refused | Verdict::Nondeterministic => anstyle::AnsiColor::Red,
        });
        anstream::println!("{colour}{:<5}{colour:#} {:<12} {}", word(line.verdict), line.what, line.told);
    }
    Ok(())
}
