//! A replicator node: it keeps one wasm state machine identical on several machines, and knows nothing of the application.
//!
//! Floors, imports only downward: `transport` and `replication` ([`seams`] beside them), `node`, `service`, `cli`.
//! ARCHITECTURE.md traces a write and a read through them.

pub mod cli;
pub mod config;
pub mod node;
pub mod replication;
pub mod seams;
pub mod service;
pub mod transport;
