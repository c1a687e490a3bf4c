//! What replicas and coordinators tell each other. Fire and forget: whoever waits for an answer asks again at its next tick.

use bytes::Bytes;
use replicator_types::{DiskId, Epoch, LogIndex, Position};
use serde::{Deserialize, Serialize};

use crate::{Configuration, Life, Promise};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogEntry {
    /// The epoch in which it was appended first, and its index.
    pub position: Position,
    /// Never looked into.
    pub payload: Bytes,
}

/// How a link to the successor does, for people and for the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The successor.
    pub to: DiskId,
    /// The last index sent to it.
    pub sent: LogIndex,
    /// The last index that it has received.
    pub received: LogIndex,
    /// The last index that it and all behind it hold durably.
    pub durable: LogIndex,
    /// Ticks since it last answered while an answer was due.
    pub silent_ticks: u32,
}

/// A message from one disk to another. Each carries the sender's epoch; see docs/chain.md for what a receiver in another one does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Predecessor to successor: entries, the commit index, a barrier. Without entries: a heartbeat.
    Append {
        /// The sender's epoch.
        epoch: Epoch,
        /// What the entries follow; None: the log's beginning.
        previous: Option<Position>,
        /// Contiguous; may be none.
        entries: Vec<LogEntry>,
        /// The last committed position; None: nothing is.
        commit: Option<Position>,
        /// The last barrier asked for in this epoch.
        barrier: u64,
    },
    /// Successor to predecessor. Everything in it only grows within an epoch.
    Acknowledged {
        /// The sender's epoch.
        epoch: Epoch,
        /// The end of its log.
        received: Option<Position>,
        /// Up to here it and all behind it hold the log durably.
        durable: Option<Position>,
        /// The last barrier that it and all behind it have passed.
        barrier: u64,
        /// Something before the last append is missing: go on after `received`.
        gap: bool,
    },
    /// Coordinator to member or learner: promise this.
    Seal {
        /// The configuration to leave.
        configuration: Configuration,
        /// The granted attempt.
        attempt: u64,
    },
    /// The answer, durable.
    Sealed {
        /// What was promised.
        promise: Promise,
        /// Who promised.
        life: Life,
        /// The end of its log, durable.
        last: Option<Position>,
    },
    /// Coordinator to participant: make your log end at `target`.
    Equalise {
        /// The attempt.
        promise: Promise,
        /// Where every log shall end.
        target: Option<Position>,
        /// A participant that has it.
        source: DiskId,
    },
    /// The answer: it ends there, durably.
    Equal {
        /// The attempt.
        promise: Promise,
        /// Whose log.
        life: Life,
        /// The target.
        last: Option<Position>,
    },
    /// Asks for what follows `last`.
    Fetch {
        /// The sender's epoch.
        epoch: Epoch,
        /// In an attempt: its number, and all that the source has is wanted. None: what is committed.
        attempt: Option<u64>,
        /// The asker's guess of the last common position; None: from the beginning.
        last: Option<Position>,
        /// Tells answers apart.
        number: u64,
    },
    /// The answer: entries after `previous`, which is what was asked for; or no entries and an earlier `previous` to try.
    Fetched {
        /// The sender's epoch.
        epoch: Epoch,
        /// Of the question.
        number: u64,
        /// A position of the sender's log; None: its beginning.
        previous: Option<Position>,
        /// What follows it, as much as fits a message.
        entries: Vec<LogEntry>,
        /// The last position that the sender knows to be committed.
        commit: Option<Position>,
    },
    /// The other answer: the sender's log begins after `through`, which lies beyond what was asked for.
    Purged {
        /// The sender's epoch.
        epoch: Epoch,
        /// Of the question.
        number: u64,
        /// The last entry that it has purged.
        through: Position,
    },
    /// Replica to coordinator, at each tick.
    Beat {
        /// The sender.
        life: Life,
        /// The newest epoch that it knows.
        epoch: Epoch,
        /// What it has promised.
        promise: Promise,
        /// The end of its log.
        last: Option<Position>,
        /// The last committed position that it knows.
        commit: Option<Position>,
        /// The link to its successor, if it has one.
        link: Option<Link>,
    },
    /// Anyone to anyone: the group has committed this.
    Configured {
        /// The newest configuration that the sender knows.
        configuration: Configuration,
    },
}
