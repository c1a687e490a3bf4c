//! The one binary codec: bincode 2, standard configuration, behind a format-version byte.
//!
//! Everything that replicator writes to a disk or sends to a peer as opaque bytes goes through here, so that a format
//! can change and an unknown one is refused by its number. `docs/formats.md` lists the formats.

use std::cell::RefCell;

use serde::{Serialize, de::DeserializeOwned};

/// The largest value that is decoded, so that a corrupt length can't exhaust memory.
pub const DECODE_BYTES_MAX: usize = 256 << 20;

/// Bytes that don't hold the value they should.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// There are no bytes at all.
    #[error("{what}: empty")]
    Empty {
        /// What should have been there.
        what: &'static str,
    },
    /// The format is of another version of replicator.
    #[error("{what}: format version {found}, this program reads {expected}; use the program that wrote it")]
    Version {
        /// What should have been there.
        what: &'static str,
        /// The version byte found.
        found: u8,
        /// The one that can be read.
        expected: u8,
    },
    /// The bytes are damaged.
    #[error("{what}: {source}")]
    Damaged {
        /// What should have been there.
        what: &'static str,
        /// What bincode says.
        source: Box<bincode::error::DecodeError>,
    },
    /// The value ends before the bytes do.
    #[error("{what}: {extra} bytes too many")]
    Trailing {
        /// What should have been there.
        what: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
}

/// A value with a format: its name for messages, and the version byte written in front of it.
pub trait Format: Serialize + DeserializeOwned {
    /// What it is, for error messages.
    const WHAT: &'static str;
    /// The version that this program writes and reads.
    const VERSION: u8 = 1;

    /// Decodes what an older version wrote, if this program still reads that one. `body` is what follows the version byte.
    ///
    /// # Errors
    /// If the bytes are damaged, too few or too many.
    #[must_use]
    fn decode_older(_found: u8, _body: &[u8]) -> Option<Result<Self, CodecError>> {
        None
    }
}

/// What a thread's scratch buffer keeps between two values.
const SCRATCH_BYTES_KEPT: usize = 1 << 20;

thread_local! {
    /// Where values are encoded before they get a vector of their size: one that grows on the way is allocated several times over.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

/// Encodes `value`, its version byte first.
///
/// # Panics
/// If a `Serialize` implementation fails, which derived ones over plain values never do.
#[must_use]
pub fn encode<T: Format>(value: &T) -> Vec<u8> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.push(T::VERSION);
        bincode::serde::encode_into_std_write(value, scratch, bincode::config::standard())
            .expect("plain values in a growing vector always encode");
        let bytes = scratch.to_vec();
        scratch.shrink_to(SCRATCH_BYTES_KEPT);
        bytes
    })
}

/// Decodes what [`encode`] wrote: all of `bytes`, and nothing else.
///
/// # Errors
/// If the version is one that isn't read, or the bytes are damaged, too few or too many.
pub fn decode<T: Format>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = T::WHAT;
    let (&found, body) = bytes.split_first().ok_or(CodecError::Empty { what })?;
    if found == T::VERSION {
        return decode_body(what, body);
    }
    let expected = T::VERSION;
    T::decode_older(found, body).unwrap_or(Err(CodecError::Version { what, found, expected }))
}

/// Decodes a value that has no version byte of its own: all of `body`, and nothing else.
///
/// # Errors
/// If the bytes are damaged, too few or too many.
pub fn decode_body<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(body, config())
        .map_err(|source| CodecError::Damaged { what, source: Box::new(source) })?;
    match body.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
        bytes: Vec<u8>,
    }

    impl Format for Sample {
        const WHAT: &'static str = "sample";
        const VERSION: u8 = 3;
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(number: u64, text: String, bytes: Vec<u8>) {
            let sample = Sample { number, text, bytes };
            prop_assert_eq!(decode::<Sample>(&encode(&sample)).unwrap(), sample);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = decode::<Sample>(&bytes);
        }
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let error = decode::<Sample>(&[9, 0, 0, 0]).unwrap_err().to_string();
        assert_eq!(error, "sample: format version 9, this program reads 3; use the program that wrote it");
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Grown {
        number: u64,
        later: u64,
    }

    impl Format for Grown {
        const WHAT: &'static str = "grown";
        const VERSION: u8 = 4;

        fn decode_older(found: u8, body: &[u8]) -> Option<Result<Self, CodecError>> {
            (found == 3).then(|| Ok(Self { number: decode_body(Self::WHAT, body)?, later: 9 }))
        }
    }

    #[test]
    fn an_older_version_that_is_still_read_is() {
        let grown = Grown { number: 7, later: 8 };
        assert_eq!(decode::<Grown>(&encode(&grown)).unwrap(), grown);
        assert_eq!(decode::<Grown>(&[3, 7]).unwrap(), Grown { number: 7, later: 9 });
        assert!(matches!(decode::<Grown>(&[3, 7, 8]), Err(CodecError::Trailing { extra: 1, .. })));
        assert!(matches!(decode::<Grown>(&[2, 7]), Err(CodecError::Version { found: 2, expected: 4, .. })));
    }

    #[test]
    fn too_few_and_too_many_bytes_are_refused() {
        let whole = encode(&Sample { number: 1, text: "a".into(), bytes: vec![1, 2] });
        for cut in 0..whole.len() {
            assert!(decode::<Sample>(&whole[..cut]).is_err(), "a value cut at {cut} was taken");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(matches!(decode::<Sample>(&longer), Err(CodecError::Trailing { extra: 1, .. })));
    }

    #[test]
    fn a_length_beyond_memory_is_refused() {
        // The version, number 0, then a string of 2^64 - 1 bytes.
        let bomb = [&[3, 0, 253][..], &[0xff; 8], &[0; 32]].concat();
        assert!(matches!(decode::<Sample>(&bomb), Err(CodecError::Damaged { .. })));
    }
}
