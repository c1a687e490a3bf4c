//! The data file of a snapshot, to the byte: a header, chunks, an end mark. See `docs/formats.md`.
//!
//! Each chunk is compressed by itself and says which part of the image it is, so that reading may begin at any of them. Its two checks
//! are seeded with the file's random tag: bytes of another image are no chunk of this one. LZ4, because the node's cores belong to its
//! log: zstd 1 takes twice the time for files a tenth (half random pages) to two fifths (text alone) smaller.

use replicator_types::codec::CodecError;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The version of the data file.
pub(super) const VERSION: u8 = 1;
pub(super) const WHAT: &str = "snapshot image";

/// The file's header, a chunk's header and the end mark have the same size.
pub(super) const HEADER_BYTES: usize = 32;

/// The largest chunk of an image, so that a damaged size can't exhaust memory.
pub(super) const CHUNK_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 7] = *b"RPLIMAG";
const HASHED: usize = 24;

/// The data file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    /// Random, drawn for the file.
    pub(super) tag: u64,
    /// What a chunk holds of the image, at most.
    pub(super) chunk_bytes: usize,
}

/// A chunk's header, or the end mark: one of no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkHeader {
    /// What follows in the file.
    pub(super) stored_bytes: usize,
    /// What it is of the image. Invariant: at least `stored_bytes`, and equal if it isn't compressed.
    pub(super) image_bytes: usize,
    /// Where that begins in the image.
    pub(super) image_offset: u64,
    payload_hash: u64,
}

impl FileHeader {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..7].copy_from_slice(&MAGIC);
        header[7] = VERSION;
        header[8..16].copy_from_slice(&self.tag.to_be_bytes());
        header[16..HASHED].copy_from_slice(&(self.chunk_bytes as u64).to_be_bytes());
        let hash = xxh3_64(&header[..HASHED]);
        header[HASHED..].copy_from_slice(&hash.to_be_bytes());
        header
    }

    /// The header, if it is whole; the refusal of another version by its number.
    pub(super) fn decode(header: &[u8; HEADER_BYTES]) -> Result<Option<Self>, CodecError> {
        if xxh3_64(&header[..HASHED]) != number(header, HASHED) || !header.starts_with(&MAGIC) {
            return Ok(None);
        }
        if header[7] != VERSION {
            return Err(CodecError::Version { what: WHAT, found: header[7], expected: VERSION });
        }
        let chunk_bytes = usize::try_from(number(header, 16)).ok().filter(|bytes| *bytes <= CHUNK_BYTES_MAX);
        Ok(chunk_bytes.map(|chunk_bytes| Self { tag: number(header, 8), chunk_bytes }))
    }
}

impl ChunkHeader {
    /// The header of these stored bytes.
    pub(super) fn of(tag: u64, stored: &[u8], image_bytes: usize, image_offset: u64) -> Self {
        let payload_hash = xxh3_64_with_seed(stored, tag);
        Self { stored_bytes: stored.len(), image_bytes, image_offset, payload_hash }
    }

    /// The end mark of an image of so many bytes.
    pub(super) fn end(tag: u64, image_bytes: u64) -> Self {
        Self::of(tag, &[], 0, image_bytes)
    }

    pub(super) fn is_end(&self) -> bool {
        self.image_bytes == 0
    }

