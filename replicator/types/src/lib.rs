//! The names that every floor shares: places in the log, identities, and the one binary codec.
//!
//! Plain values only: no files, no network, no clock. The chain protocol, the machine and the storage, which must
//! not know each other, meet here.

pub mod codec;
mod identity;
mod position;

pub use identity::{ClusterId, Digest, DiskId, HexError, Incarnation, Lineage, ModuleHash, Seed, SessionId};
pub use position::{Epoch, LogIndex, Position, Sequence};
