//! The deterministic part of replicator: log entries go in, outcomes come out.
//!
//! A [`Machine`] holds one application (a wasm32 module, `docs/guest-abi.md`), the session table, the retained pushes and
//! the running digest. Two machines that were given the same entries at the same positions are equal in every one of
//! these, bit for bit; what a machine can't do equally on every node ends in a [`Halt`] of that node and never in a
//! logged result. There is no network, no clock, no randomness and no file here: time and entropy come with the entries,
//! and a module's bytes through [`ModuleSource`].
//!
//! ```text
//! Entry ──▶ machine ──▶ sessions (once only) ──▶ application ──▶ guest (wasm) ──▶ Outcome, pushes
//!                                                  │ trap: rollback        │ queries: a view of the same memory
//!                                                  └── shadow ──▶ Image, written by another thread
//! ```
//!
//! A machine lives on one thread, whose stack must have at least [`APPLY_STACK_BYTES_MIN`] bytes.

pub mod entry;
pub mod limits;
pub mod load;

#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod trial;

mod activation;
mod application;
mod checkpoint;
mod decode;
mod description;
mod digest;
mod engine;
mod guest;
mod halt;
mod history;
mod image;
mod instrument;
mod machine;
mod memory;
mod older;
mod outcome;
mod page_sums;
mod pagemap;
mod pushes;
mod query;
mod rollback;
mod sessions;
mod shadow;
mod swap;
mod written;

pub use activation::ActivationRefusal;
pub use checkpoint::{CHECKPOINT_ENTRIES, is_checkpoint};
pub use engine::{APPLY_STACK_BYTES_MIN, Precompiled, engine_fingerprint, precompile, with_apply_stack};
pub use entry::{Command, Entry, Genesis};
pub use halt::Halt;
pub use history::ModuleSpan;
pub use image::{IMAGE_VERSION, Image, ImageError, ImageSummary, ImageUnavailable};
pub use limits::{Limits, LimitsError};
pub use load::{LoadError, ModuleInfo};
pub use machine::{Machine, ModuleSource, SURVEY_PAGE_BYTES, StateParts, Stats, Survey};
pub use outcome::{Applied, Outcome, Push, QueryOutcome, Refusal, RequestResult, Trap, TrapKind};
pub use pushes::{CursorExpired, PushCursor, RetainedPush};
pub use rollback::CopyTime;
