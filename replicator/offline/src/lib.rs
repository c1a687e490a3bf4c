//! The offline engine: runs a cluster's log again, without a cluster.
//!
//! A [`History`] is a log and what it may begin from: a stopped node's folder, a saved snapshot, what was collected from a running node, or a [`Fixture`], a run that an author keeps
//! beside the module's tests. [`Replay`] applies it to a machine up to an index; [`changes`] tells two indices of it apart; [`beside`] runs
//! another module along with the one that ran; [`check`] tells an author what is wrong with a module, without any cluster.
//!
//! Nothing here changes what it reads: no folder is mended, no tail cut off. Needs the machine and the files, and no network and no
//! replication: which entries are the machine's, and up to where they are committed, whoever opens a [`Folder`] says.

pub mod beside;
pub mod changes;
pub mod check;

mod collected;
mod error;
mod fixture;
mod folder;
mod history;
mod replay;
mod saved;
mod tally;

pub use collected::Collected;
pub use error::OfflineError;
pub use fixture::{Fixture, FixtureError, FixtureHead, FixtureTail, FixtureWriter, Verified};
pub use folder::{Folder, Framing};
pub use history::{History, Logged, Modules};
pub use replay::{Beginning, Progress, Replay, for_each_entry};
pub use saved::Saved;
pub use tally::Tally;
