//! Snapshots: images of the machine's whole state at a position of the log, as files. What an image means, others know.
//!
//! A snapshot is a data file, which holds the image in compressed chunks ([`chunk`]), and a manifest, which says what it is and seals the
//! data file by its SHA-256 ([`manifest`]). The manifest is written last: where there is one, the snapshot is whole or damaged, and where there
//! is none, there is no snapshot. Damage is refused with its place; unlike the log's, it loses nothing, as peers have snapshots too.

mod behind;
mod chunk;
mod flusher;
mod folder;
mod growing;
mod manifest;
mod reader;
mod receiver;
mod served;
mod writer;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use replicator_types::Position;

pub(crate) use self::{
    flusher::Flusher,
    folder::{check as check_folder, entries},
};
pub use self::{
    folder::SnapshotEntry,
    manifest::{SnapshotInfo, SnapshotManifest},
    reader::SnapshotReader,
    receiver::SnapshotReceiver,
    served::{SnapshotData, SnapshotPiece},
    writer::SnapshotWriter,
};
use crate::{NodeDir, StorageError, atomic_file, node_dir};

/// The folder of the application's snapshots; that of another log's ends with it, behind a dash.
pub(crate) const FOLDER: &str = "snapshots";

/// What can be chosen about snapshots. The defaults are right for a node; tests use smaller ones.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotOptions {
    /// How much of an image is compressed and checked at once, in bytes; at most 16 MiB.
    pub chunk_bytes: usize,
    /// What must stay free on the disk beside a new snapshot, in bytes: the log grows meanwhile.
    pub spare_bytes: u64,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { chunk_bytes: 1 << 20, spare_bytes: 128 << 20 }
    }
}

/// The snapshots of a node. Clones share it.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    options: SnapshotOptions,
    /// Held while the set of snapshots changes.
    changing: Mutex<()>,
    /// The positions that somebody writes, and `None` for what is received.
    claimed: Mutex<BTreeSet<Option<Position>>>,
    /// Keeps the folder's lock, and others from opening it.
    _claim: node_dir::Claim,
}

