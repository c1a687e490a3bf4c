//! Raw gRPC: what a client in another language would send, and the typed errors that come back.

use std::time::Duration;

use bytes::Bytes;
use replicator_client::{
    ErrorReason,
    proto::{ExecuteRequest, OpenSessionRequest, replicator_service_client::ReplicatorServiceClient},
};
use tonic::{Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// A request with a deadline, as `grpc-timeout`.
pub fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A numbered request that acknowledges nothing.
#[must_use]
pub fn request(session: &Bytes, sequence: u64, request: impl Into<Bytes>) -> ExecuteRequest {
    ExecuteRequest { session_id: session.clone(), sequence, acked_below: 0, request: request.into() }
}

/// Why a call failed, from the google.rpc.ErrorInfo of our domain; none if the status has none.
#[must_use]
pub fn reason(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info().filter(|info| info.domain == "replicator")?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

/// A value in the metadata of the google.rpc.ErrorInfo.
#[must_use]
pub fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(key).cloned()
}

/// The session's last executed sequence, as a refusal tells it.
#[must_use]
pub fn last_sequence(status: &Status) -> Option<u64> {
    metadata(status, "last_sequence")?.parse().ok()
}

/// What every raw test needs from a node.
#[allow(async_fn_in_trait, reason = "for tests, which need no bounds on the futures")]
pub trait Requests {
    /// Opens a session with this time to live; 0: the default.
    async fn session(&mut self, ttl_ms: u64) -> Result<Bytes, Status>;
}

impl Requests for ReplicatorServiceClient<Channel> {
    async fn session(&mut self, ttl_ms: u64) -> Result<Bytes, Status> {
        Ok(self.open_session(OpenSessionRequest { ttl_ms }).await?.into_inner().session_id)
    }
}
