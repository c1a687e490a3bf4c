//! The gRPC face of a node: what clients, tools and peers may call. The only floor, with `transport`, that knows the generated types.

mod admin;
mod client;
mod errors;
mod modules;
mod peer;
#[cfg(feature = "planted-wrong-answers")]
mod planted;
mod query;
mod stream;
mod subscribe;

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use replicator_proto::replicator::v1::{
    self as pb, admin_service_server::AdminServiceServer, peer_service_server::PeerServiceServer,
    replicator_service_server::ReplicatorServiceServer,
};
use tonic::{
    server::NamedService as _,
    transport::{Server, server::Router},
};

use self::{admin::AdminApi, client::ClientApi, peer::PeerApi};
use crate::{
    node::{Node, NodeError},
    transport::PEER_MESSAGE_BYTES_MAX,
};

/// The largest message from a client: a request at the greatest limit, or a batch of smaller ones.
const CLIENT_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Streams open at once on one connection.
const STREAMS_MAX: u32 = 4_096;
/// Streams of one connection that were cancelled before this process took them up. A client that gives up its calls while the process stands
/// still leaves as many as it had; past this it is a flood, and the connection ends.
const RESETS_MAX: usize = 1_024;
/// How long a call may take if its caller doesn't say.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take whatever its caller says.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// gRPC's standard health service, by its name.
const HEALTH: &str = "grpc.health.v1.Health";
/// Bytes of a module that travel in one message.
const CHUNK_BYTES: usize = 256 << 10;

/// A node's two servers, bound and serving.
#[derive(Debug)]
pub struct Served {
    /// Where clients reach it.
    pub client_address: String,
    /// Where peers reach it.
    pub peer_address: String,
}

/// Binds both addresses of `node` and serves them until the process ends.
///
/// # Errors
/// If an address can't be bound; the message names it.
pub async fn serve(node: Arc<Node>) -> io::Result<Served> {
    let peer_address = node.group().spawn(serve_peers(node.clone())).await.map_err(io::Error::other)??;
    let client = bind(&node, node.config().client_address.as_str(), "client_address").await?;

    let clients = ReplicatorServiceServer::new(ClientApi { node: node.clone() })
        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let admin = AdminServiceServer::new(AdminApi { node: node.clone() });
    let (reporter, health) = tonic_health::server::health_reporter();
    // What is served on this door, and not all that is in the files: peers have another one.
    let reflect = || {
        [pb::replicator_service_server::SERVICE_NAME, pb::admin_service_server::SERVICE_NAME, HEALTH]
            .into_iter()
            .fold(tonic_reflection::server::Builder::configure(), |builder, service| builder.with_service_name(service))
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection = reflect().build_v1().map_err(io::Error::other)?;
    let old_reflection = reflect().build_v1alpha().map_err(io::Error::other)?;
    let router = limited()
        .add_service(clients)
        .add_service(admin)
        .add_service(health)
        .add_service(reflection)
        .add_service(old_reflection);
    run(router, client.1, "clients");

    tokio::spawn(async move {
        use tonic_health::ServingStatus::{NotServing, Serving};
        let mut serving = node.serving();
        loop {
            let status = if *serving.borrow_and_update() { Serving } else { NotServing };
            for service in ["", ReplicatorServiceServer::<ClientApi>::NAME] {
                reporter.set_service_status(service, status).await;
            }
            if serving.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(Served { client_address: client.0, peer_address })
}

/// Runs where replication does, so that what a peer sends goes from the socket to the log without a change of thread.
async fn serve_peers(node: Arc<Node>) -> io::Result<String> {
    let (address, incoming) = bind(&node, node.config().peer_address.as_str(), "peer_address").await?;
    let peers = PeerServiceServer::new(PeerApi { node })
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    run(limited().add_service(peers), incoming, "peers");
    Ok(address)
}

async fn bind(node: &Node, address: &str, key: &str) -> io::Result<(String, crate::seams::Incoming)> {
    node.seams().network.listen(address.to_owned()).await.map_err(|error| {
        let hint =
            if error.kind() == io::ErrorKind::AddrInUse { "; another process has it: use another port" } else { "" };
        io::Error::new(error.kind(), format!("can't listen on {key} = {address}: {error}{hint}"))
    })
}

fn limited() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

fn run(router: Router, incoming: crate::seams::Incoming, what: &'static str) {
    let serving: BoxFuture<'static, _> = Box::pin(router.serve_with_incoming(incoming));
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, what, "serving has ended");
        }
    });
}

/// When the call must have its answer: what its caller says in `grpc-timeout`, within bounds.
fn deadline<T>(request: &tonic::Request<T>) -> std::time::Instant {
    let asked = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    // A little less than the caller waits, so that our reason reaches it before its own timeout.
    let within = asked.map_or(DEADLINE, |asked| asked.saturating_sub(asked / 10).min(DEADLINE_MAX));
    Node::deadline(within)
}

/// `grpc-timeout`: up to 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// 16 bytes, or none.
fn session(bytes: &[u8]) -> Result<replicator_types::SessionId, NodeOrBad> {
    bytes.try_into().map_err(|_| NodeOrBad::Bad(format!("session_id has {} bytes; a session id has 16", bytes.len())))
}

/// The node's error, or a malformed request.
#[derive(Debug)]
enum NodeOrBad {
    Node(NodeError),
    Bad(String),
}

impl From<NodeError> for NodeOrBad {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse_timeout("5"), None);
        assert_eq!(parse_timeout("9999999999999999H"), None);
        assert_eq!(parse_timeout(""), None);
        assert_eq!(parse_timeout("1é"), None);
    }
}
