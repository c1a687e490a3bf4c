//! What can go wrong with a node's files, each with what to do next.

use std::{fmt, io, path::PathBuf, sync::Arc};

use replicator_types::{ModuleHash, Position, codec::CodecError};

/// The way out of a damaged folder, for error messages.
const AFTER_DAMAGE: &str = "Nothing was changed. If the disk is healthy, start the node with --rejoin: it sets this folder aside (deleting \
                            nothing) and takes everything from its peers";

/// The ways out of a damaged snapshot.
const AFTER_SNAPSHOT_DAMAGE: &str = "Nothing was changed. Fetch this snapshot again from a peer, or take an older one, if the log \
                                     reaches back to it";

/// The ways out of a damaged saved snapshot.
const AFTER_SAVE_DAMAGE: &str = "Nothing was changed. Use another copy of the file, or save the snapshot again";

/// What [`StorageError::Full`] begins with, for who gets it as words.
pub const NO_ROOM: &str = "no room on the disk";

/// A file operation that failed, or files that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// Data that was promised to be durable is not as it was written, and nothing was changed. Never cut away; [`crate::DiskLog::mend`] may put it back.
    #[error("{}{}: {what}. {AFTER_DAMAGE}", path.display(), AtOffset(*offset))]
    Damaged {
        /// Which file or folder.
        path: PathBuf,
        /// The byte in the file, where that is known.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
    },
    /// Another process uses the folder.
    #[error("{} is in use by {}; two nodes can't share a folder", path.display(), Holder(*pid))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that uses it, if it left its number.
        pid: Option<u32>,
    },
    /// The folder is no node's.
    #[error("{} holds no node: it has no file {:?}; name the folder that is `data_dir` in the node's configuration", path.display(), crate::meta::META_FILE)]
    NoNode {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has content, and none of a node's.
    #[error("{} is no node's folder: it holds {what}; name an empty folder, or the one that the node had", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is in there.
        what: String,
    },
    /// An operator's recovery was interrupted.
    #[error(
        "{}: a recovery or restore of this folder was begun and has not ended; run the same command with it again: `replicator recover`, or \
         `replicator snapshot restore`",
        path.display()
    )]
    Recovering {
        /// The folder.
        path: PathBuf,
    },
    /// The folder belongs to another node or cluster.
    #[error("{}: {what}; give this node its own folder, or correct its configuration", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Whose it is, and who asked.
        what: String,
    },
    /// The file was written by another version of replicator.
    #[error("{}: {source}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Which version was found, and which can be read.
        source: CodecError,
    },
    /// The caller's positions don't fit the log. The log is unchanged.
    #[error("the log ends at {}: {what}", End(*last))]
    NotContiguous {
        /// The log's last position.
        last: Option<Position>,
        /// What was asked of it.
        what: String,
    },
    /// The caller's record is larger than a log takes. The log is unchanged.
    #[error("a record of {bytes} bytes; the log takes at most {bytes_max}")]
    TooLarge {
        /// The payload's size.
        bytes: usize,
        /// The largest one taken.
        bytes_max: usize,
    },
    /// A snapshot isn't as it was written. It is one copy of several, so nothing is lost: the caller takes another.
    #[error("{}{}: {what}. {AFTER_SNAPSHOT_DAMAGE}", path.display(), AtOffset(*offset))]
    DamagedSnapshot {
        /// Which file.
        path: PathBuf,
        /// The byte in the file, where that is known.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
    },
    /// A saved snapshot isn't as it was written.
    #[error("{}{}: {what}. {AFTER_SAVE_DAMAGE}", path.display(), AtOffset(*offset))]
    DamagedSave {
        /// Which file.
        path: PathBuf,
        /// The byte in the file, where that is known.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
    },
    /// There is such a file already, and it may not be replaced.
    #[error("{} exists already, and is left as it is; name another file, or say that it may be replaced", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A folder for a new node has something in it.
    #[error("{} isn't empty: it holds {what}. Nothing was changed; name an empty folder, or one that doesn't exist", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// What is in there.
        what: String,
    },
    /// A module that an image needs isn't in the node's store.
    #[error("{} doesn't hold the module {hash}, which its image needs; take the image of another node", path.display())]
    NoModule {
        /// The node's folder.
        path: PathBuf,
        /// Which.
        hash: ModuleHash,
    },
    /// There is no snapshot at this position.
    #[error("{} has no snapshot at {position}; list what it has", path.display())]
    NoSnapshot {
        /// The folder of snapshots.
        path: PathBuf,
        /// The position asked for.
        position: Position,
    },
    /// A piece of a snapshot doesn't follow what was received. Nothing was written.
    #[error("a piece at byte {offset} of a snapshot, and the next one wanted is at {wanted}; send from there")]
    PieceOutOfOrder {
        /// Where the piece belongs.
        offset: u64,
        /// Where the next one does.
        wanted: u64,
    },
    /// A piece of a snapshot was damaged on its way. Nothing was written.
    #[error("the piece at byte {offset} of a snapshot was damaged on its way; send it again")]
    PieceDamaged {
        /// Where the piece belongs.
        offset: u64,
    },
    /// Something else of this process is at the same work.
    #[error("{} is being {what} by somebody else in this process; wait for that to end", path.display())]
    Busy {
        /// The file or folder.
        path: PathBuf,
        /// What is done to it.
        what: &'static str,
    },
    /// The disk hasn't room. Nothing was written, or what was is gone.
    #[error("{} of {}: {needed} bytes are needed, and {free} are free; free some", NO_ROOM, path.display())]
    Full {
        /// What there is no room for.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that the file system says are free for this process. A quota may be what is full: then there are more.
        free: u64,
    },
    /// An earlier write or fsync failed, so what is on the disk is unknown: the process must end, and start again.
    #[error("storage has failed, and takes no more writes until the node is started again: {what}")]
    Failed {
        /// The first failure.
        what: Arc<str>,
    },
}

impl StorageError {
    /// Whether an fsync has failed, for another reason than a full disk. What the disk holds is unknown then, and the next fsync may say that all is
    /// well: the process must end, the first time.
    #[must_use]
    pub fn is_failed_fsync(&self) -> bool {
        matches!(self, Self::Io { action: "fsync", source, .. } if !crate::disk_room::is_full(source))
    }

    /// Whether the disk had no room for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => crate::disk_room::is_full(source),
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn damaged(path: impl Into<PathBuf>, offset: impl Into<Option<u64>>, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), offset: offset.into(), what: what.into() }
    }

    pub(crate) fn damaged_snapshot(
        path: impl Into<PathBuf>,
        offset: impl Into<Option<u64>>,
        what: impl Into<String>,
    ) -> Self {
        Self::DamagedSnapshot { path: path.into(), offset: offset.into(), what: what.into() }
    }

    pub(crate) fn damaged_save(
        path: impl Into<PathBuf>,
        offset: impl Into<Option<u64>>,
        what: impl Into<String>,
    ) -> Self {
        Self::DamagedSave { path: path.into(), offset: offset.into(), what: what.into() }
    }

    pub(crate) fn failed(what: impl Into<Arc<str>>) -> Self {
        Self::Failed { what: what.into() }
    }
}

struct AtOffset(Option<u64>);

impl fmt::Display for AtOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, ", byte {offset}"))
    }
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

struct End(Option<Position>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(position) => position.fmt(f),
            None => f.write_str("its beginning"),
        }
    }
}
