//! One table from what went wrong to what a client is told: code, reason, words and details.

use std::collections::HashMap;

use replicator_machine::{Refusal, RequestResult, Trap};
use replicator_proto::replicator::v1 as pb;
use replicator_storage::StorageError;
use replicator_types::{Digest, LogIndex};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::NodeOrBad;
use crate::node::{ActivateError, Executed, Node, NodeError, RemoveModuleError, StoreModuleError};

/// The `domain` of our google.rpc.ErrorInfo.
const DOMAIN: &str = "replicator";

/// An error as both the unary calls and the streams tell it.
pub(super) struct ApiError {
    code: Code,
    reason: pb::ErrorReason,
    message: String,
    log_index: LogIndex,
    digest: Digest,
    last_sequence: u64,
    /// Where the primary is, if going there helps.
    primary: Option<String>,
}

impl ApiError {
    pub(super) fn new(code: Code, reason: pb::ErrorReason, message: String) -> Self {
        let (log_index, digest) = (LogIndex(0), Digest(0));
        Self { code, reason, message, log_index, digest, last_sequence: 0, primary: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, pb::ErrorReason::InvalidRequest, message.into())
    }

    /// The error for what `node` answered.
    pub(super) fn of(node: &Node, error: NodeOrBad) -> Self {
        let error = match error {
            NodeOrBad::Bad(message) => return Self::bad(message),
            NodeOrBad::Node(error) => error,
        };
        let (code, reason) = code_and_reason(&error);
        let mut told = Self::new(code, reason, error.to_string());
        if let NodeError::Refused(
            Refusal::Gap { last } | Refusal::Stale { last } | Refusal::Reused { last } | Refusal::WindowFull { last },
        ) = error
        {
            told.last_sequence = last.0;
        }
        if code == Code::Unavailable {
            told.primary = node.primary().map(|(_, address)| address);
        }
        told
    }

    /// Why a module was not stored.
    pub(super) fn of_store(error: &StoreModuleError) -> Self {
        use pb::ErrorReason as Reason;
        let (code, reason) = match error {
            StoreModuleError::Refused(_) => (Code::InvalidArgument, Reason::ModuleRefused),
            StoreModuleError::TooLarge => (Code::InvalidArgument, Reason::ModuleTooLarge),
            StoreModuleError::Corrupt { .. } => (Code::DataLoss, Reason::ModuleCorrupt),
            StoreModuleError::Storage(StorageError::Full { .. }) => (Code::ResourceExhausted, Reason::DiskFull),
            StoreModuleError::Storage(_) | StoreModuleError::Thread(_) | StoreModuleError::Host(_) => {
                (Code::Internal, Reason::NotReady)
            }
        };
        Self::new(code, reason, error.to_string())
    }

    /// Why a module was not activated.
    pub(super) fn of_activation(node: &Node, error: ActivateError) -> Self {
        use pb::ErrorReason as Reason;
        let words = error.to_string();
        match error {
            ActivateError::Node(NodeError::OutcomeUnknown) => Self::of(node, NodeError::OutcomeUnknown.into()).saying(
                "no outcome in time: the module may have been activated, or may be yet; ask again with the same two hashes, and the answer says so",
            ),
            ActivateError::Node(error) => Self::of(node, error.into()),
            ActivateError::NotReady(_) => Self::new(Code::FailedPrecondition, Reason::ModuleNotReady, words),
            ActivateError::Unknown(_) => Self::new(Code::NotFound, Reason::ModuleUnknown, words),
            ActivateError::NoPrevious(_) => Self::new(Code::FailedPrecondition, Reason::ModuleUnknown, words),
            ActivateError::NotExpected { since, .. } => {
                Self { log_index: since, ..Self::new(Code::Aborted, Reason::ModuleNotExpected, words) }
            }
            ActivateError::Refused { index, .. } => {
                Self { log_index: index, ..Self::new(Code::FailedPrecondition, Reason::ModuleRefused, words) }
            }
        }
    }

    /// Why a module was not removed.
    pub(super) fn of_removal(node: &Node, error: RemoveModuleError) -> Self {
        match error {
            RemoveModuleError::Node(error) => Self::of(node, error.into()),
            RemoveModuleError::Needed { .. } => {
                Self::new(Code::FailedPrecondition, pb::ErrorReason::ModuleNeeded, error.to_string())
            }
            RemoveModuleError::Log(_) | RemoveModuleError::Storage(_) => {
                Self::new(Code::Internal, pb::ErrorReason::NotReady, error.to_string())
            }
        }
    }

