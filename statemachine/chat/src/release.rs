//! Which version of the module this is. One source builds both, each by a package of its own, whose version decides.
//!
//! | package | version | schema | reads | |
//! |---|---|---|---|---|
//! | `chat-v1-module` | 1 | 1 | 1, 2 | |
//! | `chat-module` | 2 | 2 | 1, 2 | reactions, editing |
//!
//! Version 2 takes over from version 1, and can be rolled back to it. A rollback loses the reactions, and which messages were
//! edited; the texts stay as they were edited. Version 1 says of a reaction what it says of every request that it doesn't know.

/// Whether this is version 1.
pub(crate) const IS_V1: bool = matches!(env!("CARGO_PKG_VERSION_MAJOR").as_bytes(), b"1");

/// The format of the snapshots that this version writes: see `snapshot.rs`.
pub(crate) const SCHEMA: u32 = if IS_V1 { 1 } else { 2 };
/// The other formats that it reads.
pub(crate) const ACCEPTS_FROM: &[u32] = if IS_V1 { &[2] } else { &[1] };
