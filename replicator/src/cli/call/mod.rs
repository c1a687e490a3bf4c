//! `replicator call`: executes requests of raw bytes, exactly once. `replicator query` beside it reads.

mod caller;
pub(super) mod input;
mod lines;
pub(super) mod print;
pub(super) mod query;
mod session_file;
mod vote;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use replicator_client::{Client, Error, Executed};

use self::{
    caller::Caller,
    input::{Input, RequestArgs},
    print::Printer,
};
use super::{Endpoints, Failure, Output, output};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  replicator call 'add apples 3'                        one request, in a session of its own
  replicator call --session ~/.s 'add apples 3'         in a session that is kept; after a crash, repeat it as it was
  seq -f 'add apples %g' 1000 | replicator call --stdin many requests, 64 under way at once
  replicator call --hex 0aff --raw | xxd                bytes in, bytes out
  replicator call --vote 'add apples 3'                 compare what all replicas answer")]
pub(super) struct CallArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Go on with the session in this file, or keep a new one in it: a call that was interrupted is then finished by the next one,
    /// and the same request is answered and not executed again
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    /// How long a new session outlives its last request, seconds of log time. Default: the cluster's
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds)]
    ttl: Option<Duration>,
    /// How long to try
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds, default_value = "10")]
    deadline: Duration,
    /// Ask every replica, and compare what they answer: the majority of those asked wins. Exit code 3 if none agree
    #[arg(long, conflicts_with = "stdin")]
    vote: bool,
    /// Print the response's bytes as they are
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: CallArgs) -> Result<(), Failure> {
    let CallArgs { request, session, ttl, deadline, vote, raw, endpoints, output } = args;
    let format = output.output;
    print::check_raw(raw, request.stdin, format)?;
    let client = Client::builder().endpoints(endpoints.endpoints).deadline(deadline).build()?;
    let window = request.window as usize;
    let printer = Printer { format, raw, lines: request.stdin };
    let input = request.open()?;
    let mut caller = Caller::open(&client, session.as_deref(), ttl, printer).await?;
    match input {
        Input::One(request) if vote => by_vote(&mut caller, request).await?,
        Input::One(request) => one(&mut caller, request).await?,
        Input::Lines(input) => lines::execute(&mut caller, input, window).await?,
    }
    caller.close().await;
    Ok(())
}

/// Executes one request and prints its response.
async fn one(caller: &mut Caller, request: Bytes) -> Result<(), Failure> {
    if let Some((_, outcome)) = caller.take_repeat(&request) {
        let concluded = caller.conclude(outcome, true).await;
        caller.pass_over_interrupted()?;
        return concluded;
    }
    caller.pass_over_interrupted()?;
    caller.write_down([&request])?;
    let outcome = caller.session.execute(request).await;
    caller.conclude(outcome, false).await
}

/// Executes one request at every replica, and prints what most of them answer.
async fn by_vote(caller: &mut Caller, request: Bytes) -> Result<(), Failure> {
    let voted = match caller.take_repeat(&request) {
        // Its outcome is still kept everywhere, and can be voted on.
        Some((sequence, _)) => caller.session_at(sequence).execute_vote(request).await,
        None => {
            caller.pass_over_interrupted()?;
            caller.write_down([&request])?;
            caller.session.execute_vote(request).await
        }
    };
    let vote = match voted {
        Ok(vote) => vote,
        Err(error) => return caller.conclude(Err(error), false).await,
    };
    let json = vote.answer.as_ref().map(|done| caller.described(done, false)).unwrap_or_else(|_| serde_json::json!({}));
    let told = vote::tell(&caller.printer, &vote, json);
    caller.strike_out([])?;
    caller.pass_over_interrupted()?;
    if told.is_err() {
        caller.close().await;
    }
    told
}

/// What to tell about a request that has no response.
fn explain(error: Error, kept: bool) -> anyhow::Error {
    match error {
        Error::OutcomeUnknown { .. } if kept => anyhow::Error::new(error).context(
            "no node answered in time, so this may or may not have been executed; give the same command again to find out: it has \
             the same number, and is executed once",
        ),
        Error::OutcomeUnknown { .. } => anyhow::Error::new(error).context(
            "no node answered in time, so this may or may not have been executed; with --session FILE you could ask again",
        ),
        Error::ModuleTrapped { log_index, .. } => {
            anyhow::Error::new(error).context(format!("executed at log index {log_index}"))
        }
        error => error.into(),
    }
}

/// Whether the request has used up its number: with a response, a trap, or an outcome that is no longer kept.
fn is_outcome(outcome: &Result<Executed, Error>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(error) => {
            matches!(error, Error::ModuleTrapped { .. } | Error::SequenceStale { .. } | Error::SequenceReused { .. })
        }
    }
}
