//! What comes out of the machine: outcomes, pushes, traps and refusals.

use std::borrow::Cow;

use bytes::Bytes;
use replicator_types::{Digest, ModuleHash, Position, Sequence, SessionId, codec::Format};
use serde::{Deserialize, Serialize};

use crate::activation::ActivationRefusal;

/// What one entry did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer, for whoever proposed the entry.
    pub outcome: Outcome,
    /// The pushes of this entry; a push's ordinal is its place in here. Empty for a repeat: each push happens once.
    pub pushes: Vec<Push>,
    /// The module's log lines, for the node's log. Not replicated, not retained.
    pub logs: Vec<String>,
}

/// The answer to an entry. Equal on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The history has begun.
    Genesis,
    /// A session was opened.
    SessionOpened {
        /// Its id.
        session: SessionId,
        /// Its time to live in microseconds of the session clock, after clamping.
        ttl_us: u64,
        /// How many outcomes are kept above `acked_below`.
        window: u32,
    },
    /// A session was closed, or there was none.
    SessionClosed {
        /// Whether there was one.
        existed: bool,
    },
    /// A session's life was prolonged, or there is none.
    Kept {
        /// Whether there is one.
        existed: bool,
    },
    /// The session clock advanced.
    Ticked {
        /// How many sessions expired.
        expired: u32,
    },
    /// A request was executed: now, or earlier, in which case every field is the first execution's (safety rule 14).
    Executed {
        /// What the module answered.
        result: RequestResult,
        /// The entry that executed it.
        position: Position,
        /// The running digest after that entry.
        digest: Digest,
    },
    /// Nothing was done: the entry changed nothing but time, applied index and running digest.
    Refused(Refusal),
    /// The lineage has changed.
    Recovered {
        /// How many sessions of the old one were closed.
        closed: u32,
    },
    /// Another module runs from here on.
    Activated {
        /// It.
        module: ModuleHash,
        /// The one before: activating that is the way back.
        previous: ModuleHash,
        /// Bytes of the logical state that it took over.
        state_bytes: u64,
    },
    /// The active module goes on as if nothing had been.
    ActivationRefused(ActivationRefusal),
    /// Another engine is in force from here on: this program applies nothing any more ([`crate::Machine::awaits_engine`]).
    Upgraded,
    /// Nothing was done: another engine is in force than the order names, or it names none to come.
    UpgradeRefused {
        /// The engine in force.
        engine: String,
    },
}

impl Format for Outcome {
    const WHAT: &'static str = "outcome";
}

impl Outcome {
    /// What of it the running digest takes: all that is a function of the log and the engine. The reasons of load checks are in part the words
    /// of libraries, and an engine's fingerprint doesn't name their versions.
    pub(crate) fn digested(&self) -> Cow<'_, Self> {
        match self {
            Self::ActivationRefused(ActivationRefusal::Load { .. }) => {
                Cow::Owned(Self::ActivationRefused(ActivationRefusal::Load { reason: String::new() }))
            }
            other => Cow::Borrowed(other),
        }
    }
}

/// What a module answered to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestResult {
    /// The reply; empty if the module gave none.
    Reply(Bytes),
    /// The module trapped, which left no effect on its state.
    Trap(Trap),
}

impl RequestResult {
    /// The bytes that keeping it takes, beside the fixed part.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Reply(reply) => reply.len(),
            Self::Trap(trap) => trap.message.len(),
        }
    }
}

/// A call of the module that came to no end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Trap {
    /// Why.
    pub kind: TrapKind,
    /// The guest's panic message if it gave one, else the meaning of the kind. Equal on every replica.
    pub message: String,
}

impl Trap {
    pub(crate) fn of(kind: TrapKind) -> Self {
        Self { kind, message: kind.meaning().to_owned() }
    }

