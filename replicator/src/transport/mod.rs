//! Bytes between processes: channels to peers, and listening with limits.

mod listener;
mod peers;

pub use listener::TcpNetwork;
pub use peers::{
    DigestAt, DigestsAnswer, Envelope, HeldModule, Hello, HelloAnswer, ImagePart, ImageParts, Join, JoinAnswer,
    LogAnswer, PeerChannel, Peers, Prepared, PreparedNode, Proposed, Readiness, TransportError, cluster_of,
    position_message, position_of, split_cluster,
};

/// The largest message between peers: a batch of log entries, each of which may be as large as a request.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 << 20;
