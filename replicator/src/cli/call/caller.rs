//! A session of one `call`, and its file if it has one.

use std::{collections::VecDeque, path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use replicator_client::{Client, Error, Executed, SavedSession, Sequence, Session};

use super::{
    explain, is_outcome,
    print::{self, Printer},
    session_file::{Kept, SessionFile},
};
use crate::cli::{Failure, output};

/// How long the end of a session may take. A session that isn't ended expires by itself.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// A request that an earlier call was interrupted in, and what became of it.
struct Interrupted {
    sequence: Sequence,
    request: Bytes,
    outcome: Result<Executed, Error>,
}

/// Executes requests in one session.
pub(super) struct Caller {
    pub(super) session: Session,
    pub(super) printer: Printer,
    file: Option<SessionFile>,
    /// Not yet told, in order.
    interrupted: VecDeque<Interrupted>,
}

impl Caller {
    /// Opens a session, or goes on with the one in `file`. What an earlier call was interrupted in has its outcome on return.
    pub(super) async fn open(
        client: &Client,
        file: Option<&Path>,
        ttl: Option<Duration>,
        printer: Printer,
    ) -> anyhow::Result<Self> {
        let opened = match file {
            Some(path) => Some(SessionFile::open(path, client.deadline()).await?),
            None => None,
        };
        let (mut file, kept) = match opened {
            Some((file, kept)) => (Some(file), kept),
            None => (None, None),
        };
        let Some(Kept { session, unanswered }) = kept else {
            let session = client.open_session(ttl).await?;
            if let Some(file) = &mut file {
                file.save(&session.saved(), Sequence(1), &[])?;
            }
            return Ok(Self { session, printer, file, interrupted: VecDeque::new() });
        };
        let mut caller =
            Self { session: Session::resume(client, session.clone()), printer, file, interrupted: VecDeque::new() };
        caller.resolve(session.next_sequence, unanswered).await?;
        Ok(caller)
    }

    /// Sends what has no outcome once more, each under its own number.
    async fn resolve(&mut self, first: Sequence, unanswered: Vec<Bytes>) -> anyhow::Result<()> {
        let count = unanswered.len();
        for (request, number) in unanswered.into_iter().zip(first.0..) {
            let sequence = Sequence(number);
            // A session of its own: an outcome that moves the library on to another number must not move the next request.
            let session = self.session_at(sequence);
            let outcome = session.execute(request.clone()).await;
            let left = count - self.interrupted.len();
            match outcome {
                Err(error @ (Error::SessionExpired { .. } | Error::LineageMismatch { .. })) => {
                    return Err(anyhow::Error::new(error).context(format!(
                        "what became of {}, interrupted earlier, can't be found out; {}",
                        output::count(left, "request"),
                        self.how_to_begin_anew()
                    )));
                }
                // It never had an effect. Nor have those that were sent after it, and they can't follow without it.
                Err(error) if refused_without_effect(&error) && left > 1 => {
                    return Err(anyhow::Error::new(error).context(format!(
                        "request {sequence}, interrupted earlier, is refused, so the {} after it will never be executed; {}",
                        output::count(left - 1, "request"),
                        self.how_to_begin_anew()
                    )));
                }
                outcome if is_outcome(&outcome) || outcome.as_ref().is_err_and(refused_without_effect) => {
                    self.interrupted.push_back(Interrupted { sequence, request, outcome });
                }
                Err(error) => {
                    return Err(anyhow::Error::new(error)
                        .context(format!("request {sequence}, interrupted earlier, has to be finished first")));
                }
                Ok(_) => unreachable!("a response is an outcome"),
            }
            self.session = session;
        }
        Ok(())
    }

    fn how_to_begin_anew(&self) -> String {
        self.file
            .as_ref()
            .map_or_else(String::new, |file| format!("remove {} to begin a new session", file.path().display()))
    }

    /// Whether the session outlives this call.
    pub(super) fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// The outcome of the first interrupted request not yet told that is `request`. Those before it are told: a call that was killed
    /// between a print and striking out has printed their outcomes, so that they aren't given again.
    pub(super) fn take_repeat(&mut self, request: &Bytes) -> Option<(Sequence, Result<Executed, Error>)> {
        let (passed, Interrupted { sequence, outcome, .. }) =
            take_first(&mut self.interrupted, |one| one.request == *request)?;
        passed.into_iter().for_each(|one| self.tell_interrupted(one));
        self.note(&format!("this is request {sequence}, which was interrupted earlier; it is not executed twice"));
        Some((sequence, outcome))
    }

    /// The session as it was when `sequence` was its next number.
    pub(super) fn session_at(&self, sequence: Sequence) -> Session {
        Session::resume(self.session.client(), SavedSession { next_sequence: sequence, ..self.session.saved() })
    }

    /// Tells what became of all other interrupted requests.
    pub(super) fn pass_over_interrupted(&mut self) -> anyhow::Result<()> {
        if self.interrupted.is_empty() {
            return Ok(());
        }
        std::mem::take(&mut self.interrupted).into_iter().for_each(|one| self.tell_interrupted(one));
        self.strike_out([])
    }

    fn tell_interrupted(&self, Interrupted { sequence, outcome, .. }: Interrupted) {
        let what = match outcome {
            Ok(done) => {
                let response = print::readable(&done.response, true);
                format!("was executed at log index {}, and answered: {response}", done.log_index)
            }
            Err(Error::SequenceStale { .. }) => "was executed; its answer is no longer kept".to_owned(),
            Err(Error::SequenceReused { .. }) => "was not executed: its number was used for another".to_owned(),
            Err(error) => format!("came to this: {:#}", explain(error, true)),
        };
        self.note(&format!("request {sequence}, interrupted earlier, {what}"));
    }

    /// Says something beside the results.
    pub(super) fn note(&self, text: &str) {
        output::note(self.printer.format, text);
    }

    /// Writes down what is about to be sent, after all that is settled.
    pub(super) fn write_down<'a>(&mut self, requests: impl IntoIterator<Item = &'a Bytes>) -> anyhow::Result<()> {
        self.save(self.session.next_sequence(), requests)
    }

    /// Writes down that everything has its outcome but `left`.
    pub(super) fn strike_out<'a>(&mut self, left: impl IntoIterator<Item = &'a Bytes>) -> anyhow::Result<()> {
        self.save(self.session.next_sequence(), left)
    }

    /// Writes down what has no outcome, from the number `next` on.
    pub(super) fn save<'a>(
        &mut self,
        next: Sequence,
        unanswered: impl IntoIterator<Item = &'a Bytes>,
    ) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        // What was interrupted and not yet told stays in front.
        let told = self.interrupted.front().map_or(next, |first| first.sequence);
        let mut all: Vec<&Bytes> = self.interrupted.iter().map(|one| &one.request).collect();
        for request in unanswered {
            all.push(request);
        }
        file.save(&self.session.saved(), told, &all)
    }

    /// Prints the outcome of the only request, and only then strikes it out.
    pub(super) async fn conclude(&mut self, outcome: Result<Executed, Error>, repeated: bool) -> Result<(), Failure> {
        match outcome {
            Ok(done) => {
                self.print(None, &done, repeated)?;
                Ok(self.strike_out([])?)
            }
            Err(error @ (Error::SessionExpired { .. } | Error::LineageMismatch { .. })) if self.is_kept() => {
                let told = self.how_to_begin_anew();
                Err(anyhow::Error::new(error).context(told).into())
            }
            Err(error) => {
                // Written down means: to be finished by the next call. All else has its outcome, or no effect.
                let unknown = error.is_outcome_unknown() && !is_outcome(&Err(error.clone()));
                if !unknown {
                    self.strike_out([])?;
                }
                if is_outcome(&Err(error.clone())) {
                    self.close().await;
                }
                Err(explain(error, self.is_kept()).into())
            }
        }
    }

    /// Prints a response.
    pub(super) fn print(&self, line: Option<u64>, done: &Executed, repeated: bool) -> anyhow::Result<()> {
        self.printer.answer(line, &done.response, self.described(done, repeated))
    }

    /// An outcome for programs.
    pub(super) fn described(&self, done: &Executed, repeated: bool) -> serde_json::Value {
        let mut json = print::executed(done);
        if let Some(file) = &self.file {
            json["session"] = file.path().display().to_string().into();
        }
        if repeated {
            json["repeated"] = true.into();
        }
        json
    }

    /// Ends a session that isn't kept.
    pub(super) async fn close(&self) {
        if !self.is_kept() {
            let _ = tokio::time::timeout(CLOSE_MAX, self.session.close()).await; // It expires by itself.
        }
    }

    /// Ends a session with a hole in its numbers: nothing can follow in it.
    pub(super) async fn give_up(&mut self) -> anyhow::Result<()> {
        let _ = tokio::time::timeout(CLOSE_MAX, self.session.close()).await; // as above
        let Some(file) = self.file.take() else { return Ok(()) };
        let path = file.path().to_owned();
        file.remove().with_context(|| format!("the session in {} can't go on", path.display()))
    }
}

