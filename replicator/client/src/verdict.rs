//! Judges a failed attempt: try again, or tell the caller, and whether the request may have taken effect.

use std::collections::HashMap;

use replicator_proto::replicator::v1 as pb;
use replicator_types::{Digest, LogIndex, Sequence};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    error::{Error, ErrorReason},
    lane::Miss,
};

/// The domain of the `google.rpc.ErrorInfo` that a node puts into a status.
pub(crate) const DOMAIN: &str = "replicator";

/// What to do after a failed attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Another attempt, at another node, may succeed.
    Retry {
        /// Whether the request may have taken effect.
        unknown: bool,
        /// What the node says is the reason; none if it was the connection that broke.
        reason: Option<ErrorReason>,
        /// Where the primary is said to be.
        primary: Option<String>,
        /// What was met, with the reason in its details.
        cause: Box<Status>,
    },
    /// The caller must decide.
    Final(Error),
}

/// What a node says about one request, as a status with details or as a result in a stream.
struct Refusal {
    reason: ErrorReason,
    code: Code,
    message: String,
    log_index: u64,
    state_digest: u64,
    last_sequence: u64,
    primary: Option<String>,
}

/// The reason in the details of `status`.
pub(crate) fn reason_of(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

/// Judges the status of a call about `sequence` (0: none).
pub(crate) fn of_status(status: Status, sequence: u64) -> Verdict {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    let Some((reason, info)) = info.and_then(|info| Some((reason_of(&status)?, info))) else {
        return of_bare_status(status);
    };
    let number = |key: &str| number(&info.metadata, key);
    let refusal = Refusal {
        reason,
        code: status.code(),
        message: status.message().to_owned(),
        log_index: number("log_index"),
        state_digest: info.metadata.get("state_digest").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0),
        last_sequence: number("last_sequence"),
        primary: info.metadata.get("primary_address").filter(|address| !address.is_empty()).cloned(),
    };
    refusal.judge(sequence, Some(status))
}

/// Judges the error in a result of an ExecuteStream.
pub(crate) fn of_result(error: pb::Error, sequence: u64) -> Verdict {
    let refusal = Refusal {
        reason: error.reason(),
        code: Code::from_i32(error.code),
        message: error.message,
        log_index: error.log_index,
        state_digest: error.state_digest,
        last_sequence: error.last_sequence,
        primary: Some(error.primary_address).filter(|address| !address.is_empty()),
    };
    refusal.judge(sequence, None)
}

/// Judges why a call about `sequence` has no answer from a shared stream. `None`: its time is up.
pub(crate) fn of_miss(miss: Miss, sequence: u64) -> Option<Verdict> {
    Some(match miss {
        Miss::Refused(error) => of_result(*error, sequence),
        Miss::Nonsense => {
            Verdict::Final(Error::Protocol { message: "a result is neither a response nor an error".into() })
        }
        Miss::Ended { status, begun, sent } => of_ended(status, begun, sent),
        Miss::TimedOut { .. } | Miss::Taken => return None,
    })
}

/// A stream that many calls share has ended. What it says is about the stream, so it is final for none of them, except
/// that the node doesn't serve such calls at all.
fn of_ended(status: Status, begun: bool, sent: bool) -> Verdict {
    match (of_status(status.clone(), 0), status.code()) {
        (refused @ Verdict::Final(_), Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied) => refused,
        (Verdict::Final(_), _) => {
            Verdict::Retry { unknown: sent, reason: None, primary: None, cause: Box::new(status) }
        }
        (Verdict::Retry { unknown, reason, primary, cause }, _) => {
            // Before it began, a reason such as NOT_READY holds for all that was to be sent on it.
            let unknown = sent && (begun || unknown);
            Verdict::Retry { unknown, reason, primary, cause }
        }
    }
}

