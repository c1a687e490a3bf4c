//! Client of a replicator cluster.
//!
//! A [`Client`] knows the nodes' addresses and finds one that answers. Writes go through a [`Session`], which numbers
//! its requests, so that each is executed **exactly once**, whatever fails on the way: a request whose answer is lost is
//! sent again under its number, at another node if need be, and the cluster answers with the first execution's outcome.
//! A [`Pipeline`] does the same with many requests in flight. [`Client::query`] reads, and [`Client::subscribe`] streams
//! what the module pushes, going on after the last event seen. [`Session::execute_vote`] and [`Client::query_vote`] ask
//! every replica, and show how far they agree.
//!
//! A program with many sessions or queries at once turns on [`ClientBuilder::streams`]: they then share streams, which
//! costs a tenth of a call for each.
//!
//! ```no_run
//! # async fn example() -> replicator_client::Result<()> {
//! use std::time::Duration;
//!
//! use replicator_client::Client;
//!
//! let client = Client::builder()
//!     .endpoints(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"])
//!     .deadline(Duration::from_secs(5))
//!     .build()?;
//! let session = client.open_session(None).await?;
//! let done = session.execute("increment").await?;
//! println!("executed once, at log index {}", done.log_index);
//! # Ok(())
//! # }
//! ```
//!
//! *Invariants.* A number of a session is never used for two payloads, and a payload never gets a second number, unless
//! the cluster has said that it wasn't executed under the first. No number is left out. `docs/sessions.md` says why
//! that makes exactly once.

mod backoff;
mod call;
mod client;
mod error;
mod lane;
mod link;
mod pipeline;
mod pool;
mod sequencer;
mod session;
mod subscription;
mod verdict;
mod vote;

pub use client::{Answer, Client, ClientBuilder, Consistency, DEFAULT_DEADLINE, RECEIVED_BYTES_MAX, SENT_BYTES_MAX};
pub use error::{Error, ErrorReason, Result};
pub use pipeline::{Outcome, Pipeline};
pub use replicator_proto::replicator::v1 as proto;
pub use replicator_types::{Digest, Epoch, Lineage, LogIndex, Sequence, SessionId};
pub use session::{Executed, KeepAlive, SavedSession, Session};
pub use subscription::{Cursor, Event, Push, Subscription};
pub use vote::{Ballot, Verdict, Vote};
