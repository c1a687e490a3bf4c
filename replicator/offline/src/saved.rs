//! A saved snapshot as a history: one image, and no entries.

use std::{io::Read, sync::Arc};

use replicator_machine::ModuleSource;
use replicator_storage::{SavedSnapshot, StorageError};
use replicator_types::{LogIndex, Position};

use crate::{History, Logged, Modules, OfflineError};

/// A saved snapshot, every byte of which was checked.
pub struct Saved {
    snapshot: SavedSnapshot,
    modules: Arc<Modules>,
}

impl Saved {
    /// Checks the file, and takes it.
    ///
    /// # Errors
    /// [`StorageError::DamagedSave`] if it isn't as it was written.
    pub fn new(snapshot: SavedSnapshot) -> Result<Self, StorageError> {
        snapshot.verify()?;
        let mut modules = Modules::default();
        for module in snapshot.modules()? {
            modules.add(module);
        }
        Ok(Self { snapshot, modules: Arc::new(modules) })
    }

    /// The file.
    #[must_use]
    pub const fn snapshot(&self) -> &SavedSnapshot {
        &self.snapshot
    }

    fn position(&self) -> Position {
        self.snapshot.head().manifest.position()
    }
}

impl History for Saved {
    fn images(&self) -> Vec<Position> {
        vec![self.position()]
    }

    fn image(&self, _: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        Ok(Box::new(self.snapshot.image()?))
    }

    fn purged(&self) -> Option<Position> {
        Some(self.position())
    }

    fn last(&self) -> Option<Position> {
        Some(self.position())
    }

    fn committed(&self) -> Option<LogIndex> {
        Some(self.position().index)
    }

    fn entries(&self, _: LogIndex, _: LogIndex, _: usize) -> Result<Vec<Logged>, OfflineError> {
        Ok(Vec::new())
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}
