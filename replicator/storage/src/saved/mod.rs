//! A snapshot in one file, to be kept elsewhere and restored into a new cluster: the image, the modules that it needs, and where it comes from.
//!
//! A head ([`SavedHead`]) seals everything that follows by its SHA-256 and by its length: modules, then the snapshot's data file as a node has it
//! ([`crate::SnapshotManifest`]). So whatever was changed, cut off or added is found, with its place, before anybody uses any of it.
//! [`SavedSource`] gives such a file's bytes, [`SavedWriter`] writes them, whole or not at all, and [`SavedSnapshot`] reads them back.

mod head;
mod reader;
mod source;
mod writer;

pub use self::{
    head::{SavedHead, SavedModule, SavedOrigin},
    reader::SavedSnapshot,
    source::SavedSource,
    writer::SavedWriter,
};