    pub(super) fn encode(&self, tag: u64) -> [u8; HEADER_BYTES] {
        let size = |bytes: usize| u32::try_from(bytes).expect("chunks are bounded").to_be_bytes();
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&size(self.stored_bytes));
        header[4..8].copy_from_slice(&size(self.image_bytes));
        header[8..16].copy_from_slice(&self.image_offset.to_be_bytes());
        header[16..HASHED].copy_from_slice(&self.payload_hash.to_be_bytes());
        let hash = xxh3_64_with_seed(&header[..HASHED], tag);
        header[HASHED..].copy_from_slice(&hash.to_be_bytes());
        header
    }

    /// The header at the image's offset `expected`, if it is whole and belongs there.
    pub(super) fn decode(header: &[u8; HEADER_BYTES], file: FileHeader, expected: u64) -> Option<Self> {
        if xxh3_64_with_seed(&header[..HASHED], file.tag) != number(header, HASHED) {
            return None;
        }
        let size = |at: usize| u32::from_be_bytes(*header[at..].first_chunk().expect("it is a header")) as usize;
        let found = Self {
            stored_bytes: size(0),
            image_bytes: size(4),
            image_offset: number(header, 8),
            payload_hash: number(header, 16),
        };
        let fits = found.stored_bytes <= found.image_bytes && found.image_bytes <= file.chunk_bytes;
        (fits && found.image_offset == expected).then_some(found)
    }

    /// Whether these are the bytes that were stored.
    pub(super) fn matches(&self, stored: &[u8], tag: u64) -> bool {
        stored.len() == self.stored_bytes && xxh3_64_with_seed(stored, tag) == self.payload_hash
    }
}

fn number(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_be_bytes(*header[at..].first_chunk().expect("a header has a number there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileHeader = FileHeader { tag: 7, chunk_bytes: 4096 };

    #[test]
    fn headers_have_the_documented_layout() {
        let file = FILE.encode();
        assert_eq!(file[..8], *b"RPLIMAG\x01");
        assert_eq!([number(&file, 8), number(&file, 16), number(&file, 24)], [7, 4096, xxh3_64(&file[..24])]);
        assert_eq!(FileHeader::decode(&file).unwrap(), Some(FILE));
        let chunk = ChunkHeader::of(7, b"abc", 5, 9);
        let bytes = chunk.encode(7);
        assert_eq!(bytes[..8], [0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!([number(&bytes, 8), number(&bytes, 16)], [9, xxh3_64_with_seed(b"abc", 7)]);
        assert_eq!(number(&bytes, 24), xxh3_64_with_seed(&bytes[..24], 7));
        assert_eq!(ChunkHeader::decode(&bytes, FILE, 9), Some(chunk));
        assert!(ChunkHeader::end(7, 14).is_end());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_found() {
        let (file, chunk) = (FILE.encode(), ChunkHeader::of(7, b"abc", 5, 9).encode(7));
        for bit in 0..HEADER_BYTES * 8 {
            let flip = |mut header: [u8; HEADER_BYTES]| {
                header[bit / 8] ^= 1 << (bit % 8);
                header
            };
            assert_eq!(FileHeader::decode(&flip(file)).unwrap(), None, "bit {bit}");
            assert_eq!(ChunkHeader::decode(&flip(chunk), FILE, 9), None, "bit {bit}");
        }
    }

    #[test]
    fn a_chunk_of_another_file_or_place_or_size_is_none() {
        let chunk = ChunkHeader::of(7, b"abc", 5, 9);
        let bytes = chunk.encode(7);
        assert_eq!(ChunkHeader::decode(&bytes, FileHeader { tag: 8, ..FILE }, 9), None);
        assert_eq!(ChunkHeader::decode(&bytes, FILE, 8), None);
        assert_eq!(ChunkHeader::decode(&bytes, FileHeader { chunk_bytes: 4, ..FILE }, 9), None);
        assert_eq!(ChunkHeader::decode(&ChunkHeader::of(7, b"abc", 2, 9).encode(7), FILE, 9), None, "grown by it");
        assert!(!chunk.matches(b"abd", 7) && !chunk.matches(b"ab", 7) && chunk.matches(b"abc", 7));
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let mut file = FILE.encode();
        file[7] = 9;
        let hash = xxh3_64(&file[..24]);
        file[24..].copy_from_slice(&hash.to_be_bytes());
        let error = FileHeader::decode(&file).unwrap_err().to_string();
        assert!(error.contains('9') && error.contains('1'), "{error}");
    }
}
