//! What was collected from a running node as a history: a saved snapshot, and the entries after it.

use std::{io::Read, sync::Arc};

use replicator_machine::ModuleSource;
use replicator_types::{LogIndex, Position};

use crate::{History, Logged, OfflineError, Saved};

/// A saved snapshot and entries of the same node. All of them are committed.
pub struct Collected {
    saved: Saved,
    /// Whether the entries follow the snapshot's image; else they begin with the log.
    after_image: bool,
    first: LogIndex,
    entries: Vec<Logged>,
}

impl Collected {
    /// Of entries that follow the snapshot's image.
    ///
    /// # Errors
    /// [`OfflineError::Missing`] if one is missing.
    pub fn after_image(saved: Saved, entries: Vec<Logged>) -> Result<Self, OfflineError> {
        let first = saved.last().map_or(LogIndex(0), |last| last.index.next());
        Self { saved, after_image: true, first, entries }.checked()
    }

    /// Of entries from the log's first one on. The snapshot gives the module.
    ///
    /// # Errors
    /// [`OfflineError::Missing`] if one is missing.
    pub fn from_genesis(saved: Saved, entries: Vec<Logged>) -> Result<Self, OfflineError> {
        Self { saved, after_image: false, first: LogIndex(0), entries }.checked()
    }

    fn checked(self) -> Result<Self, OfflineError> {
        let expected = (self.first.0..).map(LogIndex);
        let mut pairs = expected.zip(&self.entries);
        match pairs.find(|(expected, logged)| logged.position.index != *expected) {
            Some((expected, _)) => Err(OfflineError::Missing(expected)),
            None => Ok(self),
        }
    }
}

impl History for Collected {
    fn images(&self) -> Vec<Position> {
        if self.after_image { self.saved.images() } else { Vec::new() }
    }

    fn image(&self, at: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        self.saved.image(at)
    }

    fn purged(&self) -> Option<Position> {
        if self.after_image { self.saved.last() } else { None }
    }

    fn last(&self) -> Option<Position> {
        self.entries.last().map(|last| last.position).or_else(|| self.purged())
    }

    fn committed(&self) -> Option<LogIndex> {
        self.last().map(|last| last.index)
    }

    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Logged>, OfflineError> {
        let place = |index: LogIndex| {
            usize::try_from(index.0.saturating_sub(self.first.0))
                .map_or(self.entries.len(), |at| at.min(self.entries.len()))
        };
        let (mut bytes, mut given) = (0, Vec::new());
        for logged in &self.entries[place(from)..place(to).max(place(from))] {
            if bytes >= bytes_max && !given.is_empty() {
                break;
            }
            bytes += logged.entry.as_ref().map_or(0, bytes::Bytes::len);
            given.push(logged.clone());
        }
        Ok(given)
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        self.saved.modules()
    }
}
