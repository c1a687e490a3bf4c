//! What an author wants to know of a module before anybody runs it: whether it is one, and whether it is deterministic where the host can't see to it.
//!
//! The host makes sure of much: no imports, canonical NaNs, memory and globals in every image. What is left to the module is that its *logical*
//! state is all of its state, and that nothing of what it says depends on where its things lie in memory. A swap takes the logical state over
//! into a fresh memory: what wasn't in it is lost, and what went by addresses, such as the order of a `HashMap`, comes out otherwise.
//!
//! So a run is made several times, in memories that were laid out otherwise, and compared entry by entry. The run is a log that the author gives,
//! or requests that are made up ([`requests`]), which reach as much of a module as its requests resemble them.

mod dynamic;
mod floats;
mod form;
mod hazards;
mod requests;
mod script;

use std::time::Duration;

use bytes::Bytes;
use replicator_machine::ModuleInfo;

use crate::{History, OfflineError, Progress};

pub use self::{floats::FloatFunction, script::ByModule};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Nothing wrong, but worth knowing.
    Warn,
    /// No cluster takes the module, or it couldn't be swapped.
    Refused,
    /// What comes out depends on more than the log and the logical state.
    Nondeterministic,
}

/// One check, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What was checked, in a word or two.
    pub what: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub told: String,
}

/// All checks of a module.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order in which they were made.
    pub lines: Vec<Line>,
    /// What the module says of itself, if it is one.
    pub info: Option<ModuleInfo>,
    /// How long it took to check, compile and describe.
    pub compile_time: Option<Duration>,
    /// The functions with float arithmetic.
    pub floats: Vec<FloatFunction>,
}

impl Report {
    /// Whether any check came to this.
    #[must_use]
    pub fn has(&self, verdict: Verdict) -> bool {
        self.lines.iter().any(|line| line.verdict == verdict)
    }

    fn add(&mut self, what: &'static str, verdict: Verdict, told: impl Into<String>) {
        self.lines.push(Line { what, verdict, told: told.into() });
    }
}

/// What the module is run with.
pub enum Trial<'a> {
    /// Requests that are made up, after a genesis with this application configuration.
    MadeUp {
        /// How many.
        requests: u64,
        /// The application's configuration.
        config: Bytes,
    },
    /// A log.
    Log(&'a dyn History),
}

/// Checks a module.
///
/// # Errors
/// If the log that was given can't be run.
pub fn check(module: &Bytes, trial: &Trial<'_>, progress: Progress<'_>) -> Result<Report, OfflineError> {
    let mut report = Report::default();
    form::check(module, &mut report);
    if report.has(Verdict::Refused) {
        return Ok(report);
    }
    dynamic::check(module, trial, progress, &mut report)?;
    Ok(report)
}

/// `a, b and 3 more`.
fn listed<T: std::fmt::Display>(items: &[T], shown: usize) -> String {
    let names: Vec<String> = items.iter().take(shown).map(ToString::to_string).collect();
    let names = names.join(", ");
    match items.len().saturating_sub(shown) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
