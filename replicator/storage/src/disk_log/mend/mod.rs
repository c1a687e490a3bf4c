//! Mends a damaged log in place: what is whole stays where it is, and what was lost comes from a peer.
//!
//! A log that [`DiskLog::open`] refuses has holes: bytes below its durable end that are no whole records ([`survey`]). Each is filled to its last byte with
//! the entries that were there ([`fill`]), so that all records behind it are at their places again, which their checks are seeded with. Nothing durable is
//! ever taken back: not the last entry, not a truncation, and the node keeps its disk id and its promises.
//!
//! Whole segments are put together ([`rebuild`]), written beside the damaged ones, fsynced and renamed, the last one first ([`rewrite`]). A process that is killed meanwhile leaves some
//! of them mended; the next one goes on. The damaged file is gone when the mended one is in its place.

mod fill;
mod reading;
mod rebuild;
mod rewrite;
mod survey;

use replicator_types::{LogIndex, Position};

use self::rebuild::Mender;
use super::{DiskLog, scanner::Scan, watermark};
use crate::{NodeDir, Record, Repair, StorageError};

/// Who may still have the entries that a damaged log has lost: the peers.
pub trait EntrySource {
    /// The entries of `from..to` out of a log that holds `anchor`, at least the first one; what came before them, if that is known there. With `from`
    /// equal to `to`, only that.
    ///
    /// # Errors
    /// If nobody has them, now or ever.
    fn entries(&mut self, from: LogIndex, to: LogIndex, anchor: Position) -> Result<GivenEntries, Withheld>;
}

/// Entries of a peer's log.
#[derive(Debug, Clone)]
pub struct GivenEntries {
    /// Whose, for people.
    pub from: String,
    /// The peer's entry before the first one asked for, perhaps purged; `None` if it isn't known there, or there is none.
    pub before: Option<Position>,
    /// In order, without a gap.
    pub records: Vec<Record>,
}

/// Why nobody gives the entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// Who may have them doesn't answer.
    #[error("{0}")]
    NotNow(String),
    /// All have answered, and none has them.
    #[error("{0}")]
    Never(String),
}

/// Why a log wasn't mended. Nothing was changed, or what was changed is right.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// It may be later: those who can help don't answer.
    #[error("{damage} Its entries are asked of the peers, which is tried again until it is decided: {why}")]
    NotNow {
        /// What is damaged.
        damage: String,
        /// Who was asked, and what is missing.
        why: String,
    },
    /// It can't be, or a file can't be written. A damage says why.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why it doesn't go on.
#[derive(Debug)]
enum Trouble {
    NotNow(String),
    Never(String),
    Storage(StorageError),
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<Withheld> for Trouble {
    fn from(withheld: Withheld) -> Self {
        match withheld {
            Withheld::NotNow(why) => Self::NotNow(why),
            Withheld::Never(why) => Self::Never(why),
        }
    }
}

impl DiskLog {
    /// Mends the log called `name`, if it is damaged and can be; durable on return. Then [`Self::open`] takes it. `images` names the folder of the
    /// snapshots whose position stands for all entries up to it.
    ///
    /// Returns what was mended; nothing if the log isn't damaged, or doesn't exist.
    ///
    /// # Errors
    /// [`MendError::NotNow`] if it may succeed later; [`StorageError::Damaged`], with the reason, if it can't be mended.
    pub fn mend(
        dir: &NodeDir,
        name: &str,
        images: Option<&str>,
        source: &mut dyn EntrySource,
    ) -> Result<Vec<Repair>, MendError> {
        let path = dir.path().join(name);
        let _claim = dir.claim(name)?;
        let Some(tag) = dir.meta().logs.get(name).copied().filter(|_| path.is_dir()) else { return Ok(Vec::new()) };
        let watermark = watermark::read(&path, tag)?.1.watermark;
        let damage = match Scan::read(&path, tag, watermark) {
            Ok(_) => return Ok(Vec::new()),
            Err(damage @ StorageError::Damaged { .. }) => damage,
            Err(error) => return Err(error.into()),
        };
        let mender = Mender { path: &path, tag, watermark, images: images.map(|images| dir.path().join(images)) };
        match mender.mend(source) {
            Ok(repairs) => Ok(repairs),
            Err(Trouble::Storage(error)) => Err(error.into()),
            Err(Trouble::NotNow(why)) => Err(MendError::NotNow { damage: place_of(&damage), why }),
            Err(Trouble::Never(why)) => Err(with_reason(damage, &why).into()),
        }
    }
}

/// The damage without what to do about it.
fn place_of(damage: &StorageError) -> String {
    match damage {
        StorageError::Damaged { path, offset, what } => {
            let offset = offset.map_or(String::new(), |offset| format!(", byte {offset}"));
            format!("{}{offset}: {what}.", path.display())
        }
        other => other.to_string(),
    }
}

fn with_reason(damage: StorageError, why: &str) -> StorageError {
    match damage {
        StorageError::Damaged { path, offset, what } => {
            StorageError::Damaged { path, offset, what: format!("{what}; and it can't be mended from a peer: {why}") }
        }
        other => other,
    }
}