/// Takes the first that is wanted, and all before it. Takes none if none is.
fn take_first<T>(from: &mut VecDeque<T>, wanted: impl Fn(&T) -> bool) -> Option<(Vec<T>, T)> {
    let at = from.iter().position(wanted)?;
    let passed = from.drain(..at).collect();
    Some((passed, from.pop_front()?))
}

/// Whether the request had no effect, and never will under its number.
pub(super) fn refused_without_effect(error: &Error) -> bool {
    matches!(error, Error::InvalidRequest { .. } | Error::RequestTooLarge { .. } | Error::WindowFull { .. })
}

/// The error that ends many requests early.
pub(super) fn stopped(line: u64, done: u64, error: anyhow::Error) -> Failure {
    let told = anyhow!(
        "stopped at line {line}, after {}",
        output::count(usize::try_from(done).unwrap_or(usize::MAX), "answer")
    );
    Failure::Failed(error.context(told.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_found_behind_what_was_printed_and_not_struck_out() {
        let mut left: VecDeque<u32> = [1, 2, 3, 2].into();
        assert_eq!(take_first(&mut left, |&one| one == 9), None);
        assert_eq!(left, [1, 2, 3, 2], "one that isn't there passes over nothing");
        assert_eq!(take_first(&mut left, |&one| one == 2), Some((vec![1], 2)));
        assert_eq!(take_first(&mut left, |&one| one == 3), Some((vec![], 3)));
        assert_eq!(left, [2]);
    }
}
