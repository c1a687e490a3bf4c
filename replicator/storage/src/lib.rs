//! The files of a replicator node: its folder and lock, `meta`, the log, and the modules.
//!
//! The only crate that touches them. Two promises hold throughout: what a call reports as durable is on the disk, and damage to
//! what was durable is refused with its place, never repaired silently and never cut away. `docs/formats.md` gives every file
//! to the byte.

mod atomic_file;
mod disk_log;
mod error;
mod lock;
mod log;
mod meta;
mod module_store;
mod node_dir;

pub use disk_log::{DiskLog, DiskLogOptions, FlushCheck, OpenReport, TornTail};
pub use error::StorageError;
pub use log::{Durable, Log, LogEnds, Record};
pub use meta::{MemberMemory, Meta, PeerMemory};
pub use module_store::ModuleStore;
pub use node_dir::{NodeDir, restrict_umask};
