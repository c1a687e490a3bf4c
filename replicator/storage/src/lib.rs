//! The files of a replicator node: its folder and lock, `meta`, the log, the modules, and the snapshots.
//!
//! The only crate that touches them. Two promises hold throughout: what a call reports as durable is on the disk, and damage to
//! what was durable is refused with its place, never repaired silently and never cut away: [`DiskLog::mend`] says what it put back. `docs/formats.md` gives every file
//! to the byte.

mod atomic_file;
mod disk_log;
mod disk_room;
mod error;
mod lock;
mod log;
mod meta;
mod module_store;
mod node_dir;
mod quarantine;
mod repairs;
mod saved;
mod sealed_file;
mod snapshot;
mod spare;
mod stopped_node;
mod verify;

pub use disk_log::{
    DiskLog, DiskLogOptions, EntrySource, FlushCheck, GivenEntries, LogDump, LogReport, LoggedRecord, Matching,
    MendError, OpenReport, RecordKind, SegmentReport, StoppedLog, TornTail, Withheld,
};
pub use error::{NO_ROOM, StorageError};
pub use log::{Durable, Log, LogEnds, LogRoom, ReadLog, Record};
pub use meta::{MemberMemory, Meta, PeerMemory};
pub use module_store::ModuleStore;
pub use node_dir::{NodeDir, restrict_umask};
pub use repairs::Repair;
pub use saved::{SavedHead, SavedModule, SavedOrigin, SavedSnapshot, SavedSource, SavedWriter};
pub use snapshot::{
    SnapshotData, SnapshotEntry, SnapshotInfo, SnapshotManifest, SnapshotOptions, SnapshotPiece, SnapshotReader,
    SnapshotReceiver, SnapshotStore, SnapshotWriter,
};
pub use stopped_node::StoppedNode;
pub use verify::{ModulesReport, NodeReport, SnapshotsReport};
