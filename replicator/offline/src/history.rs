//! What a run begins with, and the entries that follow.

use std::{collections::BTreeMap, io::Read, sync::Arc};

use bytes::Bytes;
use replicator_machine::ModuleSource;
use replicator_types::{LogIndex, ModuleHash, Position};
use sha2::{Digest as _, Sha256};

use crate::OfflineError;

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Where it is.
    pub position: Position,
    /// The encoded [`replicator_machine::Entry`]; none if it is the strategy's own, and reaches no machine.
    pub entry: Option<Bytes>,
}

/// A log, and the images that it may begin with.
pub trait History: Sync {
    /// The positions of the images, the oldest first.
    fn images(&self) -> Vec<Position>;

    /// Opens an image, to be read to its end.
    ///
    /// # Errors
    /// If it can't be begun.
    fn image(&self, at: Position) -> Result<Box<dyn Read + '_>, OfflineError>;

    /// The last entry that has left the log; none: the log has everything.
    fn purged(&self) -> Option<Position>;

    /// The last entry, or the newest image's if that is later.
    fn last(&self) -> Option<Position>;

    /// The last index that is known to be committed; none: nothing is known.
    fn committed(&self) -> Option<LogIndex>;

    /// Reads the entries of `from..to` that exist, at least one if there is one, and no more once `bytes_max` of them are read.
    ///
    /// # Errors
    /// If one can't be read or is damaged.
    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Logged>, OfflineError>;

    /// Where its modules come from.
    fn modules(&self) -> Arc<dyn ModuleSource>;

    /// Why a module that [`Self::modules`] was asked for isn't there: it can't be read, or else nobody has it.
    fn no_module(&self, hash: ModuleHash) -> OfflineError {
        OfflineError::NoModule(hash)
    }
}

/// Modules in memory, before those of another source.
#[derive(Default)]
pub struct Modules {
    own: BTreeMap<ModuleHash, Bytes>,
    others: Option<Arc<dyn ModuleSource>>,
}

impl Modules {
    /// Those of `others`, and what is added.
    #[must_use]
    pub fn before(others: Arc<dyn ModuleSource>) -> Self {
        Self { own: BTreeMap::new(), others: Some(others) }
    }

    /// Adds a module, and tells its hash.
    pub fn add(&mut self, bytes: Bytes) -> ModuleHash {
        let hash = ModuleHash(Sha256::digest(&bytes).into());
        self.own.insert(hash, bytes);
        hash
    }
}

impl ModuleSource for Modules {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        let own = self.own.get(hash).cloned();
        own.or_else(|| self.others.as_ref().and_then(|others| others.module(hash)))
    }
}