impl SnapshotStore {
    pub(crate) fn open(dir: &NodeDir, name: &str, options: SnapshotOptions) -> Result<Self, StorageError> {
        assert!(is_folder_name(name), "{name:?} isn't the name of a folder of snapshots");
        let claim = dir.claim(name)?;
        let path = dir.path().join(name);
        atomic_file::create_dir(&path)?;
        folder::clean(&path)?;
        let (changing, claimed) = (Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { path, options, changing, claimed, _claim: claim }) })
    }

    /// The snapshots here, the oldest first. A damaged manifest is an entry with its error; data files aren't looked at.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn list(&self) -> Result<Vec<SnapshotEntry>, StorageError> {
        folder::entries(&self.shared.path)
    }

    /// The manifest of the newest snapshot, by its position; `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged: then [`Self::list`] says which older ones there are.
    pub fn latest(&self) -> Result<Option<SnapshotManifest>, StorageError> {
        self.list()?.pop().map(|entry| entry.manifest).transpose()
    }

    /// Begins to write a snapshot, whose image will have about so many bytes. One at a time is written of a position.
    ///
    /// # Errors
    /// [`StorageError::Full`] if the disk hasn't so much room, uncompressed, beside [`SnapshotOptions::spare_bytes`]; [`StorageError::Busy`] if
    /// somebody writes this one.
    pub fn begin(&self, info: SnapshotInfo, image_bytes_estimate: u64) -> Result<SnapshotWriter, StorageError> {
        let claim = self.claim(Some(info.position), "written")?;
        SnapshotWriter::begin(self.shared.clone(), info, image_bytes_estimate, claim)
    }

    /// Opens the image at `position`. It stays readable when the snapshot is removed.
    ///
    /// # Errors
    /// [`StorageError::NoSnapshot`] if there is none; [`StorageError::DamagedSnapshot`] or [`StorageError::Version`] if it can't be read.
    pub fn open_image(&self, position: Position) -> Result<SnapshotReader, StorageError> {
        self.held(position, |manifest| SnapshotReader::open(&self.shared.path, manifest))
    }

    /// Opens the image at `position` from its byte `offset` on. Chunks are checked, the file's SHA-256 isn't.
    ///
    /// # Errors
    /// As [`Self::open_image`].
    pub fn open_image_at(&self, position: Position, offset: u64) -> Result<SnapshotReader, StorageError> {
        let mut reader = self.open_image(position)?;
        reader.skip_to(offset)?;
        Ok(reader)
    }

    /// Reads all of the snapshot at `position`, and checks every byte.
    ///
    /// # Errors
    /// As [`Self::open_image`].
    pub fn verify(&self, position: Position) -> Result<(), StorageError> {
        self.open_image(position)?.read_to_end_checked()
    }

    /// Opens the data file of the snapshot at `position`, for another node. It stays readable when the snapshot is removed.
    ///
    /// # Errors
    /// As [`Self::open_image`].
    pub fn data_file(&self, position: Position) -> Result<SnapshotData, StorageError> {
        self.held(position, |manifest| SnapshotData::open(&self.shared.path, manifest))
    }

    /// Begins to receive another node's snapshot, or goes on with it if the same one was begun before, also by an earlier process: what came
    /// is read again, and counts as far as its chunks are whole. Another one takes its place. One at a time is received.
    ///
    /// # Errors
    /// [`StorageError::Version`] if the peer's data file has another version; [`StorageError::Full`] if the disk hasn't room for what is missing,
    /// beside [`SnapshotOptions::spare_bytes`]; [`StorageError::Busy`] if somebody is receiving.
    pub fn receive(&self, manifest: SnapshotManifest) -> Result<SnapshotReceiver, StorageError> {
        let claim = self.claim(None, "received")?;
        SnapshotReceiver::begin(self.shared.clone(), manifest, claim)
    }

    /// What was begun to be received and isn't finished; `None` also if its manifest is damaged.
    #[must_use]
    pub fn receiving(&self) -> Option<SnapshotManifest> {
        SnapshotManifest::read(&self.shared.path.join(receiver::MANIFEST_FILE)).ok().flatten()
    }

    /// Drops what was begun to be received; durable on return.
    ///
    /// # Errors
    /// [`StorageError::Busy`] if somebody is receiving, or if it can't be removed.
    pub fn forget_receiving(&self) -> Result<(), StorageError> {
        let _claim = self.claim(None, "received")?;
        receiver::forget(&self.shared.path)
    }

    /// Removes a snapshot, whole or damaged; durable on return. The caller knows that the log, or another one, makes up for it.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn remove(&self, position: Position) -> Result<(), StorageError> {
        let _changing = self.shared.changing();
        folder::remove(&self.shared.path, position)
    }

    /// Removes all but the newest `kept` snapshots (at least one) whose manifests are whole, and the damaged ones among those it removes; durable on
    /// return. Returns what was removed, the oldest first.
    ///
    /// # Errors
    /// If one can't be removed.
    pub fn retain(&self, kept: usize) -> Result<Vec<Position>, StorageError> {
        let _changing = self.shared.changing();
        let entries = folder::entries(&self.shared.path)?;
        let whole = entries.iter().rev().filter(|entry| entry.manifest.is_ok()).map(|entry| entry.position);
        let Some(from) = whole.take(kept.max(1)).last() else { return Ok(Vec::new()) };
        let old: Vec<_> = entries.iter().map(|entry| entry.position).filter(|position| *position < from).collect();
        for position in &old {
            folder::remove(&self.shared.path, *position)?;
        }
        Ok(old)
    }

    /// Opens what the manifest at `position` names, while nobody changes it.
    fn held<T>(
        &self,
        position: Position,
        open: impl FnOnce(SnapshotManifest) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let _changing = self.shared.changing();
        let manifest = folder::manifest(&self.shared.path, position)?;
        open(manifest.ok_or_else(|| StorageError::NoSnapshot { path: self.shared.path.clone(), position })?)
    }

    fn claim(&self, work: Option<Position>, what: &'static str) -> Result<Claim, StorageError> {
        if !self.shared.claimed().insert(work) {
            return Err(StorageError::Busy { path: self.shared.path.clone(), what });
        }
        Ok(Claim { shared: self.shared.clone(), work })
    }
}

impl Shared {
    /// Gives a data file, which is durable under another name, its own one, and writes its manifest.
    fn install(&self, from: &std::path::Path, manifest: &SnapshotManifest) -> Result<(), StorageError> {
        let _changing = self.changing();
        folder::install(&self.path, from, manifest)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeSet<Option<Position>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to write a snapshot, or to receive one.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    work: Option<Position>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.claimed().remove(&self.work);
    }
}

/// Whether a folder of this name holds snapshots.
pub(crate) fn is_folder_name(name: &str) -> bool {
    name.strip_suffix(FOLDER).is_some_and(|before| before.is_empty() || before.ends_with('-')) && !name.contains('/')
}
