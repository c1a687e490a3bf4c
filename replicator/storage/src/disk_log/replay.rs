//! What a log's records add up to, and whether each of them fits the ones before it.

use raft_log::{RaftLogAction, WALRecord};
use replicator_types::{LogIndex, Position};

use super::types::{Place, WalRecord};
use crate::meta::LogTag;

/// The state of a log after some of its records.
#[derive(Debug)]
pub(crate) struct Replay {
    tag: LogTag,
    purged: Option<Place>,
    last: Option<Place>,
    /// The greatest round of all, of entries that were cut off too.
    round: u64,
    /// The entries after `purged` and up to here were in chunks that aren't there any more. Only a purge later in the log makes
    /// that right.
    absent_through: Option<LogIndex>,
    begun: bool,
}

impl Replay {
    pub(crate) fn new(tag: LogTag) -> Self {
        Self { tag, purged: None, last: None, round: 0, absent_through: None, begun: false }
    }

    pub(crate) fn purged(&self) -> Option<Place> {
        self.purged
    }

    pub(crate) fn last(&self) -> Option<Place> {
        self.last
    }

    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// The entries that should be there, and whose chunks are missing.
    pub(crate) fn absent(&self) -> Option<String> {
        let first = next(position(self.purged));
        self.absent_through.filter(|through| *through >= first).map(|through| format!("entries {first} to {through}"))
    }

    /// Applies the record at the global offset `start`. The error says why it doesn't fit.
    pub(crate) fn apply(&mut self, record: &WalRecord, start: u64, first_in_chunk: bool) -> Result<(), String> {
        match record {
            WALRecord::Checkpoint(state) if first_in_chunk => {
                if state.vote().is_some() || state.committed().is_some() || state.user_data.is_some() {
                    return Err("the chunk's first record holds what this program never writes".into());
                }
                self.checkpoint(state.purged().copied(), state.last().copied())
            }
            _ if first_in_chunk => Err("the chunk doesn't begin with the log's state".into()),
            WALRecord::Action(RaftLogAction::Append(place, payload)) => {
                if payload.tag != self.tag {
                    return Err("the record belongs to another log".into());
                }
                let durable_end = payload.durable_end;
                if durable_end > start {
                    return Err(format!("the record says that the log was durable up to {durable_end}, beyond it"));
                }
                self.append(*place)
            }
            WALRecord::Action(RaftLogAction::TruncateAfter(place)) => self.truncate(*place),
            WALRecord::Action(RaftLogAction::PurgeUpto(place)) => self.purge(*place),
            other => Err(format!("a record that this program never writes: {other:?}")),
        }
    }

    fn checkpoint(&mut self, purged: Option<Place>, last: Option<Place>) -> Result<(), String> {
        if !self.begun {
            self.begun = true;
            (self.purged, self.last) = (purged, last);
            self.round = last.max(purged).map_or(0, |place| place.round);
            self.absent_through = last.filter(|_| last != purged).map(|last| last.position.index);
            return Ok(());
        }
        if (purged, last) != (self.purged, self.last) {
            return Err(format!("the chunk begins after {last:?}, and the one before it ends at {:?}", self.last));
        }
        Ok(())
    }

    fn append(&mut self, place: Place) -> Result<(), String> {
        let fits =
            self.last.is_none_or(|last| place.round >= last.round && place.position.epoch >= last.position.epoch);
        if !fits || place.position.index != next(position(self.last)) {
            return Err(format!("{place:?} after {:?}", self.last));
        }
        self.round = self.round.max(place.round);
        self.last = Some(place);
        Ok(())
    }

    fn truncate(&mut self, last: Option<Place>) -> Result<(), String> {
        let after = next(position(last));
        if after > next(position(self.last)) || after < next(position(self.purged)) {
            return Err(format!("a truncation after {last:?}, and the log holds {:?} to {:?}", self.purged, self.last));
        }
        self.last = last;
        self.absent_through = self.absent_through.and_then(|absent| Some(absent.min(last?.position.index)));
        Ok(())
    }

    fn purge(&mut self, through: Place) -> Result<(), String> {
        if Some(through) <= self.purged {
            return Err(format!("a purge through {through:?} after one through {:?}", self.purged));
        }
        self.round = self.round.max(through.round);
        self.purged = Some(through);
        self.last = self.last.max(self.purged);
        Ok(())
    }
}

/// The place's position.
pub(crate) fn position(place: Option<Place>) -> Option<Position> {
    place.map(|place| place.position)
}

/// The index after a position; 0 after none.
pub(crate) fn next(position: Option<Position>) -> LogIndex {
    position.map_or(LogIndex(0), |position| position.index.next())
}
