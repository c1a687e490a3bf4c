//! Modules, as `AdminService` and `PeerService` tell of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use replicator_proto::replicator::v1::{self as pb, ErrorReason as Reason};
use replicator_types::ModuleHash;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{CHUNK_BYTES, deadline, errors::ApiError};
use crate::{
    node::{ActivateError, Activation, ListedModule, MODULE_BYTES_MAX, Node, Running, StoreModuleError},
    transport::{PreparedNode, Readiness},
};

/// The longest that a primary may take to prepare a module.
const PREPARE_MAX: Duration = Duration::from_secs(30);

/// A module's hash: 32 bytes.
pub(super) fn hash(bytes: &[u8], field: &str) -> Result<ModuleHash, Status> {
    ModuleHash::try_from(bytes).map_err(|_| Status::from(ApiError::bad(format!("{field} must have 32 bytes"))))
}

/// The same; None, if it isn't said.
fn hash_if_any(bytes: &[u8], field: &str) -> Result<Option<ModuleHash>, Status> {
    if bytes.is_empty() { Ok(None) } else { hash(bytes, field).map(Some) }
}

fn bytes_of(hash: ModuleHash) -> Bytes {
    Bytes::copy_from_slice(&hash.0)
}

/// So many uploads are taken in at once: each holds a module in memory, and compiles it.
static UPLOADS: Semaphore = Semaphore::const_new(4);
/// How long one may take, its turn included.
const UPLOAD_MAX: Duration = Duration::from_secs(120);

pub(super) async fn upload(
    node: &Node,
    request: Request<Streaming<pb::UploadModuleRequest>>,
) -> Result<Response<pb::UploadModuleResponse>, Status> {
    let uploaded = async {
        let _turn = UPLOADS.acquire().await;
        take_in(node, request).await
    };
    let late = |_| Status::deadline_exceeded(format!("the module did not come within {} s", UPLOAD_MAX.as_secs()));
    tokio::time::timeout(UPLOAD_MAX, uploaded).await.map_err(late)?
}

async fn take_in(
    node: &Node,
    request: Request<Streaming<pb::UploadModuleRequest>>,
) -> Result<Response<pb::UploadModuleResponse>, Status> {
    let mut chunks = request.into_inner();
    let (mut module, mut said) = (BytesMut::new(), None);
    while let Some(pb::UploadModuleRequest { chunk, sha256 }) = chunks.message().await? {
        if module.is_empty() && said.is_none() {
            said = hash_if_any(&sha256, "sha256")?;
        }
        if module.len() + chunk.len() > MODULE_BYTES_MAX {
            return Err(ApiError::of_store(&StoreModuleError::TooLarge).into());
        }
        module.extend_from_slice(&chunk);
    }
    let stored = node.store_module(module.freeze(), said).await;
    let (hash, description) = stored.map_err(|error| ApiError::of_store(&error))?;
    Ok(Response::new(pb::UploadModuleResponse { sha256: bytes_of(hash), description }))
}

/// A module of the node's store, in parts.
pub(super) async fn chunks(node: &Node, sha256: &[u8]) -> Result<impl Iterator<Item = Bytes> + Send + use<>, Status> {
    let hash = hash(sha256, "sha256")?;
    let modules = node.modules().clone();
    let module = tokio::task::spawn_blocking(move || modules.get(hash)).await;
    let module = module.map_err(|error| Status::internal(error.to_string()))?;
    let module = module.map_err(|error| Status::internal(error.to_string()))?;
    let unknown = || ApiError::new(Code::NotFound, Reason::ModuleUnknown, format!("no module {hash} here"));
    let module = module.ok_or_else(unknown)?;
    Ok((0..module.len()).step_by(CHUNK_BYTES).map(move |at| module.slice(at..module.len().min(at + CHUNK_BYTES))))
}

pub(super) async fn list(node: &Arc<Node>) -> Result<Response<pb::ListModulesResponse>, Status> {
    let listed = node.list_modules().await.map_err(|error| ApiError::of(node, error.into()))?;
    Ok(Response::new(pb::ListModulesResponse { modules: listed.into_iter().map(module_message).collect() }))
}

