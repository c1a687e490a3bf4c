//! Strategies: how a log entry becomes committed on several machines.
//!
//! A strategy takes encoded entries, orders them, makes them durable where its rules demand, and hands the committed ones to an
//! [`ApplySink`], in order, each exactly once in the life of a process. It never looks inside them.

pub mod chain;
pub mod majority;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use replicator_storage::Record;
use replicator_types::{DiskId, Epoch, Incarnation, LogIndex, Position};
use tokio::sync::watch;

use crate::transport::{Join, JoinAnswer};

/// One committed entry. None: the strategy's own (a membership change, a blank), of no interest to the machine.
pub type Committed = (Position, Option<Bytes>);

/// Where committed entries go.
pub trait ApplySink: Send + Sync + 'static {
    /// Takes the next entries, in order. The future ends when they are applied; it never does on a machine that has halted, while
    /// replication goes on (safety rule 18).
    fn apply(&self, batch: Vec<Committed>) -> BoxFuture<'static, ()>;
}

/// An image: a machine's whole state as of a position, in this node's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The last entry in it.
    pub position: Position,
    /// What the strategy had to say of that position, in its own encoding.
    pub group: Vec<u8>,
}

/// This node's images. What was taken or made is durable before it is told of (safety rule 22).
pub trait Images: Send + Sync + 'static {
    /// The newest one that is whole.
    fn newest(&self) -> Option<Image>;

    /// Gets an image of `at_least` from a peer, or goes on getting it, and keeps it. The log is as it was.
    fn get(&self, at_least: Position) -> BoxFuture<'static, Result<Image, String>>;

    /// Puts the image of that position into the machine, in place of its state. Ends when the machine goes on from there.
    fn enter(&self, at: Position) -> BoxFuture<'static, Result<(), String>>;
}

/// Where a strategy keeps its vote: durable on return, before it is answered (safety rule 4).
pub trait VoteStore: Send + Sync + 'static {
    /// The last saved vote, in the strategy's own encoding.
    fn vote(&self) -> Option<Vec<u8>>;

    /// Replaces it. Durable on return.
    ///
    /// # Errors
    /// If it may not be durable. The process must end.
    fn save_vote(&self, vote: Vec<u8>) -> Result<(), replicator_storage::StorageError>;
}

/// A member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its disk: the voter.
    pub disk: DiskId,
    /// Where clients reach it.
    pub client_address: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// Whether it votes; a learner doesn't.
    pub voter: bool,
    /// Whether it is a witness: a voter of chain mode's configuration group, without application data.
    pub witness: bool,
}

/// What a replica does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Catches up, without a vote.
    Learner,
    /// Follows the primary.
    Follower,
    /// Stands for election.
    Candidate,
    /// Orders the entries.
    Primary,
    /// Votes on the configuration, and has no log.
    Witness,
}

/// What changes seldom in a group, as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This replica's role.
    pub role: Role,
    /// The current epoch.
    pub epoch: Epoch,
    /// The primary's disk, if one is known.
    pub primary: Option<DiskId>,
    /// All members, voters first, then by name.
    pub members: Arc<[Member]>,
}

impl View {
    /// The primary, if it is known.
    #[must_use]
    pub fn primary(&self) -> Option<&Member> {
        self.members.iter().find(|member| Some(member.disk) == self.primary)
    }
}

/// How far a group's log is, as one replica sees it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The last index known to be committed.
    pub committed: Option<LogIndex>,
    /// On the primary: how long ago a quorum last answered.
    pub quorum_silent_for: Option<Duration>,
    /// On the primary: the last index known to be durable on each member.
    pub matched: Vec<(DiskId, LogIndex)>,
}

/// The chain as one replica sees it.
#[derive(Debug, Clone, Default)]
pub struct ChainView {
    /// The configuration's epoch.
    pub epoch: Epoch,
    /// From primary to tail.
    pub members: Vec<(DiskId, Incarnation)>,
    /// What this disk has sealed.
    pub sealed: Epoch,
    /// The link to the successor.
    pub link: Option<ChainLink>,
    /// Where changes are coordinated: what goes on, or why nothing can.
    pub detail: String,
    /// Which disk coordinates changes.
    pub coordinator: Option<DiskId>,
}