/// A status without our details comes from the transport, a proxy, or a bug in the node.
fn of_bare_status(status: Status) -> Verdict {
    match status.code() {
        // The transport's ways to say that the connection broke, before or after the node had read the request.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => {
            let unknown = !is_connect_error(&status);
            Verdict::Retry { unknown, reason: None, primary: None, cause: Box::new(status) }
        }
        // HTTP/2's "enhance your calm", or load shedding on the way.
        Code::ResourceExhausted => {
            Verdict::Retry { unknown: true, reason: None, primary: None, cause: Box::new(status) }
        }
        _ => Verdict::Final(Error::Rpc(Box::new(status))),
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The status that a call of its own would have got.
fn with_reason(code: Code, message: String, reason: ErrorReason) -> Status {
    let name = reason.as_str_name().trim_start_matches("ERROR_REASON_");
    Status::with_error_details(code, message, ErrorDetails::with_error_info(name, DOMAIN, HashMap::new()))
}

fn number(metadata: &HashMap<String, String>, key: &str) -> u64 {
    metadata.get(key).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Refusal {
    fn judge(self, sequence: u64, status: Option<Status>) -> Verdict {
        let message = self.message;
        let sequence = Sequence(sequence);
        let last_sequence = Sequence(self.last_sequence);
        let unknown = self.reason == ErrorReason::OutcomeUnknown;
        Verdict::Final(match self.reason {
            ErrorReason::OutcomeUnknown
            | ErrorReason::NotReady
            | ErrorReason::NodeHalted
            | ErrorReason::Overloaded
            | ErrorReason::DiskFull => {
                let cause = status.unwrap_or_else(|| with_reason(self.code, message, self.reason));
                let (reason, cause) = (Some(self.reason), Box::new(cause));
                return Verdict::Retry { unknown, reason, primary: self.primary, cause };
            }
            ErrorReason::Unspecified => {
                return of_bare_status(status.unwrap_or_else(|| Status::new(self.code, message)));
            }
            ErrorReason::ModuleTrapped => Error::ModuleTrapped {
                message,
                log_index: LogIndex(self.log_index),
                state_digest: Digest(self.state_digest),
            },
            ErrorReason::SessionExpired => Error::SessionExpired { message },
            ErrorReason::SequenceGap => Error::SequenceGap { sequence, last_sequence },
            ErrorReason::SequenceStale => Error::SequenceStale { sequence, last_sequence },
            ErrorReason::SequenceReused => {
                Error::SequenceReused { sequence, last_sequence: Some(last_sequence).filter(|last| last.0 > 0) }
            }
            ErrorReason::WindowFull => Error::WindowFull { message },
            ErrorReason::SessionsFull => Error::SessionsFull { message },
            ErrorReason::InvalidRequest => Error::InvalidRequest { message },
            ErrorReason::RequestTooLarge => Error::RequestTooLarge { message },
            ErrorReason::LineageMismatch => Error::LineageMismatch { message },
            ErrorReason::CursorExpired => Error::CursorExpired { message },
            // Only operators' calls are answered so.
            ErrorReason::ModuleRefused
            | ErrorReason::ModuleNotReady
            | ErrorReason::ModuleNotExpected
            | ErrorReason::ModuleTooLarge
            | ErrorReason::ModuleCorrupt
            | ErrorReason::ModuleNeeded
            | ErrorReason::ModuleUnknown => {
                Error::Rpc(Box::new(status.unwrap_or_else(|| with_reason(self.code, message, self.reason))))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<String, String> = metadata.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        Status::with_error_details(code, "why", ErrorDetails::with_error_info(reason, DOMAIN, metadata))
    }

    #[test]
    fn details_become_a_typed_error() {
        let trapped =
            status(Code::Aborted, "MODULE_TRAPPED", &[("log_index", "42"), ("state_digest", "00000000000000ff")]);
        match of_status(trapped, 7) {
            Verdict::Final(Error::ModuleTrapped { message, log_index, state_digest }) => {
                assert_eq!((message.as_str(), log_index, state_digest), ("why", LogIndex(42), Digest(255)));
            }
            other => panic!("{other:?}"),
        }
        match of_status(status(Code::FailedPrecondition, "SEQUENCE_GAP", &[("last_sequence", "3")]), 7) {
            Verdict::Final(Error::SequenceGap { sequence, last_sequence }) => {
                assert_eq!((sequence, last_sequence), (Sequence(7), Sequence(3)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_an_unknown_outcome_is_unknown() {
        let unknown = |status| match of_status(status, 1) {
            Verdict::Retry { unknown, .. } => unknown,
            Verdict::Final(error) => panic!("{error}"),
        };
        assert!(unknown(status(Code::Unavailable, "OUTCOME_UNKNOWN", &[])));
        assert!(!unknown(status(Code::Unavailable, "NOT_READY", &[])));
        assert!(!unknown(status(Code::ResourceExhausted, "OVERLOADED", &[])));
        assert!(!unknown(status(Code::ResourceExhausted, "DISK_FULL", &[])));
        assert!(unknown(Status::unavailable("connection reset")));
        assert!(unknown(Status::unknown("h2 protocol error")));
    }

    #[test]
    fn a_result_in_a_stream_keeps_its_reason() {
        for expected in [ErrorReason::Overloaded, ErrorReason::NotReady, ErrorReason::OutcomeUnknown] {
            let error = pb::Error { reason: expected.into(), code: Code::Unavailable.into(), ..Default::default() };
            match of_result(error, 1) {
                Verdict::Retry { reason, cause, .. } => {
                    assert_eq!((reason, reason_of(&cause)), (Some(expected), Some(expected)));
                }
                Verdict::Final(error) => panic!("{error}"),
            }
        }
        assert!(matches!(of_status(Status::unavailable("reset"), 1), Verdict::Retry { reason: None, .. }));
    }

    #[test]
    fn the_primary_is_a_hint() {
        let elsewhere = status(Code::Unavailable, "NOT_READY", &[("primary_address", "10.0.0.2:7000")]);
        match of_status(elsewhere, 1) {
            Verdict::Retry { primary, .. } => assert_eq!(primary.as_deref(), Some("10.0.0.2:7000")),
            Verdict::Final(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_foreign_domain_is_not_ours() {
        let details = ErrorDetails::with_error_info("SEQUENCE_GAP", "elsewhere.example", HashMap::new());
        let foreign = Status::with_error_details(Code::FailedPrecondition, "why", details);
        assert!(matches!(of_status(foreign, 1), Verdict::Final(Error::Rpc(_))));
    }
}