    fn saying(self, message: &str) -> Self {
        Self { message: message.to_owned(), ..self }
    }

    /// A trap is a stored outcome: every repeat is told the same.
    fn trapped(trap: &Trap, executed: &Executed) -> Self {
        let message = format!("the module trapped, and left no effect: {trap}");
        Self {
            log_index: executed.position.index,
            digest: executed.digest,
            ..Self::new(Code::Aborted, pb::ErrorReason::ModuleTrapped, message)
        }
    }

    fn reason_name(&self) -> String {
        self.reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned()
    }
}

fn code_and_reason(error: &NodeError) -> (Code, pb::ErrorReason) {
    use pb::ErrorReason as Reason;
    match error {
        NodeError::NotReady(_) => (Code::Unavailable, Reason::NotReady),
        NodeError::OutcomeUnknown => (Code::Unavailable, Reason::OutcomeUnknown),
        NodeError::Halted(_) | NodeError::Quarantined(_) => (Code::Unavailable, Reason::NodeHalted),
        NodeError::Overloaded => (Code::ResourceExhausted, Reason::Overloaded),
        NodeError::DiskFull { .. } => (Code::ResourceExhausted, Reason::DiskFull),
        NodeError::QueryTrapped(_) => (Code::Aborted, Reason::ModuleTrapped),
        NodeError::CursorExpired(_) => (Code::OutOfRange, Reason::CursorExpired),
        NodeError::LineageMismatch { .. } => (Code::FailedPrecondition, Reason::LineageMismatch),
        NodeError::Refused(refusal) => match refusal {
            Refusal::Gap { .. } => (Code::FailedPrecondition, Reason::SequenceGap),
            Refusal::Stale { .. } => (Code::OutOfRange, Reason::SequenceStale),
            Refusal::Reused { .. } => (Code::InvalidArgument, Reason::SequenceReused),
            Refusal::WindowFull { .. } => (Code::ResourceExhausted, Reason::WindowFull),
            Refusal::SessionExpired => (Code::NotFound, Reason::SessionExpired),
            Refusal::SessionsFull { .. } => (Code::ResourceExhausted, Reason::SessionsFull),
            Refusal::TooLarge { .. } => (Code::InvalidArgument, Reason::RequestTooLarge),
            Refusal::LineageMismatch => (Code::FailedPrecondition, Reason::LineageMismatch),
            Refusal::SessionIdTaken | Refusal::NoGenesis | Refusal::SecondGenesis => {
                (Code::Unavailable, Reason::NotReady)
            }
        },
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut metadata = HashMap::new();
        if error.reason == pb::ErrorReason::ModuleTrapped || error.log_index.0 > 0 {
            metadata.insert("log_index".to_owned(), error.log_index.to_string());
        }
        if error.reason == pb::ErrorReason::ModuleTrapped {
            metadata.insert("state_digest".to_owned(), error.digest.to_string());
        }
        if error.last_sequence > 0 {
            metadata.insert("last_sequence".to_owned(), error.last_sequence.to_string());
        }
        if let Some(address) = &error.primary {
            metadata.insert("primary_address".to_owned(), address.clone());
        }
        let details = ErrorDetails::with_error_info(error.reason_name(), DOMAIN, metadata);
        Self::with_error_details(error.code, error.message, details)
    }
}

impl From<ApiError> for pb::Error {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.code as i32,
            reason: error.reason.into(),
            message: error.message,
            log_index: error.log_index.0,
            state_digest: error.digest.0,
            last_sequence: error.last_sequence,
            primary_address: error.primary.unwrap_or_default(),
        }
    }
}

/// What a client is told of a request.
pub(super) fn response(node: &Node, executed: Result<Executed, NodeError>) -> Result<pb::ExecuteResponse, ApiError> {
    let executed = executed.map_err(|error| ApiError::of(node, error.into()))?;
    match executed.result {
        RequestResult::Trap(ref trap) => Err(ApiError::trapped(trap, &executed)),
        RequestResult::Reply(response) => {
            let told = pb::ExecuteResponse {
                response,
                log_index: executed.position.index.0,
                epoch: executed.position.epoch.0,
                node_id: node.config().name.to_string(),
                state_digest: executed.digest.0,
            };
            #[cfg(feature = "planted-wrong-answers")]
            let told = super::planted::executed(told);
            Ok(told)
        }
    }
}
