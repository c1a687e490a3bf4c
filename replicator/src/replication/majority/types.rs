//! openraft's types, bound to ours.

use std::fmt;

use bytes::Bytes;
use openraft::{
    EntryPayload,
    alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf},
    impls::leader_id_std::LeaderId,
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse,
    },
};
use replicator_storage::Record;
use replicator_types::{
    DiskId, Position,
    codec::{self, CodecError, Format},
};
use serde::{Deserialize, Serialize};

use crate::replication::Member;

openraft::declare_raft_types!(
    /// The group's types: a voter is its disk (safety rule 1), and one leader per term, as in the Raft paper.
    pub(super) TypeConfig:
        D = Command,
        R = (),
        NodeId = DiskId,
        Node = Address,
        LeaderId = LeaderId<u64, DiskId>,
);

/// An encoded log entry. Never looked into here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Command(pub(super) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A member's name and addresses, as the membership entries hold them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Address {
    /// The node's name.
    pub(super) node: String,
    /// Where clients reach it.
    pub(super) client: String,
    /// Where peers reach it.
    pub(super) peer: String,
    /// Whether it is a witness of chain mode.
    pub(super) witness: bool,
}

/// The membership as a list: voters first, then by name.
pub(super) fn members(membership: &openraft::Membership<DiskId, Address>) -> Vec<Member> {
    let voters: Vec<DiskId> = membership.voter_ids().collect();
    let mut members: Vec<Member> = membership
        .nodes()
        .map(|(&disk, address)| Member {
            node: address.node.clone(),
            disk,
            client_address: address.client.clone(),
            peer_address: address.peer.clone(),
            voter: voters.contains(&disk),
            witness: address.witness,
        })
        .collect();
    members.sort_by(|a, b| (!a.voter, &a.node, a.disk).cmp(&(!b.voter, &b.node, b.disk)));
    members
}

pub(super) type LogId = LogIdOf<TypeConfig>;
pub(super) type Vote = VoteOf<TypeConfig>;
pub(super) type Entry = EntryOf<TypeConfig>;

pub(super) fn position(id: &LogId) -> Position {
    Position::new(id.leader_id.term, id.index)
}

pub(super) fn log_id(position: Position) -> LogId {
    LogId::new_term_index(position.epoch.0, position.index.0)
}

// What a record's payload begins with.
const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// An encoded command with the kind byte of a log record in front, so that it is never copied between proposal, log and wire.
pub(super) fn command(encoded: &[u8]) -> Bytes {
    let mut payload = Vec::with_capacity(1 + encoded.len());
    payload.push(COMMAND);
    payload.extend_from_slice(encoded);
    payload.into()
}

/// Whether every entry is what it says: what a peer sends ends in the log, and is read back by its kind byte.
pub(super) fn are_sound(entries: &[Entry]) -> bool {
    entries.iter().all(|entry| match &entry.payload {
        EntryPayload::Normal(Command(payload)) => payload.first() == Some(&COMMAND),
        EntryPayload::Blank | EntryPayload::Membership(_) => true,
    })
}

/// What follows the kind byte.
pub(super) fn encoded_command(command: &Command) -> Bytes {
    command.0.slice(1..)
}

pub(super) fn to_record(entry: Entry) -> Record {
    let payload = match entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(Command(payload)) => payload,
        EntryPayload::Membership(membership) => {
            let mut payload = vec![MEMBERSHIP];
            payload.extend(codec::encode(&Membership(membership)));
            payload.into()
        }
    };
    Record { position: position(&entry.log_id), payload }
}

pub(super) fn to_entry(record: Record) -> Result<Entry, CodecError> {
    let payload = match record.payload.first() {
        None => return Err(CodecError::Empty { what: "log record" }),
        Some(&BLANK) => EntryPayload::Blank,
        Some(&COMMAND) => EntryPayload::Normal(Command(record.payload)),
        Some(&MEMBERSHIP) => EntryPayload::Membership(codec::decode::<Membership>(&record.payload[1..])?.0),
        Some(&found) => return Err(CodecError::Version { what: "log record", found, expected: MEMBERSHIP }),
    };
    Ok(Entry { log_id: log_id(record.position), payload })
}

/// The encoded command in a log record's payload; none in one of the group's own.
pub(super) fn command_of(payload: &Bytes) -> Result<Option<Bytes>, CodecError> {
    match payload.first() {
        None => Err(CodecError::Empty { what: "log record" }),
        Some(&COMMAND) => Ok(Some(payload.slice(1..))),
        Some(&(BLANK | MEMBERSHIP)) => Ok(None),
        Some(&found) => Err(CodecError::Version { what: "log record", found, expected: MEMBERSHIP }),
    }
}

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident($($inner:ty),+), $what:literal) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize)]
        pub(super) struct $name($(pub(super) $inner),+);

        impl Format for $name {
            const WHAT: &'static str = $what;
        }
    };
}

wire!(
    /// In a log record.
    Membership(openraft::Membership<DiskId, Address>),
    "membership"
);
wire!(
    /// With an image.
    WireMembership(StoredMembershipOf<TypeConfig>),
    "membership of an image"
);
wire!(
    /// From the leader: the log that you want begins later; take an image.
    WireInstall(Vote, Position),
    "install request"
);
wire!(
    /// To the leader.
    WireInstalled(SnapshotResponse<TypeConfig>),
    "install response"
);
wire!(
    /// In `meta`.
    SavedVote(Vote),
    "vote"
);
wire!(
    /// From the leader.
    WireAppend(AppendEntriesRequest<TypeConfig>),
    "append request"
);
wire!(
    /// To the leader: the last durable entry.
    WireAppended(Result<Option<LogId>, StreamAppendError<TypeConfig>>),
    "append response"
);
wire!(
    /// From a candidate.
    WireVote(VoteRequest<TypeConfig>),
    "vote request"
);
wire!(
    /// To a candidate.
    WireVoted(VoteResponse<TypeConfig>),
    "vote response"
);
wire!(
    /// From the leader to its successor.
    WireTransfer(TransferLeaderRequest<TypeConfig>),
    "transfer request"
);
