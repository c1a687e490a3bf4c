//! What a log's records add up to, and whether each of them fits the ones before it.

use replicator_types::{LogIndex, Position};

use super::{
    index::Index,
    record::{Change, Decoded},
};

/// The ends of a log: what its header says where a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ends {
    pub(crate) purged: Option<Position>,
    /// Invariant: not before `purged`.
    pub(crate) last: Option<Position>,
}

impl Ends {
    /// The ends after a change that fits.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Append(position) => self.last = Some(position),
            Change::TruncateAfter(last) => self.last = last,
            Change::PurgeThrough(through) => {
                self.purged = Some(through);
                self.last = self.last.max(self.purged);
            }
        }
    }
}

/// The state of a log after some of its records.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) ends: Ends,
    pub(crate) index: Index,
    /// The entries after `purged` and up to here were in segments that aren't there any more. Only a purge later in the log makes
    /// that right.
    absent_through: Option<LogIndex>,
}

impl Replay {
    /// A log whose first segment begins with these ends.
    pub(crate) fn begin(ends: Ends) -> Self {
        let absent_through = ends.last.filter(|_| ends.last != ends.purged).map(|last| last.index);
        Self { ends, index: Index::default(), absent_through }
    }

    /// The entries that should be there, and whose segments are missing.
    pub(crate) fn absent(&self) -> Option<String> {
        let first = next(self.ends.purged);
        self.absent_through.filter(|through| *through >= first).map(|through| format!("entries {first} to {through}"))
    }

    /// Applies the record at the global offset `offset`. The error says why it doesn't fit.
    pub(crate) fn apply(&mut self, record: &Decoded<'_>, offset: u64) -> Result<(), String> {
        if record.durable_end > offset {
            let durable_end = record.durable_end;
            return Err(format!("the record says that the log was durable up to {durable_end}, beyond it"));
        }
        let Ends { purged, last } = self.ends;
        match record.change {
            Change::Append(position) => {
                if position.index != next(last) || last.is_some_and(|last| position.epoch < last.epoch) {
                    return Err(format!("entry {position} after {last:?}"));
                }
                self.index.push(position, offset, record.payload.len());
            }
            Change::TruncateAfter(kept) => {
                let known = match kept {
                    None => purged.is_none(),
                    Some(_) if kept == purged || kept == last => true,
                    Some(kept) => self.holds(kept),
                };
                if !known {
                    return Err(format!("a truncation after {kept:?}, and the log holds {purged:?} to {last:?}"));
                }
                self.index.truncate(next(kept));
                self.absent_through = self.absent_through.and_then(|absent| Some(absent.min(kept?.index)));
            }
            Change::PurgeThrough(through) => {
                let newer = purged.is_none_or(|purged| through.index > purged.index && through.epoch >= purged.epoch);
                let known = last == purged || self.holds(through);
                if !newer || !known {
                    return Err(format!("a purge through {through}, and the log holds {purged:?} to {last:?}"));
                }
                self.index.purge(through.index);
            }
        }
        self.ends.apply(record.change);
        Ok(())
    }

    /// Whether the entry is in the log, or may have been in a segment that isn't there any more.
    fn holds(&self, position: Position) -> bool {
        let absent = self.absent_through.is_some_and(|through| position.index <= through);
        (absent && position.index >= next(self.ends.purged)) || self.index.position(position.index) == Some(position)
    }
}

/// The index after a position; 0 after none.
pub(crate) fn next(position: Option<Position>) -> LogIndex {
    position.map_or(LogIndex(0), |position| position.index.next())
}
