//! `--vote`: what all replicas answer, side by side.

use std::io::Write as _;

use anstyle::AnsiColor;
use anyhow::anyhow;
use bytes::Bytes;
use replicator_client::{Answer, Ballot, Error, Executed, Verdict, Vote};
use serde_json::{Value, json};

use super::{
    explain,
    print::{self, Printer},
};
use crate::cli::{Failure, failure, output, output::Format};

/// What can be voted on.
pub(super) trait Told: PartialEq {
    fn response(&self) -> &Bytes;
    /// Where in the log, and with which digest if there is one.
    fn place(&self) -> (u64, String);
    /// All but the response, for programs.
    fn json(&self) -> Value;
}

impl Told for Executed {
    fn response(&self) -> &Bytes {
        &self.response
    }

    fn place(&self) -> (u64, String) {
        (self.log_index.0, self.state_digest.to_string())
    }

    fn json(&self) -> Value {
        print::executed(self)
    }
}

impl Told for Answer {
    fn response(&self) -> &Bytes {
        &self.response
    }

    fn place(&self) -> (u64, String) {
        (self.log_index.0, "-".to_owned())
    }

    fn json(&self) -> Value {
        print::answered(self)
    }
}

/// Prints the answer that won, or the first, and the verdict. `json` is what programs are told of the answer, but for its response.
pub(super) fn tell<T: Told>(printer: &Printer, vote: &Vote<T>, json: Value) -> Result<(), Failure> {
    match printer.format {
        Format::Json => tell_program(printer, vote, json)?,
        Format::Table => {
            if let Ok(answer) = &vote.answer {
                printer.answer(None, answer.response(), json)?;
            }
            tell_person(vote);
        }
    }
    let error = match vote.verdict {
        Verdict::Agreed { .. } | Verdict::Majority { .. } => {
            return vote.answer.as_ref().map(|_| ()).map_err(|trap| explain(trap.clone(), false).into());
        }
        Verdict::Disagree => "no majority of the replicas agrees: DISAGREE; the answer that is shown is only the first",
        Verdict::Unconfirmed { .. } => "fewer than a majority of the replicas answered",
    };
    match vote.verdict {
        Verdict::Disagree => Err(Failure::Damage(anyhow!(error))),
        verdict => Err(Failure::Failed(anyhow!("{error}: {verdict}"))),
    }
}

fn tell_program<T: Told>(printer: &Printer, vote: &Vote<T>, mut json: Value) -> anyhow::Result<()> {
    let ballots: Vec<Value> = vote.ballots.iter().map(ballot_json).collect();
    json["vote"] = json!({ "verdict": vote.verdict.to_string(), "ballots": ballots });
    match &vote.answer {
        Ok(answer) => printer.answer(None, answer.response(), json),
        Err(_) => output::print_json(&json),
    }
}

fn ballot_json<T: Told>(ballot: &Ballot<T>) -> Value {
    let mut json = match &ballot.answer {
        Ok(answer) => print::with_response(answer.json(), answer.response()),
        Err(error) => json!({ "error": failure::described(&error.clone().into()) }),
    };
    json["node_id"] = ballot.node_id.as_str().into();
    json["endpoint"] = ballot.endpoint.as_str().into();
    json
}

/// The verdict, and each replica's answer if no majority agrees.
fn tell_person<T: Told>(vote: &Vote<T>) {
    let colour = match vote.verdict {
        Verdict::Agreed { .. } => AnsiColor::Green,
        Verdict::Majority { .. } | Verdict::Unconfirmed { .. } => AnsiColor::Yellow,
        Verdict::Disagree => AnsiColor::Red,
    };
    let style = output::paint(colour);
    let mut told = format!("{style}{}{style:#}\n", vote.verdict);
    if !vote.verdict.is_majority() {
        let mut table = output::table(&["", "node", "log", "digest", "answer"]);
        let shown = vote.ballots.iter().position(|ballot| is_shown(ballot, vote));
        for (at, ballot) in vote.ballots.iter().enumerate() {
            let name = if ballot.node_id.is_empty() { &ballot.endpoint } else { &ballot.node_id };
            let (place, answer) = match &ballot.answer {
                Ok(answer) => (answer.place(), print::readable(answer.response(), true)),
                Err(error) => ((0, "-".to_owned()), error.to_string()),
            };
            let log = if place.0 == 0 { "-".to_owned() } else { place.0.to_string() };
            let mark = if Some(at) == shown { "shown" } else { "" };
            table.add_row([mark, name.as_str(), log.as_str(), place.1.as_str(), answer.as_str()]);
        }
        told.push_str(&output::table_text(&mut table));
    }
    let _ = write!(anstream::stderr(), "{told}"); // The exit code tells too.
}

fn is_shown<T: Told>(ballot: &Ballot<T>, vote: &Vote<T>) -> bool {
    match (&ballot.answer, &vote.answer) {
        (Ok(one), Ok(answer)) => one == answer,
        (Err(one), Err(answer)) => matches!(one, Error::ModuleTrapped { .. }) && one.to_string() == answer.to_string(),
        _ => false,
    }
}
