//! The offline engine over logs in memory and over real folders.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its tests do")]

mod beside;
mod checks;
mod fixtures;
mod folders;
mod memory;
#[path = "../../../machine/tests/machine/notes.rs"]
#[expect(dead_code, reason = "the machine's tests use more of them")]
mod notes;
mod replay;
