//! How raft-log spells our records: the codec of places and payloads.
//!
//! raft-log takes a record whose length is damaged for one that was cut off. So a payload's length has a checksum of its own
//! here, and everything else that raft-log writes for us has a fixed size.

use std::io::{self, Error, ErrorKind, Read, Write};

use bytes::Bytes;
use raft_log::{
    RaftLogRecord, Types,
    codeq::{Decode, Encode},
};
use replicator_types::{Epoch, LogIndex, Position};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::meta::LogTag;

/// The largest payload, so that a damaged length that escaped its checksum can't exhaust memory.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Length, its checksum, tag, durable end, hash: see `docs/formats.md`.
pub(crate) const PAYLOAD_HEADER_BYTES: usize = 32;

/// The record type of an append, in raft-log's four bytes.
pub(crate) const APPEND_TYPE: [u8; 4] = [0, 0, 0, 1];

/// Where the payload's header begins in an append record: after the type and the place.
pub(crate) const APPEND_HEADER_AT: usize = 4 + PLACE_BYTES;

const PLACE_BYTES: usize = 24;

/// A record as raft-log writes it.
pub(crate) type WalRecord = RaftLogRecord<WalTypes>;

/// raft-log's type parameters. Vote and user data are never written (safety rule 4), so they are empty.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct WalTypes;

impl Types for WalTypes {
    type LogId = Place;
    type LogPayload = Payload;
    type Vote = ();
    type Callback = super::flusher::FlushDone;
    type UserData = ();

    fn log_index(place: &Place) -> u64 {
        place.position.index.0
    }

    fn payload_size(payload: &Payload) -> u64 {
        payload.bytes.len() as u64
    }
}

/// What raft-log takes for an entry's identity: its position, and the round in which it was written.
///
/// Each truncation and each opening begins a new round, so of two entries the later one is always the greater. raft-log relies on
/// that: it drops from its cache what is not greater than the last entry of the chunks on the disk. If an entry were cut off and
/// appended again in the same epoch, it would take the new one, which may not be written yet, for the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) round: u64,
    pub(crate) position: Position,
}

impl Encode for Place {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let numbers = [self.round, self.position.epoch.0, self.position.index.0];
        let mut bytes = [0; PLACE_BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        w.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for Place {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let round = u64::decode(&mut r)?;
        let epoch = Epoch(u64::decode(&mut r)?);
        let index = LogIndex(u64::decode(&mut r)?);
        Ok(Self { round, position: Position { epoch, index } })
    }
}

/// An entry's payload, with what the scanner needs to tell damage from a torn tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Which log wrote it.
    pub(crate) tag: LogTag,
    /// Up to where the log was known to be durable when this was appended, as a global offset. Invariant: before this record.
    pub(crate) durable_end: u64,
    /// The entry.
    pub(crate) bytes: Bytes,
}

impl Encode for Payload {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let length =
            u32::try_from(self.bytes.len()).map_err(|_| Error::new(ErrorKind::InvalidInput, "payload too long"))?;
        let mut header = [0; PAYLOAD_HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4..8].copy_from_slice(&length_check(length).to_be_bytes());
        header[8..16].copy_from_slice(&self.tag.0.to_be_bytes());
        header[16..24].copy_from_slice(&self.durable_end.to_be_bytes());
        let hash = payload_hash(&header[..24], &self.bytes);
        header[24..].copy_from_slice(&hash.to_be_bytes());
        w.write_all(&header)?;
        w.write_all(&self.bytes)?;
        Ok(header.len() + self.bytes.len())
    }
}

impl Decode for Payload {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let mut header = [0; PAYLOAD_HEADER_BYTES];
        r.read_exact(&mut header)?;
        let Some(length) = payload_length(&header) else {
            return Err(Error::new(ErrorKind::InvalidData, "the payload's length is damaged"));
        };
        let mut bytes = vec![0; length];
        r.read_exact(&mut bytes)?;
        if payload_hash(&header[..24], &bytes).to_be_bytes() != header[24..] {
            return Err(Error::new(ErrorKind::InvalidData, "the payload's hash doesn't match"));
        }
        let tag = LogTag(u64::decode(&header[8..16])?);
        let durable_end = u64::decode(&header[16..24])?;
        Ok(Self { tag, durable_end, bytes: bytes.into() })
    }
}

/// The length in a payload's header, if its own checksum confirms it.
pub(crate) fn payload_length(header: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(*header.first_chunk()?);
    let check = u32::from_be_bytes(*header.get(4..)?.first_chunk()?);
    (check == length_check(length) && length as usize <= PAYLOAD_BYTES_MAX).then_some(length as usize)
}

fn length_check(length: u32) -> u32 {
    // The lower half of the hash: not 0 for length 0, so zeros on a disk are no length.
    (xxh3_64(&length.to_be_bytes()) & u64::from(u32::MAX)) as u32
}

fn payload_hash(header: &[u8], bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, xxh3_64(header))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft_log::{RaftLogAction, WALRecord};

    use super::*;

    fn append(round: u64, epoch: u64, index: u64, tag: u64, durable_end: u64, bytes: Vec<u8>) -> WalRecord {
        let payload = Payload { tag: LogTag(tag), durable_end, bytes: bytes.into() };
        WALRecord::Action(RaftLogAction::Append(Place { round, position: Position::new(epoch, index) }, payload))
    }

    fn encoded(record: &WalRecord) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(round: u64, epoch: u64, index: u64, tag: u64, durable_end: u64, bytes: Vec<u8>) {
            let record = append(round, epoch, index, tag, durable_end, bytes);
            prop_assert_eq!(WalRecord::decode(&encoded(&record)[..]).unwrap(), record);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = WalRecord::decode(&bytes[..]);
        }
    }

    #[test]
    fn an_append_has_the_documented_layout() {
        let bytes = encoded(&append(1, 2, 3, 4, 5, b"hello".to_vec()));
        let numbers = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes[..4], APPEND_TYPE);
        assert_eq!([4, 12, 20].map(numbers), [1, 2, 3], "round, epoch, index");
        assert_eq!(payload_length(&bytes[APPEND_HEADER_AT..]), Some(5));
        assert_eq!([36, 44].map(numbers), [4, 5], "tag, durable end");
        assert_eq!(bytes[60..65], *b"hello");
        assert_eq!(numbers(65) >> 32, 0, "the upper half of the checksum's field is empty");
        assert_eq!(bytes.len(), 73);
    }

    #[test]
    fn a_damaged_length_is_not_a_record_cut_off() {
        let whole = encoded(&append(1, 2, 3, 4, 5, b"hello".to_vec()));
        for bit in 0..32 {
            let mut flipped = whole.clone();
            flipped[APPEND_HEADER_AT + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(WalRecord::decode(&flipped[..]).unwrap_err().kind(), ErrorKind::InvalidData, "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(WalRecord::decode(&[0; 4096][..]).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(payload_length(&[0; PAYLOAD_HEADER_BYTES]), None);
    }
}
