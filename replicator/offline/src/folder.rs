//! A stopped node's folder as a history.

use std::{
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use replicator_machine::ModuleSource;
use replicator_storage::{ReadLog, Record, SnapshotManifest, StoppedLog, StoppedNode, StorageError};
use replicator_types::{LogIndex, ModuleHash, Position, codec::CodecError};

use crate::{History, Logged, OfflineError};

/// Finds the machine's entry in a record of the log; none in one of the strategy's own.
pub type Framing = fn(&Record) -> Result<Option<Bytes>, CodecError>;

/// A stopped node's folder. Nothing in it is changed.
pub struct Folder {
    node: Arc<StoppedNode>,
    log: StoppedLog,
    framing: Framing,
    images: Vec<SnapshotManifest>,
    committed: Option<LogIndex>,
    /// The last entry: the newest image's, where the log doesn't lead to it or beyond.
    last: Option<Position>,
    modules: Arc<FolderModules>,
    notes: Vec<String>,
}

impl Folder {
    /// Takes an open folder and its log, whose records `framing` understands, and of which `committed` is known to be committed by what is not
    /// in an image: those, the folder knows itself.
    ///
    /// # Errors
    /// If the images can't be listed.
    pub fn new(
        node: StoppedNode,
        log: StoppedLog,
        framing: Framing,
        committed: Option<LogIndex>,
    ) -> Result<Self, OfflineError> {
        let node = Arc::new(node);
        let (mut images, mut notes) = (Vec::new(), Vec::new());
        for entry in node.images()? {
            match entry.manifest {
                Ok(manifest) => images.push(manifest),
                Err(error) => notes.push(format!("the image at {} can't be used: {error}", entry.position)),
            }
        }
        if let Some(tail) = log.torn_tail() {
            notes.push(format!(
                "the log has a torn tail of {} bytes in {}, of which nobody was told; it is left out",
                tail.bytes,
                tail.file.display()
            ));
        }
        let mut last = log.ends().last;
        if let Some(newest) = images.last().map(SnapshotManifest::position)
            && !holds(&log, newest)?
        {
            last = Some(newest); // It was fetched to take the log's place, as a start would find.
        }
        let committed = committed.max(images.iter().map(|image| image.position().index).max());
        let modules = Arc::new(FolderModules { node: Arc::clone(&node), failed: Mutex::default() });
        Ok(Self { node, log, framing, images, committed, last, modules, notes })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.node.path()
    }

    /// What was found amiss, and left out.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The manifest of the image at `position`.
    #[must_use]
    pub fn manifest(&self, position: Position) -> Option<&SnapshotManifest> {
        self.images.iter().find(|image| image.position() == position)
    }
}

impl History for Folder {
    fn no_module(&self, hash: ModuleHash) -> OfflineError {
        let failed = self.modules.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(OfflineError::NoModule(hash), OfflineError::Storage)
    }

    fn images(&self) -> Vec<Position> {
        // One that is older than the log's beginning leads nowhere.
        let purged = self.log.ends().purged;
        let mut images: Vec<_> = self.images.iter().map(SnapshotManifest::position).collect();
        images.retain(|image| Some(*image) >= purged);
        images
    }

    fn image(&self, at: Position) -> Result<Box<dyn Read + '_>, OfflineError> {
        let path = || self.node.path().to_owned();
        let manifest = self.manifest(at).ok_or_else(|| StorageError::NoSnapshot { path: path(), position: at })?;
        Ok(Box::new(self.node.image(manifest.clone())?))
    }

    fn purged(&self) -> Option<Position> {
        self.log.ends().purged
    }

    fn last(&self) -> Option<Position> {
        self.last
    }

    fn committed(&self) -> Option<LogIndex> {
        self.committed
    }

    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Logged>, OfflineError> {
        let end = self.last.map_or(LogIndex(0), |last| last.index.next());
        let records = self.log.read(from, to.min(end), bytes_max)?;
        let logged = records.into_iter().map(|record| {
            let position = record.position;
            let entry = (self.framing)(&record).map_err(|source| OfflineError::Entry { position, source })?;
            Ok(Logged { position, entry })
        });
        logged.collect()
    }

    fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules) as Arc<dyn ModuleSource>
    }
}

fn holds(log: &StoppedLog, position: Position) -> Result<bool, StorageError> {
    let found = log.read(position.index, position.index.next(), 0)?;
    Ok(log.ends().purged == Some(position) || found.first().is_some_and(|record| record.position == position))
}

struct FolderModules {
    node: Arc<StoppedNode>,
    failed: Mutex<Option<StorageError>>,
}

impl ModuleSource for FolderModules {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        self.node.module(*hash).unwrap_or_else(|error| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        })
    }
}
