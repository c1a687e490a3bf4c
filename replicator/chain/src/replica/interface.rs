//! What goes into a replica, what comes out, and what it needs of the log.

use bytes::Bytes;
use replicator_types::{DiskId, Epoch, LogIndex, Position};

use crate::{Configuration, Life, Link, LogEntry, Message, Promise};

/// The log, as the effects of the steps before left it. Indexes begin at 0, and epochs never decrease.
pub trait LogView {
    /// The last entry that was purged, behind an image; None: the log has its beginning.
    fn purged(&self) -> Option<Position>;

    /// The last entry; None: the log is empty.
    fn last(&self) -> Option<Position>;

    /// The position of the entry with that index, the last purged one's too; None: not in the log.
    fn position(&self, index: LogIndex) -> Option<Position>;

    /// The entries of `from..to` that exist, contiguous from `from`: at least one if there is one, and no more once `bytes_max` of payload
    /// are read. Empty on failure: the driver stops the node.
    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<LogEntry>;
}

/// When the primary writes its own log. In either order an entry is committed when every member holds it durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PersistOrder {
    /// Once all backups hold the entry durably.
    #[default]
    BackupsFirst,
    /// At once.
    Parallel,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A heartbeat's time has passed.
    Tick,
    /// The group's record as it now is; whatever is not newer than what is known is ignored.
    Configured {
        /// The current configuration.
        configuration: Configuration,
        /// See [`crate::Record::least_chain`].
        least_chain: u32,
    },
    /// A message has come.
    Received {
        /// Whose it is.
        from: DiskId,
        /// The message.
        message: Message,
    },
    /// A connection to that disk has been made anew: what was under way may be lost.
    Connected(DiskId),
    /// A client's entries, in this order and at least one. Answered by `Accepted` or `Refused`, in the same step.
    Proposed {
        /// Their payloads.
        entries: Vec<Bytes>,
        /// Names the answer.
        number: u64,
    },
    /// A linearizable read wants an index. Answered by `ReadConfirmed` or `ReadRefused`, sooner or later; or never, if the node stops.
    ReadAsked {
        /// Names the answer.
        number: u64,
    },
    /// The log is durable up to here. Positions rise; after `TruncateLog` the next one is its position, and says that the truncation is durable.
    LogDurable(Option<Position>),
    /// `StorePromise` has been carried out, durably.
    PromiseStored(Promise),
    /// Who leads the configuration group, as far as is known: beats go there.
    Coordinator(Option<DiskId>),
    /// The answer to `GetImage`: the position of an image that this disk now has, durably; None: that source has none to give.
    ImageHere(Option<Position>),
}

/// What shall be done, before the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Append, flush, and say so by `LogDurable`. Contiguous with the log's end; may be coalesced.
    AppendLog(Vec<LogEntry>),
    /// Drop everything after this, flush, and say so by `LogDurable` of this. Nothing is being appended meanwhile.
    TruncateLog(Option<Position>),
    /// Keep this in `meta`, and say so by `PromiseStored` (safety rules 4 and 6).
    StorePromise(Promise),
    /// Get an image of at least this position from that disk's node, and say so by `ImageHere`. One is asked for at a time.
    GetImage {
        /// Whose log begins after the position.
        from: DiskId,
        /// What it has purged.
        at_least: Position,
    },
    /// Let the machine go on from the image of this position, which is here, and let the log begin after it: a log that doesn't hold the position is
    /// dropped as a whole. Flush, and say so by `LogDurable` of the log's end. Nothing is being appended meanwhile.
    EnterImage(Position),
    /// Send; may be lost. To this replica's own disk too: the coordinator may be here.
    Send {
        /// To whom.
        to: DiskId,
        /// What.
        message: Message,
    },
    /// Everything up to here is committed, durable, and for the machine. Only rises.
    Committed(Position),
    /// The proposal has positions, up to `last`. Whether it stays is told by `Committed`, and by the start that `Entered` or `Left` names.
    Accepted {
        /// Of the proposal.
        number: u64,
        /// Of its last entry.
        last: Position,
    },
    /// The proposal was not taken, and has no effect.
    Refused {
        /// Of the proposal.
        number: u64,
        /// Why.
        reason: Refusal,
    },
    /// Whoever has applied up to here may answer the read (safety rule 11).
    ReadConfirmed {
        /// Of the read.
        number: u64,
        /// The commit index when its barrier began.
        index: LogIndex,
    },
    /// No index can be told: not an active primary, nothing is committed yet, or too many reads wait.
    ReadRefused {
        /// Of the read.
        number: u64,
    },
    /// A new configuration names this life. What was accepted above its start in an earlier epoch is lost.
    Entered(Configuration),
    /// A new configuration doesn't name this life. What was accepted above its start in an earlier epoch is lost.
    Left(Configuration),
    /// The disk has lost what it confirmed, or is an old copy: stop the node, and say this. Nothing more comes out of the replica.
    Damaged(String),
}

/// Why a proposal was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not an active primary.
    NotPrimary,
    /// The chain is shorter than the record's least length, or that length isn't known yet.
    ChainTooShort,
    /// As much waits for commitment as may: propose again when some of it is committed.
    Full,
}

/// What a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// In no chain, and knows of none.
    Idle,
    /// The first of the chain; perhaps the only one.
    Primary,
    /// Between two others.
    Middle,
    /// The last of two or more.
    Tail,
    /// Has promised its epoch: it waits for the next one.
    Sealed,
    /// Not named, in this life.
    Learner,
}

/// How a replica stands: what a status shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is.
    pub role: Role,
    /// The newest epoch that it knows; 0: none.
    pub epoch: Epoch,
    /// That epoch's chain, from primary to tail.
    pub chain: Vec<Life>,
    /// What it has promised, durably.
    pub promise: Promise,
    /// The end of its log.
    pub last: Option<Position>,
    /// Up to here its log is durable.
    pub durable: Option<Position>,
    /// Up to here it knows the log to be committed.
    pub commit: Option<Position>,
    /// How many entries a backups-first primary holds that its own log doesn't have yet.
    pub held: usize,
    /// The link to the successor.
    pub link: Option<Link>,
    /// Who it fetches from, and how far that goes as far as is known: the lag of a learner.
    pub fetching: Option<(DiskId, Option<Position>)>,
}
