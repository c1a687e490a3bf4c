//! `--stdin`: a request in each line, many under way at once, results in the order of the lines.

use std::collections::VecDeque;

use anyhow::anyhow;
use bytes::Bytes;
use futures::FutureExt as _;
use replicator_client::{Error, Executed, Outcome, Pipeline, Sequence};
use tokio::sync::mpsc;

use super::{
    caller::{Caller, refused_without_effect, stopped},
    explain,
    input::Line,
    is_outcome,
};
use crate::cli::{Failure, output};

/// A line whose request is under way.
struct UnderWay {
    line: u64,
    request: Bytes,
    outcome: Outcome,
}

/// What has come so far.
#[derive(Default)]
struct Tally {
    answered: u64,
    without: u64,
}

/// Executes each line as a request. A trap is told and the next lines go on; anything else that isn't an outcome ends it.
pub(super) async fn execute(
    caller: &mut Caller,
    mut input: mpsc::Receiver<Line>,
    window: usize,
) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let Some(first) = repeats(caller, &mut input, &mut tally).await? else { return tally.end() };
    let pipeline = caller.session.pipeline(window).await?;
    let next = caller.session.next_sequence();
    let mut lines = Lines { caller, pipeline, next, under_way: VecDeque::new(), tally };
    let ended = lines.run(first, &mut input).await;
    let Lines { caller, pipeline, tally, .. } = lines;
    match ended {
        Ended::Done => {
            pipeline.close().await?;
            caller.strike_out([])?;
            tally.end()
        }
        // The session goes on if the request was the last one; else it has a hole.
        Ended::Refused(failure, unknown) => {
            match pipeline.close().await {
                Err(Error::PipelineBroken) => caller.give_up().await?,
                _ => caller.strike_out(unknown.from(caller.session.next_sequence()))?,
            }
            Err(failure)
        }
        // What is under way stays written down.
        Ended::Failed(failure) => Err(failure),
    }
}

/// Takes the lines that repeat what was interrupted earlier. Returns the first that doesn't.
async fn repeats(
    caller: &mut Caller,
    input: &mut mpsc::Receiver<Line>,
    tally: &mut Tally,
) -> Result<Option<(u64, Bytes)>, Failure> {
    let other = loop {
        let Some(line) = input.recv().await else { break None };
        let (line, request) = line?;
        match caller.take_repeat(&request) {
            None => break Some((line, request)),
            Some((_, Err(error))) if refused_without_effect(&error) => {
                return Err(stopped(line, tally.answered, explain(error, true)));
            }
            Some((_, outcome)) => tally.tell(caller, line, outcome, true)?,
        }
        caller.strike_out([])?;
    };
    caller.pass_over_interrupted()?;
    Ok(other)
}

enum Ended {
    Done,
    Refused(Failure, Unknown),
    Failed(Failure),
}

/// The requests behind a refused one from the first without an outcome on, to be written down.
#[derive(Default)]
struct Unknown {
    /// The first one's number, if the error says so. If not, no request got its outcome after that.
    first: Option<Sequence>,
    /// All that have a number, also those that have their outcomes: numbers have no holes.
    requests: Vec<Bytes>,
}

impl Unknown {
    /// Takes in the next line's outcome.
    fn add(&mut self, request: Bytes, outcome: &Result<Executed, Error>) {
        match outcome {
            // Its number is free again.
            Err(error) if refused_without_effect(error) || matches!(error, Error::PipelineBroken) => return,
            // It was alone, so nothing before it is without an outcome.
            Err(Error::SequenceGap { .. }) => return *self = Self::default(),
            outcome if self.requests.is_empty() && is_outcome(outcome) => return,
            Err(Error::OutcomeUnknown { sequence, .. }) if self.requests.is_empty() => self.first = Some(*sequence),
            _ => {}
        }
        self.requests.push(request);
    }

    /// Those with the number `next` and later ones.
    fn from(&self, next: Sequence) -> &[Bytes] {
        let known = self.first.map_or(0, |first| next.0.saturating_sub(first.0));
        self.requests.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default()
    }
}

struct Lines<'a> {
    caller: &'a mut Caller,
    pipeline: Pipeline,
    /// The number of the first request under way.
    next: Sequence,
    under_way: VecDeque<UnderWay>,
    tally: Tally,
}

