//! raft-log with the positions that it holds, and the checks that it leaves to its user.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use raft_log::{RaftLog, api::raft_log_writer::RaftLogWriter, types::Segment};
use replicator_types::{LogIndex, Position};

use super::{
    replay::next,
    types::{Payload, Place, WalTypes},
};
use crate::{Record, StorageError, meta::LogTag};

/// raft-log, and what it holds.
pub(super) struct Core {
    pub(super) raft: RaftLog<WalTypes>,
    pub(super) path: PathBuf,
    pub(super) tag: LogTag,
    /// See [`Place`].
    pub(super) round: u64,
    /// The global offset of the log's end.
    pub(super) end: u64,
    pub(super) purged: Option<Position>,
    /// Invariant: `purged <= last`.
    pub(super) last: Option<Position>,
}

impl Core {
    /// What raft-log says after it wrote.
    fn wrote(&mut self, segment: Segment) {
        self.end = segment.offset + segment.size;
    }

    /// The place of the entry with this index, if it is in the log.
    pub(super) fn place(&self, index: LogIndex) -> Result<Option<Place>, StorageError> {
        let found = self
            .raft
            .read(index.0, index.0.saturating_add(1))
            .next()
            .transpose()
            .map_err(|error| self.unreadable(error))?;
        Ok(found.map(|(place, _)| place))
    }

    pub(super) fn unreadable(&self, source: io::Error) -> StorageError {
        match source.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound => {
                StorageError::damaged(&self.path, None, format!("an entry can't be read: {source}"))
            }
            _ => StorageError::io("read an entry of the log in", &self.path)(source),
        }
    }

    pub(super) fn not_contiguous(&self, what: String) -> StorageError {
        StorageError::NotContiguous { last: self.last, what }
    }

    pub(super) fn check_append(&self, records: &[Record], bytes_max: usize) -> Result<(), StorageError> {
        let mut last = self.last;
        for Record { position, payload } in records {
            if position.index != next(last) || last.is_some_and(|last| position.epoch < last.epoch) {
                return Err(self.not_contiguous(format!("can't append {position} after {last:?}")));
            }
            if payload.len() > bytes_max {
                return Err(StorageError::TooLarge { bytes: payload.len(), bytes_max });
            }
            last = Some(*position);
        }
        Ok(())
    }

    /// Appends records that were checked. `durable_end` is where the log is known to be durable.
    pub(super) fn append(&mut self, records: Vec<Record>, durable_end: u64) -> Result<(), StorageError> {
        let Some(last) = records.last().map(|record| record.position) else { return Ok(()) };
        let (tag, round) = (self.tag, self.round);
        let entries = records.into_iter().map(|Record { position, payload: bytes }| {
            (Place { round, position }, Payload { tag, durable_end, bytes })
        });
        let segment = self.raft.append(entries).map_err(write_failed)?;
        self.wrote(segment);
        self.last = Some(last);
        Ok(())
    }

    /// Drops every entry after `last`, which is in the log or its purged end.
    pub(super) fn truncate(&mut self, last: Option<Position>) -> Result<(), StorageError> {
        let segment = self.raft.truncate(next(last).0).map_err(write_failed)?;
        self.wrote(segment);
        self.last = last;
        self.round += 1;
        Ok(())
    }

    /// Drops every entry up to `through`: the place of an entry of the log, or what an empty log continues after.
    pub(super) fn purge(&mut self, through: Place) -> Result<(), StorageError> {
        let segment = self.raft.purge(through).map_err(write_failed)?;
        self.wrote(segment);
        self.purged = Some(through.position);
        self.last = self.last.max(self.purged);
        Ok(())
    }
}

fn write_failed(error: io::Error) -> StorageError {
    StorageError::failed(format!("the log couldn't be written: {error}"))
}
