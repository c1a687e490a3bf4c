//! What was collected from a running node as a history: a saved snapshot, and the entries after it.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use replicator_machine::ModuleSource;
use replicator_types::{LogIndex, Position};

use crate::{History, Logged, Modules, OfflineError, Saved};

/// A saved snapshot and the entries after it, or all entries from the first one on, of the same node. All of them are committed.
pub struct Collected {
    saved: Option<Saved>,
    first: LogIndex,
    entries: Vec<Logged>,
    modules: Arc<Modules>,
}

impl Collected {
    /// Of entries that follow the snapshot's image, and of the modules that they activate.
    ///
    /// # Errors
    /// [`OfflineError::Missing`] if one is missing.
    pub fn after_image(saved: Saved, entries: Vec<Logged>, modules: Vec<Bytes>) -> Result<Self, OfflineError> {
        let first = saved.last().map_or(LogIndex(0), |last| last.index.next());
        Self::new(Some(saved), first, entries, modules)
    }

    /// Of entries from the log's first one on, and of the modules that they name.
    ///
    /// # Errors
    /// [`OfflineError::Missing`] if one is missing.
    pub fn from_genesis(entries: Vec<Logged>, modules: Vec<Bytes>) -> Result<Self, OfflineError> {
        Self::new(None, LogIndex(0), entries, modules)
    }

    fn new(
        saved: Option<Saved>,
        first: LogIndex,
        entries: Vec<Logged>,
        more: Vec<Bytes>,
    ) -> Result<Self, OfflineError> {
        let mut expected = (first.0..).map(LogIndex).zip(&entries);
        if let Some((missing, _)) = expected.find(|(expected, logged)| logged.position.index != *expected) {
            return Err(OfflineError::Missing(missing));
        }
        let mut modules = saved.as_ref().map_or_else(Modules::default, |saved| Modules::before(saved.modules()));
        for module in more {
            modules.add(module);
        }
        Ok(Self { saved, first, entries, modules: Arc::new(modules) })
    }
}

impl History for Collected {
    fn images(&self) -> Vec<Position> {
        self.saved.as_ref().map_or_else(Vec::new, Saved::images)
    }

    fn image(&self, at: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        self.saved.as_ref().ok_or(OfflineError::Empty)?.image(at)
    }

    fn purged(&self) -> Option<Position> {
        self.saved.as_ref().and_then(Saved::last)
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
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}
