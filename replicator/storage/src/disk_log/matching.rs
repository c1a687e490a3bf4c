//! Entries for a peer whose log lost them.

use replicator_types::{LogIndex, Position};

use super::DiskLog;
use crate::{Record, StorageError};

/// What a log has of what a peer's lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matching {
    /// It holds the peer's entry, so all before it are the same in both.
    Held {
        /// What is before the first entry asked for, if that is known here: an entry, or the purged end.
        before: Option<Position>,
        /// Those asked for, as many as were to be read at once.
        records: Vec<Record>,
    },
    /// It began after the entries asked for: they were purged through this one.
    Purged(Position),
    /// It has another entry in the place of the peer's.
    Other(Position),
    /// It ends before the peer's entry.
    Short(Option<Position>),
}

impl DiskLog {
    /// The entries of `from..to`, if the log holds `anchor`, which is then the same log up to there: at least one if there is one, and no more once
    /// `bytes_max` of payload are read.
    ///
    /// # Errors
    /// If a record can't be read or is damaged.
    pub fn matching(
        &self,
        from: LogIndex,
        to: LogIndex,
        anchor: Position,
        bytes_max: usize,
    ) -> Result<Matching, StorageError> {
        loop {
            // All at one moment: a truncation in between could put other entries in their places.
            let (plan, before, tag) = {
                let state = self.shared.lock();
                let (purged, last) = (state.ends.purged, state.ends.last);
                let at = |index: LogIndex| {
                    let purged = purged.filter(|purged| purged.index == index);
                    purged.or_else(|| state.index.position(index))
                };
                if let Some(purged) =
                    purged.filter(|purged| purged.index >= from && from < to || purged.index > anchor.index)
                {
                    return Ok(Matching::Purged(purged));
                }
                match at(anchor.index) {
                    None => return Ok(Matching::Short(last)),
                    Some(other) if other != anchor => return Ok(Matching::Other(other)),
                    Some(_) => {}
                }
                let before = from.0.checked_sub(1).and_then(|before| at(LogIndex(before)));
                (state.plan(from, to, bytes_max), before, state.tag)
            };
            if let Some(records) = self.carry_out(plan, tag)? {
                return Ok(Matching::Held { before, records });
            }
        }
    }
}
