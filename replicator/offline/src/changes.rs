//! What changed in a history between two of its indices.

use std::ops::RangeInclusive;

use replicator_machine::{SURVEY_PAGE_BYTES, Survey};
use replicator_types::{LogIndex, SessionId};

use crate::{History, OfflineError, Progress, Replay, Tally};

/// Runs of pages that are named; the others are counted.
const RUNS_MAX: usize = 16;

/// What changed between two indices.
#[derive(Debug)]
pub struct Changes {
    /// The state after the first index.
    pub before: Survey,
    /// The state after the second.
    pub after: Survey,
    /// What was applied between them.
    pub tally: Tally,
    /// How memory differs.
    pub memory: PagesChanged,
    /// How the session table differs.
    pub sessions: SessionsChanged,
    /// What was found amiss, and passed over.
    pub notes: Vec<String>,
}

/// Pages of memory that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PagesChanged {
    /// Pages of [`SURVEY_PAGE_BYTES`] that both have, and that differ.
    pub differing: u64,
    /// Pages that only the later memory has.
    pub grown: u64,
    /// The first runs of differing pages, by their bytes in the memory.
    pub runs: Vec<RangeInclusive<u64>>,
}

/// Sessions that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SessionsChanged {
    /// Those that only the later table has.
    pub opened: Vec<SessionId>,
    /// Those that only the earlier one has.
    pub closed: Vec<SessionId>,
    /// Those that both have, and of which something differs.
    pub used: Vec<SessionId>,
    /// Those of which nothing does.
    pub untouched: u64,
}

/// Applies the history up to `from` and then up to `to`, and compares.
///
/// # Errors
/// As [`Replay`].
pub fn changes(
    history: &dyn History,
    from: LogIndex,
    to: LogIndex,
    progress: Progress<'_>,
) -> Result<Changes, OfflineError> {
    let mut replay = Replay::begin(history, from, history.modules())?;
    replay.run_to(from, progress)?;
    let (before, earlier) = (replay.machine().survey(), replay.tally().clone());
    replay.run_to(to, progress)?;
    let after = replay.machine().survey();
    let (memory, sessions) = (pages(&before, &after), sessions(&before, &after));
    let notes = replay.notes().to_vec();
    Ok(Changes { tally: replay.tally().since(&earlier), memory, sessions, before, after, notes })
}

fn pages(before: &Survey, after: &Survey) -> PagesChanged {
    let grown = after.pages.len().saturating_sub(before.pages.len()) as u64; // A swap may begin a smaller one.
    let mut changed = PagesChanged { grown, ..Default::default() };
    let bytes = SURVEY_PAGE_BYTES as u64;
    let pairs = (0..).zip(before.pages.iter().zip(&after.pages));
    let mut open: Option<RangeInclusive<u64>> = None;
    for (page, _) in pairs.filter(|(_, (before, after))| before != after) {
        changed.differing += 1;
        let (first, last) = (page * bytes, page * bytes + bytes - 1);
        open = match open {
            Some(run) if *run.end() + 1 == first => Some(*run.start()..=last),
            before => {
                changed.runs.extend(before);
                Some(first..=last)
            }
        };
    }
    changed.runs.extend(open);
    changed.runs.truncate(RUNS_MAX);
    changed
}

fn sessions(before: &Survey, after: &Survey) -> SessionsChanged {
    let mut changed = SessionsChanged::default();
    for (id, hash) in &after.sessions {
        match before.sessions.get(id) {
            None => changed.opened.push(*id),
            Some(earlier) if earlier != hash => changed.used.push(*id),
            Some(_) => changed.untouched += 1,
        }
    }
    changed.closed = before.sessions.keys().filter(|id| !after.sessions.contains_key(*id)).copied().collect();
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_lie_together_are_one_run() {
        let survey = |pages: &[u64]| Survey { pages: pages.to_vec(), ..Survey::default() };
        let found = pages(&survey(&[1, 2, 3, 4, 5]), &survey(&[1, 9, 9, 4, 9, 7, 7]));
        assert_eq!((found.differing, found.grown), (3, 2));
        assert_eq!(found.runs, [4_096..=12_287, 16_384..=20_479]);
        assert_eq!(pages(&survey(&[1]), &survey(&[1])), PagesChanged::default());
    }
}
