//! A record of the log, to the byte: see `docs/formats.md`.
//!
//! Both of its checks are seeded with the log's tag and the record's place in the log. So bytes of another log, of an older copy of a
//! file, or that came to another place, are no record at all.

use replicator_types::{Epoch, LogIndex, Position};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::meta::LogTag;

/// What comes before the payload.
pub(crate) const HEADER_BYTES: usize = 41;

/// The largest payload, so that a damaged size that escaped its check can't exhaust memory.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// The size and its check: what must be read to know how long a record is.
pub(crate) const SIZE_FIELD_BYTES: usize = 8;

/// Every record begins at a multiple of this.
pub(crate) const ALIGNMENT: usize = 8;

const HASHED_FROM: usize = 16;

/// What a record does to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Adds an entry, whose payload the record carries.
    Append(Position),
    /// Drops every entry after this one; all of them, if nothing was ever purged.
    TruncateAfter(Option<Position>),
    /// Drops every entry up to this one, or lets an empty log go on after it.
    PurgeThrough(Position),
}

impl Change {
    fn encode(self) -> (u8, Position) {
        match self {
            Self::Append(position) => (1, position),
            Self::TruncateAfter(Some(position)) => (2, position),
            Self::PurgeThrough(position) => (3, position),
            Self::TruncateAfter(None) => (4, Position::default()),
        }
    }

    fn decode(kind: u8, position: Position) -> Option<Self> {
        match kind {
            1 => Some(Self::Append(position)),
            2 => Some(Self::TruncateAfter(Some(position))),
            3 => Some(Self::PurgeThrough(position)),
            4 if position == Position::default() => Some(Self::TruncateAfter(None)),
            _ => None,
        }
    }
}

/// A whole record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    pub(crate) change: Change,
    /// Up to where the log was known to be durable when this was written, as a global offset.
    pub(crate) durable_end: u64,
    pub(crate) payload: &'a [u8],
}

/// What the first bytes at a place say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Zeros: nothing was written here.
    Nothing,
    /// A record that takes so many bytes, if the rest of it is whole.
    Record(usize),
    /// Neither.
    Unreadable,
}

/// The bytes that a record with so large a payload takes.
pub(crate) const fn record_bytes(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(ALIGNMENT)
}

/// Adds the record that begins at the global offset `offset`. Only an append carries a payload, of at most [`PAYLOAD_BYTES_MAX`].
pub(crate) fn encode(
    out: &mut Vec<u8>,
    tag: LogTag,
    offset: u64,
    durable_end: u64,
    change: Change,
    payload: &[u8],
) -> usize {
    let seed = seed(tag, offset);
    let size = u32::try_from(HEADER_BYTES + payload.len()).expect("payloads are bounded");
    let (kind, position) = change.encode();
    let begin = out.len();
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&size.to_be_bytes());
    header[4..8].copy_from_slice(&size_check(seed, size).to_be_bytes());
    header[16..24].copy_from_slice(&durable_end.to_be_bytes());
    header[24..32].copy_from_slice(&position.epoch.0.to_be_bytes());
    header[32..40].copy_from_slice(&position.index.0.to_be_bytes());
    header[40] = kind;
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let bytes = record_bytes(payload.len());
    out.resize(begin + bytes, 0);
    let hash = xxh3_64_with_seed(&out[begin + HASHED_FROM..], seed);
    out[begin + 8..begin + HASHED_FROM].copy_from_slice(&hash.to_be_bytes());
    bytes
}

/// How long the record at `offset` is, by its size field.
pub(crate) fn extent(field: [u8; SIZE_FIELD_BYTES], tag: LogTag, offset: u64) -> Extent {
    if field == [0; SIZE_FIELD_BYTES] {
        return Extent::Nothing;
    }
    let size = size_in(&field);
    let payload = (size as usize).checked_sub(HEADER_BYTES).filter(|payload| *payload <= PAYLOAD_BYTES_MAX);
    match payload {
        Some(payload) if field[4..] == size_check(seed(tag, offset), size).to_be_bytes() => {
            Extent::Record(record_bytes(payload))
        }
        _ => Extent::Unreadable,
    }
}

/// The record at `offset`, whose bytes these are, if it is whole. The size field must have been checked.
pub(crate) fn decode(bytes: &[u8], tag: LogTag, offset: u64) -> Option<Decoded<'_>> {
    let hash = xxh3_64_with_seed(bytes.get(HASHED_FROM..)?, seed(tag, offset));
    if bytes[8..HASHED_FROM] != hash.to_be_bytes() {
        return None;
    }
    let change = change_in(bytes)?;
    let payload = bytes.get(HEADER_BYTES..size_in(bytes) as usize)?;
    if !matches!(change, Change::Append(_)) && !payload.is_empty() {
        return None;
    }
    Some(Decoded { change, durable_end: number(bytes, 16), payload })
}

