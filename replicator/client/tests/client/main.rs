//! The client against nodes that fail as they are told to.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, but not in their helpers")]

mod execute;
mod fake;
mod pipeline;
mod query;
mod streams;
mod subscribe;
mod votes;
