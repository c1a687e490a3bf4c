//! Why a history can't be run again.

use replicator_machine::{ActivationRefusal, Halt, ImageError, ImageUnavailable};
use replicator_storage::StorageError;
use replicator_types::{LogIndex, ModuleHash, Position, codec::CodecError};

use crate::FixtureError;

/// Why a history can't be run again.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// Its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A fixture.
    #[error(transparent)]
    Fixture(#[from] FixtureError),
    /// An image that it should begin with.
    #[error("the image at {position} can't be used: {source}")]
    Image {
        /// The image's last entry.
        position: Position,
        /// Why.
        source: ImageError,
    },
    /// An entry of it.
    #[error("entry {position} can't be read: {source}")]
    Entry {
        /// Which.
        position: Position,
        /// Why.
        source: CodecError,
    },
    /// The machine can't go on.
    #[error("entry {position} can't be applied: {source}")]
    Halt {
        /// The entry.
        position: Position,
        /// Why.
        source: Halt,
    },
    /// The machine can't answer a query.
    #[error("the query can't be answered: {0}")]
    Query(Halt),
    /// No image of the machine can be taken.
    #[error(transparent)]
    NoImage(#[from] ImageUnavailable),
    /// It holds nothing that can be applied.
    #[error("there is nothing to replay: the log has no entries, and there is no image")]
    Empty,
    /// It neither goes back to the wanted index nor has an image at or below it.
    #[error(
        "index {wanted} can't be reached: the log begins after entry {purged}, and {}; give an index from {purged} on, or another node's folder",
        Images(first_image)
    )]
    Unreachable {
        /// The index that was asked for.
        wanted: LogIndex,
        /// The last entry that has left the log.
        purged: LogIndex,
        /// The first image that can be used.
        first_image: Option<LogIndex>,
    },
    /// It ends before.
    #[error("index {wanted} can't be reached: the last entry is {last}")]
    Beyond {
        /// The index that was asked for.
        wanted: LogIndex,
        /// The last one that there is.
        last: LogIndex,
    },
    /// An entry that should follow isn't there.
    #[error("entry {0} is missing in the log")]
    Missing(LogIndex),
    /// It begins with an image of another module, whose place this one can't take.
    #[error("the log begins with an image of another module, whose place this one can't take: {0}")]
    ModuleRefused(ActivationRefusal),
    /// A module that it needs isn't there.
    #[error(
        "module {0} is not in the folder; start the node, which fetches it from its peers, or take another node's folder"
    )]
    NoModule(ModuleHash),
}

struct Images<'a>(&'a Option<LogIndex>);

impl std::fmt::Display for Images<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("there is no image"),
            Some(first) => write!(f, "the first image is of entry {first}"),
        }
    }
}

impl OfflineError {
    /// Whether the files can't be trusted, rather than what was asked of them.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Storage(error) => matches!(
                error,
                StorageError::Damaged { .. }
                    | StorageError::DamagedSnapshot { .. }
                    | StorageError::DamagedSave { .. }
                    | StorageError::Version { .. }
            ),
            Self::Fixture(error) => error.is_damage(),
            Self::Image { source, .. } => !matches!(source, ImageError::Refused(_)),
            Self::Entry { .. } | Self::Missing(_) => true,
            _ => false,
        }
    }
}
