//! What goes into a coordinator, and what comes out.

use replicator_types::{DiskId, Position};
use serde::{Deserialize, Serialize};

use crate::{Command, Message, Record};

/// What an operator asks of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// This member as primary.
    Primary(DiskId),
    /// A chain without this disk. It stays out until it has left the group's voters.
    Remove(DiskId),
}

/// What a coordinator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorEvent {
    /// This node became, or stopped being, the leader of the configuration group.
    Leading(bool),
    /// The group's record, whenever it has changed. One that is older than what was told before is ignored.
    Recorded(Record),
    /// A heartbeat's time has passed.
    Tick,
    /// `Beat`, `Sealed` or `Equal`; others are ignored.
    Received {
        /// The sender.
        from: DiskId,
        /// What it says.
        message: Message,
    },
    /// An operator's wish. Who leads answers it once, by `WishDone` or `WishRefused`; it is ignored while this or another one is under way, and
    /// forgotten with the leadership. So it is to be repeated until it is answered, or the record shows it.
    Wished(Wish),
    /// The disks that are replicas in the group: no other is let into the chain.
    Voters(Vec<DiskId>),
}

/// What a coordinator orders. None needs an answer: what is lost is ordered again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorEffect {
    /// To the configuration group's log.
    Propose(Command),
    /// To a replica, which may be the one on this node.
    Send {
        /// Its disk.
        to: DiskId,
        /// What to tell it.
        message: Message,
    },
    /// The record shows it.
    WishDone(Wish),
    /// It is not done, and why.
    WishRefused(Wish, String),
    /// This disk is named by the configuration, and its log ends neither at the start, which it had confirmed, nor above it in the epoch: an
    /// old copy was put back, or it was wiped. It counts for nothing; it needs a new disk id (safety rules 1 and 2).
    Regressed {
        /// The disk.
        disk: DiskId,
        /// Where its log ends.
        last: Option<Position>,
        /// What it had confirmed.
        start: Option<Position>,
    },
}
