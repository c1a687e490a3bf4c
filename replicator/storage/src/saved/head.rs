//! What a saved snapshot begins with: what it is of, and the length and SHA-256 of all that follows.

use std::path::Path;

use bytes::Bytes;
use replicator_types::{ModuleHash, codec::Format};
use serde::{Deserialize, Serialize};

use crate::{SnapshotManifest, StorageError, module_store, sealed_file};

const MAGIC: [u8; 8] = *b"RPLSAVE\n";
/// The magic and the length of the body.
pub(super) const START_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 32;
/// The body has some hundred bytes, and what a strategy keeps with an image.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Where a snapshot was saved. For people only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOrigin {
    /// The node whose image it is.
    pub node: String,
    /// Its cluster's mode, as the configuration spells it.
    pub mode: String,
    /// The version of the program that saved it.
    pub program: String,
    /// When, in microseconds since 1970 by that node's clock.
    pub saved_us: i64,
}

/// A module in a saved snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedModule {
    /// The SHA-256 of its bytes.
    pub hash: ModuleHash,
    /// Their number.
    pub bytes: u64,
}

/// What is in a saved snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHead {
    /// The snapshot, as the node had it: cluster, lineage, position, digest, time.
    pub manifest: SnapshotManifest,
    /// The modules that follow, in their order.
    pub modules: Vec<SavedModule>,
    /// Where it was saved.
    pub origin: SavedOrigin,
}

impl Format for SavedHead {
    const WHAT: &'static str = "saved snapshot";
}

impl SavedHead {
    pub(super) fn new(manifest: SnapshotManifest, modules: &[Bytes], origin: SavedOrigin) -> Self {
        let module = |bytes: &Bytes| SavedModule { hash: module_store::hash_of(bytes), bytes: bytes.len() as u64 };
        Self { manifest, modules: modules.iter().map(module).collect(), origin }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        sealed_file::encode(&MAGIC, self)
    }

    /// Bytes of what follows the head; `None` if no file has so many.
    pub(super) fn following(&self) -> Option<u64> {
        self.modules.iter().try_fold(self.manifest.data_bytes, |sum, module| sum.checked_add(module.bytes))
    }

    /// The head's whole size, as its first bytes tell; an error if they are no head's.
    pub(super) fn size(path: &Path, start: &[u8; START_BYTES]) -> Result<usize, StorageError> {
        let damaged = |offset, what: &str| StorageError::damaged_save(path, offset, what);
        let (magic, length) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged(0, "it is no saved snapshot: its first bytes are not those of one"));
        }
        let body = u32::from_be_bytes(length.try_into().expect("4 of the 12 bytes")) as usize;
        if body > BODY_BYTES_MAX {
            return Err(damaged(MAGIC.len() as u64, "its head is longer than any"));
        }
        Ok(START_BYTES + body + CHECKSUM_BYTES)
    }

    /// Reads a head of its whole size. Returns its SHA-256 too, which stands for the whole file.
    pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<(Self, [u8; CHECKSUM_BYTES]), StorageError> {
        let damaged = |what: String| StorageError::damaged_save(path, 0, format!("its head: {what}"));
        let head: Self = sealed_file::decode(&MAGIC, path, bytes, damaged)?;
        head.manifest.check_version(path)?;
        let seal = bytes.last_chunk().expect("a head that was decoded has a checksum");
        Ok((head, *seal))
    }
}
