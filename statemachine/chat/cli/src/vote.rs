//! What --vote found: whether the servers gave the same answer.
//!
//! A command may ask several times, as for the pages of a list; then the worst is told.

use std::{
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use replicator_client::Verdict;
use serde_json::{Value, json};

use crate::args::Format;

/// How well the servers agree. The later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Agreement {
    /// All gave the same answer.
    Agreed,
    /// More than half of them did.
    Majority,
    /// Too few answered to tell.
    Unconfirmed,
    /// No answer has a majority.
    Disagree,
}

/// One vote, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vote {
    pub(crate) agreement: Agreement,
    /// As people read it: `AGREED 3/3`.
    pub(crate) verdict: String,
    /// What each server said.
    pub(crate) ballots: Vec<Ballot>,
}

/// What one server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) server: String,
    /// What it answered, in words; `Err`: why it didn't.
    pub(crate) answer: Result<String, String>,
}

impl Vote {
    /// Takes a vote of the client library; `in_words` says what a server answered.
    pub(crate) fn new<T>(vote: &replicator_client::Vote<T>, in_words: impl Fn(&T) -> String) -> Self {
        let agreement = match vote.verdict {
            Verdict::Agreed { .. } => Agreement::Agreed,
            Verdict::Majority { .. } => Agreement::Majority,
            Verdict::Unconfirmed { .. } => Agreement::Unconfirmed,
            Verdict::Disagree => Agreement::Disagree,
        };
        let ballots = vote.ballots.iter().map(|ballot| {
            let server = match ballot.node_id.as_str() {
                "" => ballot.endpoint.clone(),
                name => format!("{name} ({})", ballot.endpoint),
            };
            let answer = match &ballot.answer {
                Ok(answer) => Ok(in_words(answer)),
                Err(refusal) if ballot.is_answered() => Ok(refusal.to_string()),
                Err(why) => Err(why.to_string()),
            };
            Ballot { server, answer }
        });
        Self { agreement, verdict: vote.verdict.to_string(), ballots: ballots.collect() }
    }
}

/// The votes of a command. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Votes(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// The worst of all.
    worst: Option<Vote>,
    /// The worst since a document was printed.
    unprinted: Option<Vote>,
}

impl Votes {
    /// Notes a vote.
    pub(crate) fn record(&self, vote: Vote) {
        let mut found = self.lock();
        let Found { worst, unprinted } = &mut *found;
        for worst in [worst, unprinted] {
            if worst.as_ref().is_none_or(|worst| vote.agreement > worst.agreement) {
                *worst = Some(vote.clone());
            }
        }
    }

    /// The verdict for programs, if there was a vote.
    pub(crate) fn json(&self) -> Option<Value> {
        self.lock().worst.as_ref().map(|vote| vote.verdict.clone().into())
    }

    /// Adds the verdict to a document that is printed now, and who said what unless all said the same.
    pub(crate) fn add_to(&self, json: &mut Value) {
        if let Some(vote) = self.lock().unprinted.take() {
            json["vote"] = vote.verdict.clone().into();
            if vote.agreement != Agreement::Agreed {
                json["ballots"] = vote.ballots.iter().map(Ballot::json).collect();
            }
        }
    }

    /// Tells people the verdict, on standard error, and the exit code that it calls for.
    pub(crate) fn tell(&self, format: Format) -> Option<u8> {
        let found = self.lock();
        let vote = found.worst.as_ref()?;
        if format == Format::Table {
            let _ = write!(anstream::stderr(), "{}", vote.text()); // nobody is left to tell
        }
        match vote.agreement {
            Agreement::Agreed | Agreement::Majority => None,
            Agreement::Unconfirmed => Some(1),
            Agreement::Disagree => Some(3),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vote {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.verdict);
        for Ballot { server, answer } in &self.ballots {
            match answer {
                Ok(answer) if matches!(self.agreement, Agreement::Majority | Agreement::Disagree) => {
                    text.push_str(&format!("  {server}: {answer}\n"));
                }
                Ok(_) => {}
                Err(why) => text.push_str(&format!("  {server}: no answer: {why}\n")),
            }
        }
        text
    }
}

impl Ballot {
    fn json(&self) -> Value {
        match &self.answer {
            Ok(answer) => json!({ "server": self.server, "answer": answer }),
            Err(why) => json!({ "server": self.server, "silent": why }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(agreement: Agreement, verdict: &str, answers: &[Result<&str, &str>]) -> Vote {
        let ballots = answers.iter().zip(1..).map(|(answer, n)| Ballot {
            server: format!("n{n}"),
            answer: answer.map(str::to_owned).map_err(str::to_owned),
        });
        Vote { agreement, verdict: verdict.to_owned(), ballots: ballots.collect() }
    }

    #[test]
    fn the_worst_vote_of_a_command_is_told() {
        let votes = Votes::default();
        assert_eq!((votes.json(), votes.tell(Format::Json)), (None, None));
        for (agreement, verdict, expected, code) in [
            (Agreement::Agreed, "AGREED 3/3", "AGREED 3/3", None),
            (Agreement::Unconfirmed, "UNCONFIRMED 1/3", "UNCONFIRMED 1/3", Some(1)),
            (Agreement::Majority, "MAJORITY 2/3", "UNCONFIRMED 1/3", Some(1)),
            (Agreement::Disagree, "DISAGREE", "DISAGREE", Some(3)),
            (Agreement::Agreed, "AGREED 3/3", "DISAGREE", Some(3)),
        ] {
            votes.record(vote(agreement, verdict, &[]));
            assert_eq!((votes.json(), votes.tell(Format::Json)), (Some(expected.into()), code));
        }
    }

    #[test]
    fn who_differs_and_who_is_silent_is_shown() {
        let agreed = vote(Agreement::Agreed, "AGREED 2/2", &[Ok("a"), Ok("a")]);
        assert_eq!(agreed.text(), "AGREED 2/2\n");
        let unconfirmed = vote(Agreement::Unconfirmed, "UNCONFIRMED 1/3", &[Ok("a"), Err("down"), Err("down")]);
        assert_eq!(unconfirmed.text(), "UNCONFIRMED 1/3\n  n2: no answer: down\n  n3: no answer: down\n");
        let disagree = vote(Agreement::Disagree, "DISAGREE", &[Ok("a"), Ok("b"), Err("down")]);
        assert_eq!(disagree.text(), "DISAGREE\n  n1: a\n  n2: b\n  n3: no answer: down\n");
        let votes = Votes::default();
        votes.record(disagree);
        let mut json = json!({});
        votes.add_to(&mut json);
        assert_eq!(json["ballots"][1], json!({ "server": "n2", "answer": "b" }));
        assert_eq!(json["ballots"][2], json!({ "server": "n3", "silent": "down" }));
        let mut next = json!({});
        votes.add_to(&mut next);
        assert_eq!(next, json!({}), "a document has the votes that it rests on");
    }
}
