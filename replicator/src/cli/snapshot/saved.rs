//! What a saved snapshot tells of itself.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use replicator_storage::{SavedHead, SavedSnapshot};
use serde_json::{Value, json};

use super::{super::Failure, images};
use crate::cli::{log, output};

/// Reads all of a saved file, checks it, and describes it.
pub(super) fn inspect(path: &Path) -> Result<Value, Failure> {
    let saved = SavedSnapshot::open(path).map_err(log::unreadable)?;
    saved.verify().map_err(log::unreadable)?;
    let mut described = described(saved.head());
    described["file_bytes"] = saved.bytes().into();
    described["file_seal"] = output::hex(&saved.seal()).into();
    Ok(described)
}

/// What is in a saved snapshot, and where it is from.
pub(super) fn described(head: &SavedHead) -> Value {
    let mut described = images::manifest_json(&head.manifest);
    let origin = &head.origin;
    described["node_id"] = origin.node.as_str().into();
    described["mode"] = origin.mode.as_str().into();
    described["program_version"] = origin.program.as_str().into();
    described["saved_us"] = origin.saved_us.into();
    let modules = head.modules.iter().map(|module| json!({ "sha256": module.hash.to_string(), "bytes": module.bytes }));
    described["modules"] = modules.collect();
    described
}

/// A bar on standard error, if that is a terminal.
pub(in crate::cli) fn bar(what: &'static str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(bytes).with_prefix(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