impl Lines<'_> {
    async fn run(&mut self, first: (u64, Bytes), input: &mut mpsc::Receiver<Line>) -> Ended {
        let mut open = true;
        let mut submitted = self.submit(vec![first]).await;
        loop {
            if let Err(error) = submitted {
                return Ended::Failed(error);
            }
            if self.under_way.is_empty() && !open {
                return Ended::Done;
            }
            let room = self.pipeline.window() - self.under_way.len();
            submitted = tokio::select! {
                // What has come is told before more is sent.
                biased;
                outcome = async { (&mut self.under_way[0].outcome).await }, if !self.under_way.is_empty() => {
                    match self.tell(outcome).await {
                        Ok(()) => Ok(()),
                        Err(ended) => return ended,
                    }
                }
                line = input.recv(), if open && room > 0 => {
                    let mut batch = Vec::new();
                    let mut next = line;
                    loop {
                        match next {
                            Some(Ok(line)) => batch.push(line),
                            // What came before it still has its turn.
                            Some(Err(error)) => {
                                self.caller.note(&format!("no more lines are read: {error:#}"));
                                self.tally.without += 1;
                                open = false;
                            }
                            None => open = false,
                        }
                        if !open || batch.len() == room {
                            break;
                        }
                        match input.try_recv() {
                            Ok(line) => next = Some(line),
                            Err(_) => break,
                        }
                    }
                    self.submit(batch).await
                }
            };
        }
    }

    /// Writes lines down, and sends them.
    async fn submit(&mut self, batch: Vec<(u64, Bytes)>) -> Result<(), Failure> {
        let earlier = self.under_way.iter().map(|one| &one.request);
        self.caller.save(self.next, earlier.chain(batch.iter().map(|(_, request)| request)))?;
        for (line, request) in batch {
            let submitted = self.pipeline.submit(request.clone()).await;
            let outcome = submitted.map_err(|error| stopped(line, self.tally.answered, explain(error, true)))?;
            self.under_way.push_back(UnderWay { line, request, outcome });
        }
        Ok(())
    }

    /// Prints the first outcome and those that have come behind it, and only then strikes them out.
    async fn tell(&mut self, first: Result<Executed, Error>) -> Result<(), Ended> {
        let failed = |error: anyhow::Error| Ended::Failed(error.into());
        let mut outcome = Some(first);
        while let Some(outcome_now) = outcome {
            let Some(UnderWay { line, .. }) = self.under_way.front() else { break };
            let line = *line;
            match outcome_now {
                Err(error) if refused_without_effect(&error) || error.is_resynchronised() => {
                    return Err(self.refused(line, error).await);
                }
                Err(error) if !matches!(error, Error::ModuleTrapped { .. }) => {
                    let error = explain(error, self.caller.is_kept());
                    return Err(Ended::Failed(stopped(line, self.tally.answered, error)));
                }
                outcome => {
                    self.tally.tell(self.caller, line, outcome, false).map_err(failed)?;
                    self.under_way.pop_front();
                    self.next = Sequence(self.next.0 + 1);
                }
            }
            outcome = self.under_way.front_mut().and_then(|one| (&mut one.outcome).now_or_never());
        }
        self.caller.save(self.next, self.under_way.iter().map(|one| &one.request)).map_err(failed)
    }

    /// Prints what is still to come behind a refused line, none of which follows it unless it took its place.
    async fn refused(&mut self, line: u64, error: Error) -> Ended {
        let failure = stopped(line, self.tally.answered, explain(error, self.caller.is_kept()));
        self.under_way.pop_front();
        let mut unknown = Unknown::default();
        while let Some(UnderWay { line, request, outcome }) = self.under_way.pop_front() {
            let outcome = outcome.await;
            unknown.add(request, &outcome);
            let told = match outcome {
                outcome @ (Ok(_) | Err(Error::ModuleTrapped { .. })) => {
                    self.tally.tell(self.caller, line, outcome, false)
                }
                Err(error) => self.caller.printer.no_answer(line, &error.into()),
            };
            if let Err(error) = told {
                return Ended::Failed(error.into());
            }
        }
        Ended::Refused(failure, unknown)
    }
}

impl Tally {
    /// Prints an outcome.
    fn tell(
        &mut self,
        caller: &Caller,
        line: u64,
        outcome: Result<Executed, Error>,
        repeated: bool,
    ) -> anyhow::Result<()> {
        match outcome {
            Ok(done) => {
                self.answered += 1;
                caller.print(Some(line), &done, repeated)
            }
            Err(error) => {
                self.without += 1;
                caller.printer.no_answer(line, &explain(error, caller.is_kept()))
            }
        }
    }

    fn end(&self) -> Result<(), Failure> {
        let Self { answered, without } = self;
        if *without == 0 {
            return Ok(());
        }
        let lines = output::count(usize::try_from(*without).unwrap_or(usize::MAX), "line");
        Err(Failure::Failed(anyhow!("{lines} without an answer, {answered} answered")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use replicator_client::{Digest, LogIndex};
    use tonic::Status;

    use super::*;

    fn unknown(sequence: u64) -> Result<Executed, Error> {
        let cause = Box::new(Status::deadline_exceeded("late"));
        Err(Error::OutcomeUnknown { sequence: Sequence(sequence), waited: Duration::ZERO, cause })
    }

    fn done() -> Result<Executed, Error> {
        Err(Error::ModuleTrapped { message: String::new(), log_index: LogIndex(1), state_digest: Digest(1) })
    }

    fn left(outcomes: &[Result<Executed, Error>], next: u64) -> String {
        let mut unknown = Unknown::default();
        for (name, outcome) in ('a'..).zip(outcomes) {
            unknown.add(name.to_string().into(), outcome);
        }
        unknown.from(Sequence(next)).iter().map(|request| String::from_utf8_lossy(request)).collect()
    }

    #[test]
    fn what_has_no_outcome_behind_a_refused_line_is_kept_under_its_numbers() {
        let refused = || Err(Error::InvalidRequest { message: String::new() });
        let gap = || Err(Error::SequenceGap { sequence: Sequence(6), last_sequence: Sequence(3) });
        let lost = || Err(Error::Rpc(Box::new(Status::internal("bug"))));
        for (outcomes, next, expected) in [
            (vec![done(), done()], 7, ""),
            (vec![done(), unknown(6), unknown(7)], 6, "bc"),
            (vec![unknown(5), done(), unknown(7)], 5, "abc"),
            // It came late, after all.
            (vec![unknown(5), done(), unknown(7)], 7, "c"),
            (vec![unknown(5), done(), unknown(7)], 8, ""),
            (vec![unknown(5), refused(), unknown(6)], 5, "ac"),
            (vec![unknown(5), gap(), unknown(4)], 4, "c"),
            (vec![done(), lost(), lost()], 6, "bc"),
        ] {
            assert_eq!(left(&outcomes, next), expected, "{outcomes:?} and then {next}");
        }
    }
}
