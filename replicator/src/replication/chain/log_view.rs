//! The log, as the protocol reads it.

use std::cell::RefCell;

use replicator_chain::{LogEntry, LogView};
use replicator_storage::Log;
use replicator_types::{LogIndex, Position};

/// A log that can't be read has failed.
pub(super) struct ReadLog<'a> {
    pub(super) log: &'a dyn Log,
    pub(super) failed: &'a RefCell<Option<String>>,
}

impl LogView for ReadLog<'_> {
    fn purged(&self) -> Option<Position> {
        self.log.ends().purged
    }

    fn last(&self) -> Option<Position> {
        self.log.ends().last
    }

    fn position(&self, index: LogIndex) -> Option<Position> {
        let purged = self.purged().filter(|purged| purged.index == index);
        purged.or_else(|| self.read(index, index.next(), 0).first().map(|entry| entry.position))
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<LogEntry> {
        match self.log.read(from, to, bytes_max) {
            Ok(records) => records.into_iter().map(|r| LogEntry { position: r.position, payload: r.payload }).collect(),
            Err(error) => {
                self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
                Vec::new()
            }
        }
    }
}
