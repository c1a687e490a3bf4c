//! Votes: one request to every replica, and what they say side by side. A replica that computes, stores or reports
//! something else than the others is outvoted and seen.

mod calls;
mod poll;
mod tally;

use std::fmt;

use self::{
    poll::{Polled, ask_all},
    tally::{Comparable, count, is_outcome, is_same},
};
use crate::error::{Error, Result};

/// What the replicas answered to one request.
///
/// ```no_run
/// # async fn example(session: replicator_client::Session) -> replicator_client::Result<()> {
/// let vote = session.execute_vote("transfer 10 from a to b").await?;
/// println!("{}", vote.verdict); // AGREED 3/3
/// for ballot in &vote.ballots {
///     match &ballot.answer {
///         Ok(done) => println!("{} at {}: {:?}", ballot.node_id, ballot.endpoint, done.response),
///         Err(error) => println!("{} at {}: {error}", ballot.node_id, ballot.endpoint),
///     }
/// }
/// let done = vote.answer?; // an error only if the module trapped
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Vote<T> {
    /// What the majority answered; without one, the first ballot's answer. Its only error is
    /// [`Error::ModuleTrapped`](crate::Error::ModuleTrapped), which is an outcome like any other.
    pub answer: Result<T>,
    /// How far they agree.
    pub verdict: Verdict,
    /// One for each replica asked.
    pub ballots: Vec<Ballot<T>>,
}

/// What one replica answered.
#[derive(Debug, Clone)]
pub struct Ballot<T> {
    /// The replica's name; empty if it isn't known.
    pub node_id: String,
    /// Where it was asked.
    pub endpoint: String,
    /// What it answered, or why it didn't. A trap and a refusal such as [`Error::SessionExpired`] are answers.
    pub answer: Result<T>,
}

impl<T> Ballot<T> {
    /// Whether the replica answered; false if it could not be reached or could not serve.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        match &self.answer {
            Ok(_) => true,
            Err(error) => is_answer(error),
        }
    }
}

/// Whether an error is what a replica's state says, and not that it could not be asked.
fn is_answer(error: &Error) -> bool {
    matches!(
        error,
        Error::ModuleTrapped { .. }
            | Error::SessionExpired { .. }
            | Error::SequenceGap { .. }
            | Error::SequenceStale { .. }
            | Error::SequenceReused { .. }
            | Error::WindowFull { .. }
            | Error::InvalidRequest { .. }
            | Error::RequestTooLarge { .. }
            | Error::LineageMismatch { .. }
    )
}

/// How far the replicas agree. Displayed as `AGREED 3/3`, `MAJORITY 2/3`, `DISAGREE` or `UNCONFIRMED 1/3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All answered the same.
    Agreed {
        /// How many replicas were asked.
        asked: usize,
    },
    /// More than half of those asked answered the same. The others differ, or did not answer.
    Majority {
        /// How many answered the same.
        agreeing: usize,
        /// How many were asked.
        asked: usize,
    },
    /// Some answers differ, and no majority of those asked agrees.
    Disagree,
    /// No two answers differ, but no majority of those asked answered.
    Unconfirmed {
        /// How many answered.
        answered: usize,
        /// How many were asked.
        asked: usize,
    },
}

impl Verdict {
    /// Whether a majority of those asked agrees.
    #[must_use]
    pub fn is_majority(&self) -> bool {
        matches!(self, Self::Agreed { .. } | Self::Majority { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agreed { asked } => write!(f, "AGREED {asked}/{asked}"),
            Self::Majority { agreeing, asked } => write!(f, "MAJORITY {agreeing}/{asked}"),
            Self::Disagree => f.write_str("DISAGREE"),
            Self::Unconfirmed { answered, asked } => write!(f, "UNCONFIRMED {answered}/{asked}"),
        }
    }
}
