//! A group's log without a group: what an operator's recovery reads from it and appends to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{EntryPayload, StoredMembership};
use replicator_storage::{ReadLog, Record, StorageError};
use replicator_types::{
    DiskId, Epoch, LogIndex, Position,
    codec::{self, CodecError},
};

use super::types::{self, Address, Entry, SavedVote, Vote, WireMembership, members};
use crate::replication::Member;

const READ_BYTES_MAX: usize = 4 << 20;

/// What a group's log tells.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The members, by the last entry that tells them, committed or not. Empty: none does.
    pub members: Vec<Member>,
    /// Every disk that any entry tells, as last told.
    pub ever: BTreeMap<DiskId, Member>,
}

/// A log that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An entry of it.
    #[error("entry {position} can't be read: {source}")]
    Entry {
        /// Which.
        position: Position,
        /// Why.
        source: CodecError,
    },
}

/// The members that an image names.
///
/// # Errors
/// If they can't be read.
pub fn members_of_image(group: &[u8]) -> Result<Vec<Member>, CodecError> {
    let WireMembership(membership) = codec::decode(group)?;
    Ok(members(membership.membership()))
}

/// The members as an image of `at` names them, in a group whose only voter is `own`; `places` are as in [`takeover`].
///
/// # Panics
/// As [`takeover`].
#[must_use]
pub fn image_members(own: &Member, places: &[Member], at: Position) -> Vec<u8> {
    let stored = StoredMembership::new(Some(types::log_id(at)), sole_voter(own, places));
    codec::encode(&WireMembership(stored))
}

/// Calls `each` with every record of `log`, in order.
///
/// # Errors
/// If the log can't be read, or what `each` says.
pub fn for_each<L: ReadLog + ?Sized, E: From<StorageError>>(
    log: &L,
    mut each: impl FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    let mut next = log.ends().purged.map_or(LogIndex(0), |purged| purged.index.next());
    let end = log.ends().last.map_or(LogIndex(0), |last| last.index.next());
    while next < end {
        for record in log.read(next, end, READ_BYTES_MAX)? {
            next = record.position.index.next();
            each(record)?;
        }
    }
    Ok(())
}

/// Reads all of a group's log, which an image with the members `imaged` may precede; `command` is called with each command in it.
///
/// # Errors
/// If an entry can't be read, by its codec or by `command`.
pub fn read<L: ReadLog + ?Sized>(
    log: &L,
    imaged: Vec<Member>,
    mut command: impl FnMut(Position, &[u8]) -> Result<(), CodecError>,
) -> Result<Ledger, LedgerError> {
    let ever = imaged.iter().map(|member| (member.disk, member.clone())).collect();
    let mut ledger = Ledger { members: imaged, ever };
    for_each(log, |record| {
        let position = record.position;
        let unreadable = |source| LedgerError::Entry { position, source };
        match types::to_entry(record).map_err(unreadable)?.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(entry) => command(position, &types::encoded_command(&entry)).map_err(unreadable)?,
            EntryPayload::Membership(membership) => {
                ledger.members = members(&membership);
                ledger.ever.extend(ledger.members.iter().map(|member| (member.disk, member.clone())));
            }
        }
        Ok(())
    })
    .map(|()| ledger)
}

/// The command in a record of a group's log; none in an entry of the group's own.
///
/// # Errors
/// If the record is none of a group's.
pub fn command_of(record: &Record) -> Result<Option<Bytes>, CodecError> {
    types::command_of(&record.payload)
}

/// The entries with which `own` takes a group over after `last`: a membership with it as the only voter, and `command`. The other
/// members' places are kept without a vote, so that their names may join again on new disks.
///
/// # Panics
/// If the epoch of `last` is not below `term`, or `places` name the own disk: a bug of the caller.
#[must_use]
pub fn takeover(own: &Member, places: &[Member], last: Option<Position>, term: Epoch, command: &[u8]) -> Vec<Record> {
    assert!(last.is_none_or(|last| last.epoch < term), "term {term} doesn't follow {last:?}");
    let membership = sole_voter(own, places);
    let mut next = last.map_or(LogIndex(0), |last| last.index.next());
    let mut record = |payload| {
        let position = Position { epoch: term, index: next };
        next = next.next();
        types::to_record(Entry { log_id: types::log_id(position), payload })
    };
    let command: Bytes = types::command(command);
    vec![record(EntryPayload::Membership(membership)), record(EntryPayload::Normal(types::Command(command)))]
}

fn sole_voter(own: &Member, places: &[Member]) -> openraft::Membership<DiskId, Address> {
    let nodes: BTreeMap<DiskId, Address> =
        places.iter().chain([own]).map(|member| (member.disk, address(member))).collect();
    assert_eq!(nodes.len(), places.len() + 1, "each disk has one place");
    let membership = openraft::Membership::new(vec![BTreeSet::from([own.disk])], nodes);
    membership.expect("the only voter is among the nodes")
}

fn address(member: &Member) -> Address {
    Address {
        node: member.node.clone(),
        client: member.client_address.clone(),
        peer: member.peer_address.clone(),
        witness: member.witness,
    }
}

/// The term of a saved vote.
///
/// # Errors
/// If it can't be read.
pub fn term_of(vote: &[u8]) -> Result<Epoch, CodecError> {
    let SavedVote(vote) = codec::decode(vote)?;
    Ok(Epoch(vote.leader_id.term))
}

/// The vote of a disk that has stood for election in `term`, encoded as [`crate::replication::VoteStore`] keeps it.
#[must_use]
pub fn vote(term: Epoch, disk: DiskId) -> Vec<u8> {
    codec::encode(&SavedVote(Vote::new(term.0, disk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: &str, disk: u64) -> Member {
        Member {
            node: node.into(),
            disk: DiskId(disk),
            client_address: "127.0.0.1:1".into(),
            peer_address: "127.0.0.1:2".into(),
            voter: false,
            witness: false,
        }
    }

    #[test]
    fn takeover_is_read_back_as_one_voter_with_the_places_of_the_others() {
        let records = takeover(&member("n1", 9), &[member("n2", 2)], Some(Position::new(7, 41)), Epoch(8), b"go");
        let positions: Vec<Position> = records.iter().map(|record| record.position).collect();
        assert_eq!(positions, [Position::new(8, 42), Position::new(8, 43)]);
        let entries: Vec<_> = records.into_iter().map(|record| types::to_entry(record).unwrap().payload).collect();
        let EntryPayload::Membership(membership) = &entries[0] else { panic!("{entries:?}") };
        let told: Vec<_> = members(membership).into_iter().map(|m| (m.node, m.disk, m.voter)).collect();
        assert_eq!(told, [("n1".into(), DiskId(9), true), ("n2".into(), DiskId(2), false)]);
        let EntryPayload::Normal(command) = &entries[1] else { panic!("{entries:?}") };
        assert_eq!(types::encoded_command(command), &b"go"[..]);
    }

    #[test]
    fn vote_tells_its_term() {
        assert_eq!(term_of(&vote(Epoch(12), DiskId(3))).unwrap(), Epoch(12));
        assert!(term_of(&[7, 7]).is_err());
    }
}
