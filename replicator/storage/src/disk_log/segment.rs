//! A segment's file: its name, its header, and which bytes of the log it holds.

use std::path::{Path, PathBuf};

use replicator_types::{Position, codec::CodecError};
use xxhash_rust::xxh3::xxh3_64;

use super::{block_file::BLOCK_BYTES, replay::Ends, watermark::VERSION};
use crate::{StorageError, atomic_file, meta::LogTag};

const MAGIC: [u8; 7] = *b"RPLSEGM";
const ENDING: &str = ".seg";
const CONTENT_BYTES: usize = 88;
const CHECKSUM_AT: usize = BLOCK_BYTES - 8;

/// The header takes a block of its own: it is written once, with the segment's first records.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES as u64;

/// The smallest file: a header and a block of records.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 2 * SEGMENT_HEADER_BYTES;

/// A segment that holds records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) sequence: u64,
    /// The global offset of its first record.
    pub(crate) start: u64,
    /// The file's size in bytes: a multiple of the block's, fixed when it was made.
    pub(crate) capacity: u64,
}

impl Segment {
    /// Where in the file the byte with this global offset is.
    ///
    /// # Panics
    /// If the offset is before the segment.
    pub(crate) fn byte_of(&self, offset: u64) -> u64 {
        assert!(offset >= self.start, "offset {offset} is before the segment, which begins at {}", self.start);
        SEGMENT_HEADER_BYTES + (offset - self.start)
    }
}

/// What a segment's first block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: LogTag,
    pub(crate) sequence: u64,
    pub(crate) start: u64,
    pub(crate) capacity: u64,
    /// What the log held where the segment begins.
    pub(crate) ends: Ends,
}

/// What was found in a segment's first block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstBlock {
    /// A header, with its checksum right.
    Whole(Header),
    /// The same, of another version.
    Other(u8),
    /// No header: not written yet, torn or damaged.
    None,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let place = |position: Option<Position>| {
            let place = position.unwrap_or_default();
            [u64::from(position.is_some()), place.epoch.0, place.index.0]
        };
        let numbers = [self.tag.0, self.sequence, self.start, self.capacity];
        let all = numbers.into_iter().chain(place(self.ends.purged)).chain(place(self.ends.last));
        let mut block = [0; BLOCK_BYTES];
        block[..7].copy_from_slice(&MAGIC);
        block[7] = VERSION;
        for (field, number) in block[8..CONTENT_BYTES].chunks_exact_mut(8).zip(all) {
            field.copy_from_slice(&number.to_be_bytes());
        }
        let checksum = xxh3_64(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_be_bytes());
        block
    }
}

impl FirstBlock {
    pub(crate) fn decode(block: &[u8]) -> Self {
        let Some((content, checksum)) = block.split_last_chunk::<8>() else { return Self::None };
        let whole = content.len() == CHECKSUM_AT && xxh3_64(content) == u64::from_be_bytes(*checksum);
        if !whole || !content.starts_with(&MAGIC) {
            return Self::None;
        }
        if content[7] != VERSION {
            return Self::Other(content[7]);
        }
        let numbers: Vec<_> = content[8..CONTENT_BYTES]
            .chunks_exact(8)
            .map(|field| u64::from_be_bytes(*field.first_chunk().expect("a field has eight bytes")))
            .collect();
        let place = |at: usize| (numbers[at] == 1).then(|| Position::new(numbers[at + 1], numbers[at + 2]));
        Self::Whole(Header {
            tag: LogTag(numbers[0]),
            sequence: numbers[1],
            start: numbers[2],
            capacity: numbers[3],
            ends: Ends { purged: place(4), last: place(7) },
        })
    }
}

/// The path of a segment.
pub(crate) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:010}{ENDING}"))
}

/// The files of segments in `dir`, by sequence.
pub(crate) fn files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StorageError> {
    let mut found = Vec::new();
    for name in atomic_file::names(dir)? {
        let path = dir.join(&name);
        match sequence_of(&name) {
            None => {}
            Some(Ok(sequence)) => found.push((sequence, path)),
            Some(Err(())) => return Err(odd_name(&path)),
        }
    }
    found.sort();
    Ok(found)
}

/// The sequence that a file's name says, if it is one of a segment; an error if it is almost one.
pub(crate) fn sequence_of(name: &str) -> Option<Result<u64, ()>> {
    let number = name.strip_suffix(ENDING)?;
    let sequence = number.parse().ok().filter(|sequence| path(Path::new(""), *sequence).as_os_str() == name);
    Some(sequence.ok_or(()))
}

/// The refusal of a name that is almost that of a segment.
pub(crate) fn odd_name(path: &Path) -> StorageError {
    StorageError::damaged(path, None, "its name is almost that of a segment of the log")
}

/// Segments that were being made when the process ended: they hold nothing.
pub(crate) fn unfinished(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let ending = format!("{ENDING}.{}", atomic_file::TEMPORARY);
    let names = atomic_file::names(dir)?;
    Ok(names.into_iter().filter(|name| name.ends_with(&ending)).map(|name| dir.join(name)).collect())
}

/// The refusal of a file of another version.
pub(crate) fn other_version(path: &Path, found: u8) -> StorageError {
    let source = CodecError::Version { what: "log", found, expected: VERSION };
    StorageError::Version { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let ends = Ends { purged: Some(Position::new(5, 6)), last: Some(Position::new(7, 8)) };
        Header { tag: LogTag(1), sequence: 2, start: 16, capacity: 8192, ends }
    }

    #[test]
    fn a_header_has_the_documented_layout() {
        let block = header().encode();
        let numbers: Vec<_> =
            block[8..88].chunks(8).map(|field| u64::from_be_bytes(field.try_into().unwrap())).collect();
        assert_eq!(block[..8], *b"RPLSEGM\x02");
        assert_eq!(numbers, [1, 2, 16, 8192, 1, 5, 6, 1, 7, 8]);
        assert_eq!(block[4088..], xxh3_64(&block[..4088]).to_be_bytes());
        assert!(block[88..4088].iter().all(|byte| *byte == 0));
        assert_eq!(FirstBlock::decode(&block), FirstBlock::Whole(header()));
        let blank = Header { ends: Ends::default(), ..header() };
        assert_eq!(FirstBlock::decode(&blank.encode()), FirstBlock::Whole(blank));
    }

    #[test]
    fn every_flipped_bit_and_cut_of_a_header_is_found() {
        let whole = header().encode();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FirstBlock::decode(&flipped), FirstBlock::None, "bit {bit}");
        }
        for size in 0..whole.len() {
            assert_eq!(FirstBlock::decode(&whole[..size]), FirstBlock::None, "cut at {size}");
        }
        assert_eq!(FirstBlock::decode(&[0; BLOCK_BYTES]), FirstBlock::None);
    }

    #[test]
    fn another_version_is_told_by_its_number() {
        let mut block = header().encode();
        block[7] = 9;
        let checksum = xxh3_64(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(FirstBlock::decode(&block), FirstBlock::Other(9));
    }
}
