//! The bytes of a saved snapshot, as a node's files give them.

use std::path::Path;

use bytes::Bytes;
use replicator_types::{LogIndex, ModuleHash};

use super::{SavedHead, SavedOrigin};
use crate::{
    NodeDir, SnapshotData, SnapshotManifest, SnapshotPiece, SnapshotReader, StorageError, lock::DirLock, module_store,
    snapshot,
};

/// Gives a saved snapshot's bytes, from any of them on. It can be read to its end while it is held, whatever becomes of the node's own.
#[derive(Debug)]
pub struct SavedSource {
    head: Bytes,
    modules: Vec<Bytes>,
    data: SnapshotData,
    /// Keeps a node from starting in the folder that this is read from.
    _lock: Option<DirLock>,
}

impl SavedSource {
    /// Of an open data file, and the modules that its image needs.
    #[must_use]
    pub fn new(data: SnapshotData, modules: Vec<Bytes>, origin: SavedOrigin) -> Self {
        let head = SavedHead::new(data.manifest().clone(), &modules, origin).to_bytes().into();
        Self { head, modules, data, _lock: None }
    }

    /// What is saved.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        self.data.manifest()
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.before_data() + self.data.manifest().data_bytes
    }

    fn before_data(&self) -> u64 {
        self.parts().map(|part| part.len() as u64).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.head).chain(&self.modules)
    }

    /// Reads up to `bytes_max` bytes (at least 1) of the file from `offset` on, perhaps fewer, and none only at its end. Those of the image are given
    /// as the disk has them: [`super::SavedWriter`] checks them all.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn read_at(&self, offset: u64, bytes_max: usize) -> Result<SnapshotPiece, StorageError> {
        let mut begins = 0;
        for part in self.parts() {
            let ends = begins + part.len() as u64;
            if (begins..ends).contains(&offset) {
                let from = usize::try_from(offset - begins).expect("it is within a part that is in memory");
                let to = part.len().min(from.saturating_add(bytes_max));
                return Ok(SnapshotPiece::new(offset, part.slice(from..to)));
            }
            begins = ends;
        }
        let read = self.data.read_at(offset - begins, bytes_max)?;
        Ok(SnapshotPiece::new(offset, read.bytes))
    }
}

impl NodeDir {
    /// The image of `index` in a stopped node's folder, or the newest one, with its module. Every byte of both is checked; nothing is changed, and
    /// no node can start there while it is held. None: there is no such image.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if a node runs there; [`StorageError::DamagedSnapshot`] or [`StorageError::Damaged`] if image or module is
    /// damaged; [`StorageError::NoModule`] if the module isn't there.
    pub fn saved(
        path: impl AsRef<Path>,
        index: Option<LogIndex>,
        program: &str,
        saved_us: i64,
    ) -> Result<Option<SavedSource>, StorageError> {
        let path = path.as_ref();
        let lock = DirLock::observe(path)?;
        let found = crate::meta::read(path)?.ok_or_else(|| StorageError::NoNode { path: path.to_owned() })?;
        let meta = found.meta;
        if meta.recovery.is_some() {
            return Err(StorageError::Recovering { path: path.to_owned() });
        }
        let folder = path.join(snapshot::FOLDER);
        let mut entries = snapshot::entries(&folder)?.into_iter().rev();
        let Some(entry) = entries.find(|entry| index.is_none_or(|index| entry.position.index == index)) else {
            return Ok(None);
        };
        let manifest = entry.manifest?;
        SnapshotReader::open(&folder, manifest.clone())?.read_to_end_checked()?;
        let module = module_in(path, manifest.info.module)?;
        let data = SnapshotData::open(&folder, manifest)?;
        let mode = meta.mode.unwrap_or_default();
        let origin = SavedOrigin { node: meta.node, mode, program: program.to_owned(), saved_us };
        Ok(Some(SavedSource { _lock: lock, ..SavedSource::new(data, vec![module], origin) }))
    }
}

fn module_in(path: &Path, hash: ModuleHash) -> Result<Bytes, StorageError> {
    let missing = || StorageError::NoModule { path: path.to_owned(), hash };
    module_store::get_in(path, hash)?.ok_or_else(missing)
}

/// A source is read by one thread after another.
const _: fn() = || {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<SavedSource>();
};