fn module_message(module: ListedModule) -> pb::Module {
    pb::Module {
        sha256: bytes_of(module.hash),
        bytes: module.bytes,
        description: module.description,
        active: module.active,
        previous: module.previous,
        since_log_indexes: module.since.into_iter().map(|since| since.0).collect(),
        nodes: module.nodes.into_iter().map(node_message).collect(),
    }
}

fn node_message(node: PreparedNode) -> pb::NodeModule {
    use pb::ModuleState as State;
    let (state, detail) = match node.held.map(|held| held.readiness) {
        None => (State::Unknown, "it doesn't answer".to_owned()),
        Some(Readiness::Missing(why)) => (State::Missing, why),
        Some(Readiness::Checking) => (State::Checking, String::new()),
        Some(Readiness::Ready { .. }) => (State::Ready, String::new()),
        Some(Readiness::Refused(why)) => (State::Refused, why),
    };
    pb::NodeModule { node_id: node.node, state: state.into(), detail }
}

pub(super) async fn activate(
    node: &Arc<Node>,
    request: Request<pb::ActivateModuleRequest>,
) -> Result<Response<pb::ActivateModuleResponse>, Status> {
    let deadline = deadline(&request);
    let request = request.into_inner();
    let module = hash(&request.sha256, "sha256")?;
    let expected = hash_if_any(&request.expected_sha256, "expected_sha256")?;
    told(node, node.activate_module(module, expected, deadline).await)
}

pub(super) async fn roll_back(
    node: &Arc<Node>,
    request: Request<pb::RollbackModuleRequest>,
) -> Result<Response<pb::ActivateModuleResponse>, Status> {
    let deadline = deadline(&request);
    let expected = hash_if_any(&request.get_ref().expected_sha256, "expected_sha256")?;
    told(node, node.rollback_module(expected, deadline).await)
}

fn told(
    node: &Node,
    activated: Result<Activation, ActivateError>,
) -> Result<Response<pb::ActivateModuleResponse>, Status> {
    let activated = activated.map_err(|error| ApiError::of_activation(node, error))?;
    let (paused, digest) = activated.switched.unwrap_or_default();
    Ok(Response::new(pb::ActivateModuleResponse {
        sha256: bytes_of(activated.module),
        description: activated.description,
        log_index: activated.since.0,
        already: activated.already,
        previous_sha256: activated.previous.map(bytes_of).unwrap_or_default(),
        paused_us: micros(paused),
        state_digest: digest.0,
        node_id: node.config().name.to_string(),
        lacking_node_ids: activated.lacking,
    }))
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) async fn remove(
    node: &Node,
    request: &pb::RemoveModuleRequest,
) -> Result<Response<pb::RemoveModuleResponse>, Status> {
    let module = hash(&request.sha256, "sha256")?;
    let existed = node.remove_module(module).await.map_err(|error| ApiError::of_removal(node, error))?;
    Ok(Response::new(pb::RemoveModuleResponse { existed }))
}

/// What a peer wants to know.
pub(super) async fn held(
    node: &Arc<Node>,
    wanted: &[Bytes],
    all: bool,
) -> Result<Response<pb::ModulesResponse>, Status> {
    let wanted = wanted.iter().map(|bytes| hash(bytes, "wanted")).collect::<Result<_, _>>()?;
    let held = node.on_modules(wanted, all).await;
    Ok(Response::new(pb::ModulesResponse { modules: held.into_iter().map(Into::into).collect() }))
}

/// What another replica, which an operator called, asks of the primary.
pub(super) async fn prepare(
    node: &Arc<Node>,
    running: Arc<Running>,
    sha256: &[u8],
    wait_ms: u64,
) -> Result<Response<pb::PrepareModuleResponse>, Status> {
    let module = hash(sha256, "sha256")?;
    let wait = Duration::from_millis(wait_ms).min(PREPARE_MAX);
    let prepared = node.prepare_for_peer(running, module, Instant::now() + wait).await;
    Ok(Response::new(prepared.map_or_else(pb::PrepareModuleResponse::default, |prepared| {
        let nodes = prepared.nodes.into_iter().map(|node| pb::PreparedNode {
            node_id: node.node,
            held: node.held.map(Into::into),
            required: node.required,
        });
        pb::PrepareModuleResponse { primary: true, ready: prepared.ready, nodes: nodes.collect() }
    })))
}
