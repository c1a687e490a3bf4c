//! A small file that holds one value: magic, length, the value in the common codec, and the SHA-256 of all of that.

use std::path::Path;

use replicator_types::codec::{self, CodecError, Format};
use sha2::{Digest, Sha256};

use crate::StorageError;

const CHECKSUM_BYTES: usize = 32;

/// The file's bytes.
pub(crate) fn encode<T: Format>(magic: &[u8; 8], value: &T) -> Vec<u8> {
    let body = codec::encode(value);
    let length = u32::try_from(body.len()).expect("a value of a few names and numbers is far below 4 GiB");
    let mut bytes = [&magic[..], &length.to_be_bytes(), &body].concat();
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// Reads what [`encode`] wrote: any other byte is found out. `damaged` makes the error of a file that isn't as it was written.
pub(crate) fn decode<T: Format>(
    magic: &[u8; 8],
    path: &Path,
    bytes: &[u8],
    damaged: impl Fn(String) -> StorageError,
) -> Result<T, StorageError> {
    let Some((content, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(damaged("the file is too short".into()));
    };
    if Sha256::digest(content)[..] != checksum[..] {
        return Err(damaged("its checksum doesn't match".into()));
    }
    let Some((length, body)) = content.strip_prefix(magic).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Err(damaged(format!("it is no {}", T::WHAT)));
    };
    if u32::from_be_bytes(*length) as usize != body.len() {
        return Err(damaged("its length doesn't match".into()));
    }
    codec::decode(body).map_err(|source| match source {
        CodecError::Version { .. } => StorageError::Version { path: path.to_owned(), source },
        other => damaged(other.to_string()),
    })
}