/// How far a successor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLink {
    /// The successor.
    pub to: DiskId,
    /// The last index sent to it.
    pub sent: LogIndex,
    /// The last that it has received.
    pub received: LogIndex,
    /// The last that it and all behind it hold durably.
    pub durable: LogIndex,
    /// For how long an answer has been due.
    pub silent_for: Duration,
}

/// Why entries were not proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica isn't the primary, or can't be sure that it still is. None was proposed.
    #[error("not the primary")]
    NotPrimary,
    /// The group has stopped.
    #[error("the replication group has stopped: {0}")]
    Stopped(String),
}

/// Why a message from a peer was not handled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerMessageError {
    /// It can't be read.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The group has stopped.
    #[error("stopped: {0}")]
    Stopped(String),
}

/// A replica's part in its group.
pub trait Strategy: Send + Sync + 'static {
    /// The group as this replica sees it.
    fn view(&self) -> watch::Receiver<View>;

    /// How far the log is.
    fn progress(&self) -> Progress;

    /// Ends with the reason when the group can't go on, for example after a failed fsync. The process must end.
    fn stopped(&self) -> BoxFuture<'static, String>;

    /// Proposes entries, in order. On `Ok` they were given to the group; the second future tells what became of them.
    fn propose(&self, entries: Vec<Bytes>) -> BoxFuture<'_, Result<BoxFuture<'static, Fate>, ProposeError>>;

    /// The index that a linearizable read must see, confirmed by the group after the call. None: not the primary.
    fn read_index(&self) -> BoxFuture<'_, Option<LogIndex>>;

    /// Founds the group with these voters. Only on a blank replica.
    fn found(&self, members: Vec<Member>) -> BoxFuture<'_, Result<(), String>>;

    /// Hands the primary's part to another voter, if this replica has it.
    fn transfer(&self, to: DiskId) -> BoxFuture<'_, Result<(), String>>;

    /// Takes a replica out of the group, for good.
    fn remove(&self, disk: DiskId) -> BoxFuture<'_, Result<(), String>>;

    /// A new disk asks to be let in.
    fn join(&self, join: Join) -> BoxFuture<'_, JoinAnswer>;

    /// The replication stream from the primary.
    fn on_append(&self, payloads: BoxStream<'static, Bytes>) -> BoxStream<'static, Result<Bytes, PeerMessageError>>;

    /// A candidate's question.
    fn on_vote(&self, pre_vote: bool, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>>;

    /// The primary's order to stand for election.
    fn on_transfer(&self, payload: Bytes) -> BoxFuture<'_, Result<(), PeerMessageError>>;

    /// Messages from a peer's disk, until the stream ends. Strategies that have none refuse.
    fn on_messages(
        &self,
        from: DiskId,
        payloads: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<(), PeerMessageError>>;

    /// What an image of that applied position must keep for whoever goes on from it.
    fn image_group(&self, at: Position) -> Vec<u8>;

    /// There is a new image. The log may be purged through that index.
    fn imaged(&self, purge: LogIndex) -> BoxFuture<'_, ()>;

    /// The primary's order to go on from an image, as its log begins later.
    fn on_install(&self, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>>;

    /// What the machine gets for a committed record of the log.
    ///
    /// # Errors
    /// If it can't be read.
    fn committed(&self, record: Record) -> Result<Committed, String>;

    /// Whether this replica shall not become the primary by itself, where another one can.
    fn stand_back(&self, back: bool);

    /// The chain, in chain mode.
    fn chain(&self) -> Option<ChainView>;
}

/// What became of proposed entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All were applied here.
    Applied,
    /// None was taken: they will not be committed by this proposal.
    Refused,
    /// None was taken: the primary's disk is full.
    NoRoom,
    /// Some may have been lost, or may yet be committed by another primary.
    Unknown,
}