    pub(crate) fn because(kind: TrapKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Why a module trapped. All are functions of the module, its state, the request and the logged limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrapKind {
    /// `unreachable` was reached: a panic, in most languages.
    Unreachable,
    /// A load or store past the end of memory.
    MemoryOutOfBounds,
    /// An indirect call of something that is no function of that type.
    BadIndirectCall,
    /// An integer was divided by zero.
    DivideByZero,
    /// A division or a conversion whose result doesn't fit.
    IntegerOverflow,
    /// A floating-point number that is no integer was converted to one.
    BadConversion,
    /// The call burned all of its fuel.
    OutOfFuel,
    /// The call stack is exhausted: the same call fails on every node, whatever code its compiler made (`docs/adr/0018`).
    StackOverflow,
    /// The output list isn't one.
    MalformedOutput,
    /// The output list is longer than the limit.
    OutputTooLarge,
}

impl TrapKind {
    /// All of them, each at the place of its number.
    pub(crate) const ALL: [Self; 10] = [
        Self::Unreachable,
        Self::MemoryOutOfBounds,
        Self::BadIndirectCall,
        Self::DivideByZero,
        Self::IntegerOverflow,
        Self::BadConversion,
        Self::OutOfFuel,
        Self::StackOverflow,
        Self::MalformedOutput,
        Self::OutputTooLarge,
    ];

    /// The kind in words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unreachable => "the module panicked",
            Self::MemoryOutOfBounds => "memory access out of bounds",
            Self::BadIndirectCall => "indirect call of a wrong function",
            Self::DivideByZero => "division by zero",
            Self::IntegerOverflow => "integer overflow",
            Self::BadConversion => "conversion of a number that is no integer",
            Self::OutOfFuel => "out of fuel",
            Self::StackOverflow => "call stack exhausted",
            Self::MalformedOutput => "malformed output list",
            Self::OutputTooLarge => "output list too large",
        }
    }
}

impl std::fmt::Display for TrapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.meaning())
    }
}

/// Why an entry did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A sequence above the next one: those between must come first. Resend.
    #[error("sequence out of order: the last one executed is {last}; send the next one first")]
    Gap {
        /// The last sequence executed; 0 if none.
        last: Sequence,
    },
    /// A sequence whose outcome was dropped, as the client said it had it.
    #[error("sequence below acked_below: its outcome is no longer kept; the last one executed is {last}")]
    Stale {
        /// The last sequence executed.
        last: Sequence,
    },
    /// A sequence that was executed with another request.
    #[error("sequence already used for a different request: the last one executed is {last}")]
    Reused {
        /// The last sequence executed.
        last: Sequence,
    },
    /// As many outcomes are kept as may be. Raise `acked_below`.
    #[error("session window full: the last sequence executed is {last}; raise acked_below")]
    WindowFull {
        /// The last sequence executed.
        last: Sequence,
    },
    /// There is no such session, any more or at all. Whether earlier requests were executed is unknown.
    #[error("no such session: it expired, was closed or never existed")]
    SessionExpired,
    /// As many sessions are open as may be.
    #[error("all {max} sessions are in use; try again later")]
    SessionsFull {
        /// The limit.
        max: u32,
    },
    /// The new session's id is taken: propose again, with another seed.
    #[error("session id taken; propose again with another seed")]
    SessionIdTaken,
    /// The request is longer than the limit.
    #[error("request of {bytes} bytes; at most {max} are taken")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The session is of another lineage: the cluster's history was replaced since (safety rule 3).
    #[error("the session belongs to another history of the cluster; open a new one")]
    LineageMismatch,
    /// There was no genesis entry yet.
    #[error("the cluster has not begun: no genesis entry")]
    NoGenesis,
    /// There was a genesis entry already.
    #[error("the cluster has begun already: a second genesis entry")]
    SecondGenesis,
}

/// Something that the module sends to clients that listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// A session, or the first 16 bytes of a topic name's hash.
    pub to: [u8; 16],
    /// What is sent.
    pub payload: Bytes,
}

/// What a query came to. Never logged; never changes state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryOutcome {
    /// The module answered, or trapped.
    Answered {
        /// What it answered.
        result: RequestResult,
        /// Ephemeral pushes: delivered to those who listen now, never retained.
        pushes: Vec<Push>,
        /// The module's log lines.
        logs: Vec<String>,
    },
    /// The module wasn't called: [`Refusal::NoGenesis`] or [`Refusal::TooLarge`].
    Refused(Refusal),
}
