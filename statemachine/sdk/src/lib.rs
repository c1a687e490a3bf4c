//! SDK for writing replicated state machines as wasm modules.
//!
//! A machine is a type that implements [`StateMachine`]. `export!` makes a module of it that a replicator can host: no
//! imports, and the exports of `docs/guest-abi.md`. The author writes no `unsafe` code, sees no pointer, and may set
//! `#![forbid(unsafe_code)]`. The same crate builds natively, where [`testing::Harness`] drives the machine in unit tests.
//!
//! ```
//! use statemachine::{Context, Output, StateMachine, testing::Harness};
//!
//! /// Adds up the lengths of all requests.
//! struct Total(u64);
//!
//! impl StateMachine for Total {
//!     const APP: &'static str = "total";
//!     const VERSION: &'static str = env!("CARGO_PKG_VERSION");
//!     const SCHEMA: u32 = 1;
//!
//!     fn init(_config: &[u8]) -> Result<Self, String> {
//!         Ok(Self(0))
//!     }
//!
//!     fn apply(&mut self, _context: &Context, request: &[u8], output: &mut Output) {
//!         self.0 += request.len() as u64;
//!         output.reply(&self.0.to_le_bytes());
//!     }
//!
//!     fn query(&self, _context: &Context, _request: &[u8], output: &mut Output) {
//!         output.reply(&self.0.to_le_bytes());
//!     }
//!
//!     fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
//!         [self.0.to_le_bytes().to_vec()].into_iter()
//!     }
//!
//!     fn restore(&mut self, _schema: u32, record: &[u8]) -> Result<(), String> {
//!         let bytes = record.try_into().map_err(|_| "the total is 8 bytes")?;
//!         self.0 = u64::from_le_bytes(bytes);
//!         Ok(())
//!     }
//! }
//!
//! statemachine::export!(Total);
//!
//! let mut harness = Harness::<Total>::new(b"")?;
//! let client = harness.connect().session;
//! assert_eq!(harness.request(client, b"four").reply(), 4u64.to_le_bytes());
//! assert_eq!(harness.request(client, b"").reply(), 4u64.to_le_bytes());
//!
//! let mut restored = Harness::<Total>::restored(b"", 1, &harness.snapshot())?;
//! assert_eq!(restored.query(client, b"").reply(), 4u64.to_le_bytes());
//! # Ok::<(), String>(())
//! ```
//!
//! # What keeps a machine deterministic
//!
//! Every replica must compute the same bytes from the same log. On wasm32 there is no clock, no entropy, no thread and no
//! file to go wrong, and the host makes floats agree. What is left to the author:
//!
//! - Time and randomness come from [`Context`] alone.
//! - `BTreeMap` and `BTreeSet`, never `HashMap` and `HashSet`: on this target their keys come from addresses, so that
//!   the order of iteration depends on the history of allocations, which a restored machine doesn't share. Let clippy
//!   watch over it: `statemachine/examples/clippy.toml`.
//! - No result may depend on an address or on a capacity, for the same reason.
//! - A panic is a trap: it leaves no effect, and the client gets an error with the message. A refusal that a client
//!   can act on is a reply, so never panic on a request's bytes.

mod context;
mod describe;
mod guest;
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
mod message;
mod output;
mod sha256;
mod slot;
mod stream;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod abi;
mod export;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use context::{Context, HEADER_BYTES, Kind, SessionId};
#[doc(hidden)]
pub use describe::{Description, describe};
pub use output::{Output, TopicId};

/// A replicated application: what a log entry does to its state.
///
/// Every method must be a function of the state and its arguments alone.
pub trait StateMachine: Sized + 'static {
    /// The application's name: 1 to 64 of `a-z 0-9 - _ .`. A module replaces only one of the same name.
    const APP: &'static str;
    /// The module's version, for people: 1 to 64 printable ASCII characters. `env!("CARGO_PKG_VERSION")` is a good one.
    const VERSION: &'static str;
    /// The number of the format that [`snapshot`](Self::snapshot) writes. Raise it whenever that changes.
    const SCHEMA: u32;
    /// The other formats that [`restore`](Self::restore) reads, ascending: those of earlier versions, so that this one can take
    /// over from them, and those of later ones from which it can take over again when they are rolled back.
    const ACCEPTS_FROM: &'static [u32] = &[];
    /// Whether [`tick`](Self::tick) is to be called on the primary's timer entries.
    const TICKS: bool = false;

    /// Makes the machine at the beginning of a history, from the cluster's application configuration.
    ///
    /// It comes before a [`restore`](Self::restore) too, so a snapshot needs to hold nothing that the configuration says.
    ///
    /// # Errors
    /// The reason, for people, why no cluster can run with this configuration.
    fn init(config: &[u8]) -> Result<Self, String>;

    /// Executes one request of `context.session`. The bytes are a client's, and may be hostile.
    fn apply(&mut self, context: &Context, request: &[u8], output: &mut Output);

    /// Answers a read. Its pushes are delivered by every node and never logged; nothing else of it lasts.
    fn query(&self, context: &Context, request: &[u8], output: &mut Output);

    /// `context.session` was opened. It may push, but there is nobody to reply to.
    fn connect(&mut self, context: &Context, output: &mut Output) {
        let _ = (context, output);
    }

    /// `context.session` was closed or has expired. It may push, but there is nobody to reply to.
    fn disconnect(&mut self, context: &Context, output: &mut Output) {
        let _ = (context, output);
    }

    /// The primary's timer, if [`TICKS`](Self::TICKS) asks for it. It may push, but there is nobody to reply to.
    fn tick(&mut self, context: &Context, output: &mut Output) {
        let _ = (context, output);
    }

    /// All logical state, as records in an order and encoding that depend on that state alone.
    ///
    /// The records are made one by one as the host takes the snapshot away in chunks, so a large state never exists twice.
    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>>;

    /// Takes the next record of a snapshot of format `schema`, [`SCHEMA`](Self::SCHEMA) or one of
    /// [`ACCEPTS_FROM`](Self::ACCEPTS_FROM), in the order in which they were written. The machine is fresh from
    /// [`init`](Self::init) before the first one.
    ///
    /// # Errors
    /// The reason, for people, why this snapshot can't be taken. The cluster then keeps the module that it has.
    fn restore(&mut self, schema: u32, record: &[u8]) -> Result<(), String>;

    /// All records of a snapshot have been taken: the place to check what only the whole can show.
    ///
    /// # Errors
    /// As for [`restore`](Self::restore).
    fn restored(&mut self, schema: u32) -> Result<(), String> {
        let _ = schema;
        Ok(())
    }
}
