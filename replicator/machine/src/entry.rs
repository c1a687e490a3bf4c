//! What the log holds: commands, each with the time and the entropy that its proposer gave it.

use bytes::Bytes;
use replicator_types::{
    ClusterId, Lineage, ModuleHash, Seed, Sequence, SessionId,
    codec::{CodecError, Format},
};
use serde::{Deserialize, Serialize};

use crate::{limits::Limits, older};

/// One entry of the replicated log. Everything that can change a result is in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The proposer's wall time, microseconds since 1970. The machine never lets time go back (safety rule 15).
    pub time_us: i64,
    /// 16 bytes from the proposer's cryptographic generator.
    pub seed: Seed,
    /// What to do.
    pub command: Command,
}

impl Format for Entry {
    const WHAT: &'static str = "log entry";
    const VERSION: u8 = 2;

    fn decode_older(found: u8, body: &[u8]) -> Option<Result<Self, CodecError>> {
        (found == 1).then(|| older::entry(body))
    }
}

/// What a log entry orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a history: which module runs, under which limits.
    Genesis(Box<Genesis>),
    /// Opens a session, whose id is made of the lineage, and the entry's seed and index.
    OpenSession {
        /// The time to live asked for; 0: the default. Microseconds of the session clock.
        ttl_us: u64,
    },
    /// Closes a session.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Keeps a session from expiring.
    KeepAlive {
        /// Which.
        session: SessionId,
    },
    /// Executes a request, at most once.
    Request {
        /// In which session.
        session: SessionId,
        /// Its number there.
        sequence: Sequence,
        /// The client has every outcome below this one.
        acked_below: Sequence,
        /// What the module gets.
        request: Bytes,
    },
    /// The primary's timer: advances the session clock by at most two ticks, and expires sessions.
    Tick,
    /// An operator's recovery: from here on the history is another one (safety rule 3). All sessions close, as their ids are of the old one.
    Recover {
        /// The lineage that ends.
        replaces: Lineage,
        /// The one that begins.
        lineage: Lineage,
    },
    /// Replaces the active module by another one, which takes over its logical state. From this position on it runs, or the old one goes on
    /// as if nothing had been: the outcome says which. Going back is activating the former one.
    Activate {
        /// The new module. A node that doesn't have it stalls and fetches it.
        module: ModuleHash,
        /// The module that must be active, or nothing is done.
        expected: ModuleHash,
    },
    /// An engine barrier (safety rule 19): programs of one engine apply nothing after it, and those of the next one go on from images that
    /// were taken there or later.
    Upgrade {
        /// The engine that must be in force, or nothing is done.
        from: String,
        /// The engine that is in force from here on: the [`crate::engine_fingerprint`] of the next program.
        to: String,
    },
}

/// How a history begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The cluster.
    pub cluster: ClusterId,
    /// The history.
    pub lineage: Lineage,
    /// The module that runs from here on, until another one is activated.
    pub module: ModuleHash,
    /// The application's configuration, for `rsm_init`.
    pub app_config: Bytes,
    /// The limits that can change a result (safety rule 16).
    pub limits: Limits,
    /// The engine that all nodes must have, until an upgrade (safety rule 19): see [`crate::engine_fingerprint`].
    pub engine: String,
}