/// The records that this process encoded: how long each is, and what it does.
pub(crate) fn walk(mut bytes: &[u8]) -> impl Iterator<Item = (usize, Change)> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let taken = (size_in(bytes) as usize).next_multiple_of(ALIGNMENT);
        let change = change_in(bytes).expect("the bytes were encoded here");
        bytes = &bytes[taken..];
        Some((taken, change))
    })
}

fn seed(tag: LogTag, offset: u64) -> u64 {
    xxh3_64_with_seed(&offset.to_be_bytes(), tag.0)
}

fn size_check(seed: u64, size: u32) -> u32 {
    (xxh3_64_with_seed(&size.to_be_bytes(), seed) & u64::from(u32::MAX)) as u32
}

fn size_in(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("a record has a size field"))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().expect("a record has a header"))
}

fn change_in(bytes: &[u8]) -> Option<Change> {
    let kind = *bytes.get(40)?;
    Change::decode(kind, Position { epoch: Epoch(number(bytes, 24)), index: LogIndex(number(bytes, 32)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: LogTag = LogTag(4);

    fn encoded(tag: LogTag, offset: u64, change: Change, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let taken = encode(&mut bytes, tag, offset, offset / 2, change, payload);
        assert_eq!(taken, bytes.len());
        bytes
    }

    fn read(bytes: &[u8], tag: LogTag, offset: u64) -> Option<Decoded<'_>> {
        match extent(*bytes.first_chunk()?, tag, offset) {
            Extent::Record(taken) => decode(bytes.get(..taken)?, tag, offset),
            _ => None,
        }
    }

    fn changes() -> [Change; 4] {
        let position = Position::new(2, 3);
        [
            Change::Append(position),
            Change::TruncateAfter(Some(position)),
            Change::TruncateAfter(None),
            Change::PurgeThrough(position),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(tag: u64, offset: u64, epoch: u64, index: u64, durable_end: u64, payload: Vec<u8>) {
            let (tag, change) = (LogTag(tag), Change::Append(Position::new(epoch, index)));
            let mut bytes = Vec::new();
            encode(&mut bytes, tag, offset, durable_end, change, &payload);
            prop_assert_eq!(bytes.len() % ALIGNMENT, 0);
            prop_assert_eq!(read(&bytes, tag, offset), Some(Decoded { change, durable_end, payload: &payload }));
        }

        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>, offset: u64) {
            prop_assert_eq!(read(&bytes, TAG, offset), None);
        }

        #[test]
        fn a_record_elsewhere_or_of_another_log_is_none(tag: u64, offset: u64, other_tag: u64, other_offset: u64) {
            prop_assume!((tag, offset) != (other_tag, other_offset));
            let bytes = encoded(LogTag(tag), offset, Change::Append(Position::new(1, 2)), b"hello");
            let elsewhere = extent(*bytes.first_chunk().unwrap(), LogTag(other_tag), other_offset);
            prop_assert_eq!(elsewhere, Extent::Unreadable);
            prop_assert_eq!(decode(&bytes, LogTag(other_tag), other_offset), None, "its hash alone would tell");
        }
    }

    #[test]
    fn records_have_the_documented_layout() {
        let bytes = encoded(TAG, 80, Change::Append(Position::new(2, 3)), b"hello");
        let seed = xxh3_64_with_seed(&80_u64.to_be_bytes(), 4);
        assert_eq!(bytes[..4], 46_u32.to_be_bytes());
        assert_eq!(bytes[4..8], xxh3_64_with_seed(&bytes[..4], seed).to_be_bytes()[4..]);
        assert_eq!(bytes[8..16], xxh3_64_with_seed(&bytes[16..], seed).to_be_bytes());
        assert_eq!([16, 24, 32].map(|at| number(&bytes, at)), [40, 2, 3], "durable end, epoch, index");
        assert_eq!(bytes[40], 1);
        assert_eq!(bytes[41..], *b"hello\0\0");
        let kinds = changes().map(|change| encoded(TAG, 0, change, b"")[40]);
        assert_eq!(kinds, [1, 2, 4, 3]);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for (change, payload) in changes().into_iter().zip([&b"hello"[..], b"", b"", b""]) {
            let whole = encoded(TAG, 8, change, payload);
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&flipped, TAG, 8), None, "bit {bit} of {change:?}");
                if bit < 64 {
                    assert_eq!(extent(*flipped.first_chunk().unwrap(), TAG, 8), Extent::Unreadable, "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn zeros_are_nothing_and_no_record() {
        assert_eq!(extent([0; 8], TAG, 0), Extent::Nothing);
        assert_eq!(decode(&[0; 48], TAG, 0), None);
    }

    #[test]
    fn a_batch_is_walked_record_by_record() {
        let mut bytes = Vec::new();
        let taken = changes().map(|change| encode(&mut bytes, TAG, 0, 0, change, b""));
        assert!(walk(&bytes).eq(taken.into_iter().zip(changes())));
    }
}
