//! Physical images: everything that a replica needs to go on from one position of the log (`docs/formats.md`).
//!
//! An [`Image`] is a machine's state at one position, taken in a few milliseconds between two entries and written by
//! any thread while the machine goes on: its memory is the frozen shadow ([`crate::shadow`]), the session table and the
//! retained pushes share what doesn't change with the live ones. A machine made of an image is equal to the one that was
//! imaged in everything that decides a result: memory and its size, globals, sessions with their outcomes, pushes, time,
//! digest. No code of the module runs for that.
//!
//! Equal states have equal images, byte by byte.

use std::io;

use replicator_types::{
    Digest, Lineage, ModuleHash, Position,
    codec::{CodecError, Format},
};
use serde::{Deserialize, Serialize};

use crate::{
    entry::Genesis,
    guest::GlobalBits,
    halt::Halt,
    history::History,
    older,
    pushes::{PushCursor, PushesSnapshot},
    sessions::SessionsSnapshot,
    shadow::FrozenMemory,
};

pub(crate) mod frames;
mod pages;
pub(crate) mod reading;

use frames::{FrameWriter, Kind};

/// The version of the format that this program writes. It reads version 1 as well.
pub const IMAGE_VERSION: u8 = 2;

/// A machine's state at one position, to be written by any thread.
///
/// While it lives the machine keeps for it what changes and was not yet written: at most a copy of the whole memory.
/// Writing or dropping it ends that. One machine has one image at a time.
#[derive(Debug)]
pub struct Image {
    pub(crate) head: Head,
    pub(crate) sessions: SessionsSnapshot,
    pub(crate) pushes: PushesSnapshot,
    pub(crate) memory: FrozenMemory,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// The position after which the machine was imaged.
    pub position: Position,
    /// The running digest there.
    pub digest: Digest,
    /// Bytes of the whole image.
    pub bytes: u64,
    /// The image's last 16 bytes: the xxh3-128 of all others. Equal for equal states. It guards against accidents, not
    /// against anybody who wants to be taken for another.
    pub content_hash: u128,
    /// Bytes of the module's memory, zeros included.
    pub memory_bytes: u64,
    /// Pages of 4 KiB that are in the image: all that aren't zeros.
    pub pages: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Retained pushes.
    pub pushes: u64,
}

/// Why there is no image now.
#[derive(Debug, thiserror::Error)]
pub enum ImageUnavailable {
    /// The last image of this machine still lives.
    #[error("an image of this machine is being written already; wait for it, or drop it")]
    AnotherLives,
    /// There was no genesis entry yet, so there is nothing to image.
    #[error("the cluster has not begun: there is nothing to image")]
    NotBegun,
    /// This node can't go on.
    #[error(transparent)]
    Halt(#[from] Halt),
}

/// Why no machine can be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reader failed.
    #[error("the image can't be read, at byte {offset}: {source}")]
    Read {
        /// Bytes read before.
        offset: u64,
        /// What the reader says.
        source: io::Error,
    },
    /// The bytes end before the image does.
    #[error("the image is cut off at byte {offset}; fetch it again, or take another one")]
    Truncated {
        /// Bytes read before.
        offset: u64,
    },
    /// It doesn't begin like an image.
    #[error("this is no image: its first bytes are not those of one")]
    NotAnImage,
    /// It is of another version of replicator.
    #[error("image format version {found}, this program reads 1 to {IMAGE_VERSION}; use the program that wrote it")]
    Version {
        /// The version found.
        found: u8,
    },
    /// It says something that no image says.
    #[error("the image is damaged, in what ends at byte {offset}: {what}; fetch it again, or take another one")]
    Malformed {
        /// Bytes read so far.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Its bytes are not those that were written.
    #[error(
        "the image is damaged: its content hash is {found:032x}, it was written with {written:032x}; fetch it again"
    )]
    Damaged {
        /// What the image says.
        written: u128,
        /// What its bytes come to.
        found: u128,
    },
    /// It is a good image, as far as was read, but this program or this node can't go on from it: another engine, a module that
    /// isn't in the store, no memory.
    #[error(transparent)]
    Refused(#[from] Halt),
}

/// The first frame: all that has a fixed place, and how much of everything else follows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) position: Position,
    pub(crate) digest: Digest,
    pub(crate) genesis: Genesis,
    pub(crate) history: History,
    /// Never empty.
    pub(crate) lineages: Vec<Lineage>,
    pub(crate) time_us: i64,
    pub(crate) clock_us: u64,
    pub(crate) ticked_at_us: i64,
    pub(crate) memory_bytes: u64,
    pub(crate) globals: Vec<GlobalBits>,
    pub(crate) input: u64,
    pub(crate) sessions: u64,
    pub(crate) pushes: u64,
    pub(crate) trimmed: Option<PushCursor>,
}

impl Format for Head {
    const WHAT: &'static str = "image head";
    const VERSION: u8 = 2;

    fn decode_older(found: u8, body: &[u8]) -> Option<Result<Self, CodecError>> {
        (found == 1).then(|| older::head(body))
    }
}

impl Image {
    /// The position after which the machine was imaged: go on with the entries after it.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.head.position
    }

    /// The running digest at that position.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.head.digest
    }

    /// How the history began.
    #[must_use]
    pub const fn genesis(&self) -> &Genesis {
        &self.head.genesis
    }

    /// The module that is active after that position: whoever reads the image needs it.
    #[must_use]
    pub fn module(&self) -> ModuleHash {
        self.head.history.active()
    }

    /// The module that was active before that one, if there was another.
    #[must_use]
    pub fn previous_module(&self) -> Option<ModuleHash> {
        self.head.history.previous()
    }

    /// The engine in force after that position: only programs of this one can go on from the image.
    #[must_use]
    pub fn engine(&self) -> &str {
        self.head.history.engine()
    }

    /// Writes the image, in pieces of up to a MiB. The machine may go on meanwhile; if `out` fails or panics, that
    /// ends the image like everything else. Nothing is flushed or made durable: that is the caller's.
    ///
    /// # Errors
    /// The first error of `out`.
    pub fn write_to(self, out: &mut dyn io::Write) -> io::Result<ImageSummary> {
        // The memory goes last, however this ends: once it is gone there may be another image.
        let Self { memory, pushes, sessions, head } = self;
        let mut frames = FrameWriter::new(out)?;
        frames.record(Kind::Head, |bytes| bytes.extend_from_slice(&replicator_types::codec::encode(&head)))?;
        // First, as the machine copies what changes in it as long as this has it.
        sessions.write(&mut frames)?;
        pushes.write(&mut frames)?;
        let pages = pages::write(memory, &mut frames)?;
        let (bytes, content_hash) = frames.finish()?;
        let Head { position, digest, memory_bytes, sessions, pushes, .. } = head;
        Ok(ImageSummary { position, digest, bytes, content_hash, memory_bytes, pages, sessions, pushes })
    }
}

/// An image is written on another thread than the machine's.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Image>();
};

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
