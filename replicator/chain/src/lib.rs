//! Chain replication: events in, effects out.
//!
//! `docs/chain.md` is the specification; names here are those of there. There is no clock (ticks are events), no file (the log is
//! read through [`LogView`], and changed by effects), no network and no randomness. Two machines share the messages: a
//! [`Replica`] on every disk that holds the log, and a [`Coordinator`] wherever the configuration group's leader is. The
//! group's own state is the [`Record`].
//!
//! Sources: van Renesse and Schneider, "Chain Replication for Supporting High Throughput and Availability" (OSDI 2004); "PacificA"
//! (2008) and "Vertical Paxos" (2009) for a configuration kept outside the chain.

mod coordinator;
mod message;
mod record;
mod replica;
mod timing;

pub use coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, Phase, Progress, Wish};
pub use message::{Link, LogEntry, Message};
pub use record::{Attempt, Command, Configuration, Life, Promise, Record, Verdict};
pub use replica::{Effect, Event, LogView, PersistOrder, Refusal, Replica, Role, Standing};
pub use timing::Timing;
