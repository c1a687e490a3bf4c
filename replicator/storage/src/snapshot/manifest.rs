//! What a snapshot is of, and which file holds it.

use std::path::{Path, PathBuf};

use replicator_types::{
    ClusterId, Lineage, ModuleHash, Position,
    codec::{CodecError, Format},
};
use serde::{Deserialize, Serialize};

use super::chunk;
use crate::{StorageError, atomic_file, sealed_file};

const MAGIC: [u8; 8] = *b"RPLSNAP\n";
const MANIFEST_ENDING: &str = ".manifest";
const IMAGE_ENDING: &str = ".image";

/// What a snapshot is of: all that its taker knows before the image is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The last log entry that is in the image.
    pub position: Position,
    /// The history that the entry belongs to (safety rule 3).
    pub lineage: Lineage,
    /// The cluster.
    pub cluster: ClusterId,
    /// The module that was active there.
    pub module: ModuleHash,
    /// The engine fingerprint, as the log has it.
    pub engine: String,
    /// The machine's digest of its state there.
    pub digest: u128,
    /// What the replication strategy wants to find again, in its own encoding.
    pub extra: Vec<u8>,
    /// When the image was taken, in microseconds since 1970 by this node's clock. For people only.
    pub created_us: i64,
}

/// A whole snapshot: what it is of, and the file that holds it. What one node sends another before the file's bytes; encode it with the
/// common codec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// What it is of.
    pub info: SnapshotInfo,
    /// The format of the data file.
    pub data_version: u8,
    /// The image's size in bytes, uncompressed.
    pub image_bytes: u64,
    /// The data file's size in bytes.
    pub data_bytes: u64,
    /// The data file's SHA-256.
    pub data_sha256: [u8; 32],
}

impl Format for SnapshotManifest {
    const WHAT: &'static str = "snapshot manifest";
}

impl SnapshotManifest {
    /// Where the image ends in the log.
    #[must_use]
    pub fn position(&self) -> Position {
        self.info.position
    }

    pub(super) fn to_file(&self) -> Vec<u8> {
        sealed_file::encode(&MAGIC, self)
    }

    /// Reads the manifest at `path`; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StorageError> {
        let Some(bytes) = atomic_file::read(path)? else { return Ok(None) };
        let damaged = |what| StorageError::damaged_snapshot(path, None, what);
        let manifest: Self = sealed_file::decode(&MAGIC, path, &bytes, damaged)?;
        manifest.check_version(path)?;
        Ok(Some(manifest))
    }

    /// Refuses a data file of another version by its number.
    pub(crate) fn check_version(&self, path: &Path) -> Result<(), StorageError> {
        if self.data_version == chunk::VERSION {
            return Ok(());
        }
        let source = CodecError::Version { what: chunk::WHAT, found: self.data_version, expected: chunk::VERSION };
        Err(StorageError::Version { path: path.to_owned(), source })
    }

    /// The data file's name: of the position and of its own content, so that another image of the same position is another file.
    pub(super) fn image_name(&self) -> String {
        let content: String = self.data_sha256[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}.{content}{IMAGE_ENDING}", stem(self.position()))
    }
}

/// The path of the manifest of the snapshot at `position`.
pub(super) fn path(dir: &Path, position: Position) -> PathBuf {
    dir.join(format!("{}{MANIFEST_ENDING}", stem(position)))
}

/// The name of a data file that is being written.
pub(super) fn unfinished_name(position: Position) -> String {
    format!("{}{IMAGE_ENDING}.{}", stem(position), atomic_file::TEMPORARY)
}

/// In an order of names that is the order of positions.
fn stem(position: Position) -> String {
    format!("{:020}-{:020}", position.epoch.0, position.index.0)
}

/// What a name in a folder of snapshots says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// The manifest of the snapshot there.
    Manifest(Position),
    /// A data file of one.
    Image(Position),
    /// A file that was being written when the process ended.
    Unfinished,
    /// Of what is being received.
    Receiving,
    /// Not ours.
    Foreign,
}

impl Name {
    pub(super) fn of(name: &str) -> Self {
        if name == super::receiver::MANIFEST_FILE || name == super::receiver::IMAGE_FILE {
            return Self::Receiving;
        }
        if let Some(whole) = name.strip_suffix(atomic_file::TEMPORARY).and_then(|name| name.strip_suffix('.')) {
            return match Self::of(whole) {
                Self::Foreign if position_in(whole, IMAGE_ENDING).is_none() => Self::Foreign,
                _ => Self::Unfinished,
            };
        }
        if let Some(position) = position_in(name, MANIFEST_ENDING) {
            return Self::Manifest(position);
        }
        let image = name.strip_suffix(IMAGE_ENDING).and_then(|name| name.rsplit_once('.'));
        let is_content = |text: &str| text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match image.filter(|(_, content)| is_content(content)).and_then(|(stem, _)| position_in(stem, "")) {
            Some(position) => Self::Image(position),
            None => Self::Foreign,
        }
    }
}

/// The position in a name with this ending; none if the name isn't spelt as we do.
fn position_in(name: &str, ending: &str) -> Option<Position> {
    let found = name.strip_suffix(ending)?;
    let (epoch, index) = found.split_once('-')?;
    let position = Position::new(epoch.parse().ok()?, index.parse().ok()?);
    (stem(position) == found).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ours_only_to_the_letter() {
        let position = Position::new(3, 40);
        let stem = "00000000000000000003-00000000000000000040";
        assert_eq!(Name::of(&format!("{stem}.manifest")), Name::Manifest(position));
        assert_eq!(Name::of(&format!("{stem}.0123456789abcdef.image")), Name::Image(position));
        for unfinished in ["manifest.new", "image.new", "0123456789abcdef.image.new"] {
            assert_eq!(Name::of(&format!("{stem}.{unfinished}")), Name::Unfinished, "{unfinished}");
        }
        assert_eq!(Name::of("receiving.manifest.new"), Name::Unfinished);
        assert_eq!(Name::of("receiving.image"), Name::Receiving);
        for foreign in ["readme", "x.new", "3-40.manifest", "manifest", "", ".new", &format!("{stem}.image")] {
            assert_eq!(Name::of(foreign), Name::Foreign, "{foreign}");
        }
        assert_eq!(Name::of(&format!("{stem}.0123456789ABCDEF.image")), Name::Foreign);
        assert_eq!(Name::of(&unfinished_name(position)), Name::Unfinished);
    }
}
