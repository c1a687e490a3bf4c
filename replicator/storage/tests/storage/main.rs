//! The files of a node, tried hard: every bit flipped, every cut, kills, failures, and a model.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its tests do")]

mod compaction;
mod crashed;
mod damage;
mod damage_files;
mod damage_tail;
mod files;
mod flush;
mod full;
mod image_damage;
mod image_kill;
mod image_transfer;
mod images;
mod inspect;
mod kill;
mod mending;
mod metas;
mod model;
mod saved;
mod scratch;
mod segments;
mod stopped;
mod torn;
