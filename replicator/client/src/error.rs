//! What can go wrong, told apart by whether the request may have taken effect.

use std::time::Duration;

use replicator_proto::replicator::v1 as pb;
use replicator_types::{Digest, LogIndex, Sequence};
use tonic::Status;

pub use pb::ErrorReason;

/// The result of a call to a cluster.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// [`Error::is_outcome_unknown`] says whether the request may have taken effect, or may yet.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address isn't of the form `host:port` or `http://host:port`.
    #[error("the endpoint {endpoint:?} is not an address; write it as host:port")]
    InvalidEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// No address was given.
    #[error("no endpoint was given; name at least one node as host:port")]
    NoEndpoints,
    /// No node could serve the call before the deadline, and nothing was done.
    #[error("{}{}", tried(*waited, *attempts, endpoints), words(.cause))]
    Unavailable {
        /// How long it was tried.
        waited: Duration,
        /// How many attempts were made.
        attempts: u32,
        /// The nodes tried, separated by commas.
        endpoints: String,
        /// What the last attempt met.
        cause: Box<Status>,
    },
    /// The request was sent, and no answer came before the deadline: it may or may not have been executed, now or later.
    /// The session repeats it under its sequence before the next request; [`crate::Session::resolve`] does so at once.
    #[error("request {sequence} may or may not have been executed: no answer within {waited:.1?}: {}", words(.cause))]
    OutcomeUnknown {
        /// The request's number in its session.
        sequence: Sequence,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt met.
        cause: Box<Status>,
    },
    /// The module trapped while it executed the request. A stored outcome: a repeat answers the same.
    #[error("the application's module trapped on this request, which left no effect: {message}")]
    ModuleTrapped {
        /// What the module or the host said.
        message: String,
        /// Where the request is in the log; 0 for a query.
        log_index: LogIndex,
        /// The replica's running digest after that entry.
        state_digest: Digest,
    },
    /// The session expired, was closed, or never was. Outcomes not yet received stay unknown; open another session.
    #[error("the session is gone, expired or closed; open a new one: {message}")]
    SessionExpired {
        /// What the node said.
        message: String,
    },
    /// The cluster has executed less of the session than the client thought. No effect. The session is back in step
    /// after this error: the next request follows `last_sequence`.
    #[error("request {sequence} came too early: the session's last executed request is {last_sequence}")]
    SequenceGap {
        /// The number of the refused request.
        sequence: Sequence,
        /// The greatest sequence executed.
        last_sequence: Sequence,
    },
    /// The outcome under this number had been acknowledged and is forgotten: somebody else used the session. The
    /// session is back in step after this error.
    #[error("request {sequence} came too late: its outcome is forgotten, and the session is at {last_sequence}")]
    SequenceStale {
        /// The number of the refused request.
        sequence: Sequence,
        /// The greatest sequence executed.
        last_sequence: Sequence,
    },
    /// Another request was executed under this number: an earlier user of the session got further than it had saved.
    /// The session is back in step after this error: the next request follows `last_sequence`, or takes the next number.
    #[error("another request was executed as number {sequence} of this session")]
    SequenceReused {
        /// The number of the refused request.
        sequence: Sequence,
        /// The greatest sequence executed, if the node says so.
        last_sequence: Option<Sequence>,
    },
    /// The session keeps as many outcomes as it may; use a smaller pipeline.
    #[error("the session keeps as many outcomes as it may; keep fewer requests in flight: {message}")]
    WindowFull {
        /// What the node said.
        message: String,
    },
    /// The cluster has as many sessions as it may.
    #[error("the cluster has as many sessions as it may; close some or wait for them to expire: {message}")]
    SessionsFull {
        /// What the node said.
        message: String,
    },
    /// The request is malformed.
    #[error("invalid request: {message}")]
    InvalidRequest {
        /// What the node said.
        message: String,
    },
    /// The request is larger than the cluster's limits allow.
    #[error("the request is too large: {message}")]
    RequestTooLarge {
        /// What the node said.
        message: String,
    },
    /// The session, cursor or log index belongs to another history of the cluster; start with a new session.
    #[error("the cluster was restored or recovered since, and this belongs to its earlier history: {message}")]
    LineageMismatch {
        /// What the node said.
        message: String,
    },
    /// The events after the cursor are no longer kept. Subscribe from now on, and read the state instead.
    #[error("events since the last one seen are no longer kept: {message}")]
    CursorExpired {
        /// What the node said.
        message: String,
    },
    /// The session stayed in use by another call or pipeline until the deadline. The request was not sent.
    #[error("the session was in use by another request for {waited:.1?}; this one was not sent")]
    SessionBusy {
        /// How long was waited.
        waited: Duration,
    },
    /// A request before this one in the pipeline was refused, so this one never executes. Open a new session: this one
    /// has a hole in its numbers.
    #[error("an earlier request of the pipeline was refused, so this one was not executed; open a new session")]
    PipelineBroken,
    /// The answer isn't of this protocol.
    #[error("the node at the other end does not speak this protocol: {message}")]
    Protocol {
        /// What is wrong.
        message: String,
    },
    /// Any other status, passed on as it came. Whether the request took effect isn't known.
    #[error("{}", words(.0))]
    Rpc(#[source] Box<Status>),
}

/// What led to the cause; nothing if that was the only attempt.
fn tried(waited: Duration, attempts: u32, endpoints: &str) -> String {
    if attempts < 2 {
        return String::new();
    }
    format!("no node could answer within {waited:.1?} ({attempts} attempts at {endpoints}); the last said: ")
}

/// What a status says, without its names for programs.
fn words(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

impl Error {
    /// The reason that a node gave, if one did.
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        Some(match self {
            Self::OutcomeUnknown { .. } => ErrorReason::OutcomeUnknown,
            Self::ModuleTrapped { .. } => ErrorReason::ModuleTrapped,
            Self::SessionExpired { .. } => ErrorReason::SessionExpired,
            Self::SequenceGap { .. } => ErrorReason::SequenceGap,
            Self::SequenceStale { .. } => ErrorReason::SequenceStale,
            Self::SequenceReused { .. } => ErrorReason::SequenceReused,
            Self::WindowFull { .. } => ErrorReason::WindowFull,
            Self::SessionsFull { .. } => ErrorReason::SessionsFull,
            Self::InvalidRequest { .. } => ErrorReason::InvalidRequest,
            Self::RequestTooLarge { .. } => ErrorReason::RequestTooLarge,
            Self::LineageMismatch { .. } => ErrorReason::LineageMismatch,
            Self::CursorExpired { .. } => ErrorReason::CursorExpired,
            Self::Unavailable { cause, .. } => return crate::verdict::reason_of(cause),
            _ => return None,
        })
    }

    /// Whether the request may yet take effect, or may have. All other errors mean that it left no effect.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::OutcomeUnknown { .. }
                | Self::SessionExpired { .. }
                | Self::SequenceStale { .. }
                | Self::LineageMismatch { .. }
                | Self::Protocol { .. }
                | Self::Rpc(_)
        )
    }

    /// Whether the request was refused under its number, and the session has been brought in step with the cluster, so
    /// that the same request can be sent again at once.
    #[must_use]
    pub fn is_resynchronised(&self) -> bool {
        matches!(self, Self::SequenceGap { .. } | Self::SequenceStale { .. } | Self::SequenceReused { .. })
    }
}
