//! Calls to peers, in plain types. The generated ones stay in here.

mod modules;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use replicator_proto::replicator::v1 as pb;
use replicator_storage::{Record, SnapshotPiece};
use replicator_types::{ClusterId, Digest, DiskId, Incarnation, Lineage, LogIndex, Position};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub use self::modules::{HeldModule, Prepared, PreparedNode, Readiness};
use crate::{seams::Network, transport::PEER_MESSAGE_BYTES_MAX};

type Client = pb::peer_service_client::PeerServiceClient<Channel>;

/// Why a call to a peer gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// The peer can't be reached, or doesn't answer in time. Whether it acted is unknown.
    #[error("{0}")]
    Unreachable(String),
    /// The peer answered that it refuses.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer's answer makes no sense.
    #[error("malformed answer: {0}")]
    Malformed(String),
}

impl From<Status> for TransportError {
    fn from(status: Status) -> Self {
        match status.code() {
            tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::PermissionDenied => {
                Self::Refused(status.message().to_owned())
            }
            _ => Self::Unreachable(status.message().to_owned()),
        }
    }
}

/// Between which disks, and in which history, a message is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its history.
    pub lineage: Lineage,
    /// The sender's disk.
    pub from: DiskId,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The receiver's disk.
    pub to: DiskId,
}

impl Envelope {
    /// The cluster, and its history.
    #[must_use]
    pub const fn history(&self) -> (ClusterId, Lineage) {
        (self.cluster, self.lineage)
    }
}

impl From<Envelope> for pb::Envelope {
    fn from(envelope: Envelope) -> Self {
        Self {
            cluster_id: Bytes::copy_from_slice(&envelope.cluster.0),
            lineage: envelope.lineage.0,
            from_disk_id: envelope.from.0,
            from_incarnation: envelope.incarnation.0,
            to_disk_id: envelope.to.0,
        }
    }
}

impl TryFrom<Option<pb::Envelope>> for Envelope {
    type Error = &'static str;

    fn try_from(envelope: Option<pb::Envelope>) -> Result<Self, &'static str> {
        let envelope = envelope.ok_or("the message has no envelope")?;
        Ok(Self {
            cluster: ClusterId::try_from(&envelope.cluster_id[..]).map_err(|_| "the cluster id isn't 16 bytes")?,
            lineage: Lineage(envelope.lineage),
            from: DiskId(envelope.from_disk_id),
            incarnation: Incarnation(envelope.from_incarnation),
            to: DiskId(envelope.to_disk_id),
        })
    }
}

/// What a starting node tells its peers of itself.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Its cluster and history, unless it is blank.
    pub cluster: Option<(ClusterId, Lineage)>,
    /// Its name.
    pub node: String,
    /// Its disk.
    pub disk: DiskId,
    /// How often that has been started.
    pub incarnation: Incarnation,
    /// A random number of this start.
    pub start: u64,
    /// Its last log index.
    pub last_log_index: LogIndex,
    /// Up to here, its log is durable and committed.
    pub floor: LogIndex,
}

/// What a peer remembers of the disk that said hello.
#[derive(Debug, Clone)]
pub struct HelloAnswer {
    /// The peer's cluster and history, unless it is blank.
    pub cluster: Option<(ClusterId, Lineage)>,
    /// The peer's name.
    pub node: String,
    /// The peer's disk.
    pub disk: DiskId,
    /// The greatest incarnation of the asking disk that the peer knows, this start left out.
    pub known_incarnation: Incarnation,
    /// The greatest log index that the peer knows to have been durable on the asking disk.
    pub known_durable: LogIndex,
    /// The peer's own log clock.
    pub last_log_index: LogIndex,
    /// Whether the asking disk has been replaced.
    pub replaced: bool,
    /// Whether the peer's disk is too full to be the primary's.
    pub disk_full: bool,
}

/// A new disk asks to be let in.
#[derive(Debug, Clone)]
pub struct Join {
    /// The node's name.
    pub node: String,
    /// The new disk.
    pub disk: DiskId,
    /// Where clients will reach it.
    pub client_address: String,
    /// Where peers will reach it.
    pub peer_address: String,
    /// Whether it is a witness.
    pub witness: bool,
}

/// What became of entries that were passed on to a peer as primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    /// It has proposed all of them.
    Taken,
    /// It isn't the primary, and has proposed none.
    NotPrimary,
    /// It is, and its disk is full: it has proposed none.
    NoRoom,
}

/// How the joining goes.
#[derive(Debug, Clone, Default)]
pub struct JoinAnswer {
    /// The peer's cluster and history, unless it is blank.
    pub cluster: Option<(ClusterId, Lineage)>,
    /// Where the primary is, if the peer isn't it.
    pub primary_peer_address: Option<String>,
    /// Whether the disk has been let in.
    pub accepted: bool,
    /// Why not, or what goes on.
    pub detail: String,
}

/// A cluster and its history, as messages hold them; none of a blank node.
///
/// # Errors
/// If the id isn't one.
pub fn cluster_of(id: &[u8], lineage: u64) -> Result<Option<(ClusterId, Lineage)>, &'static str> {
    match id {
        [] => Ok(None),
        id => {
            ClusterId::try_from(id).map(|id| Some((id, Lineage(lineage)))).map_err(|_| "the cluster id isn't 16 bytes")
        }
    }
}

/// The reverse of [`cluster_of`].
#[must_use]
pub fn split_cluster(cluster: Option<(ClusterId, Lineage)>) -> (Bytes, u64) {
    cluster.map_or((Bytes::new(), 0), |(id, lineage)| (Bytes::copy_from_slice(&id.0), lineage.0))
}

/// Channels to peers, one for each address.
#[derive(Clone)]
pub struct Peers {
    network: Arc<dyn Network>,
    channels: Arc<Mutex<HashMap<String, PeerChannel>>>,
}

impl Peers {
    /// No channels yet.
    #[must_use]
    pub fn new(network: Arc<dyn Network>) -> Self {
        Self { network, channels: Arc::default() }
    }

    /// The channel to the peer at `address` (`host:port`). It connects when it is used.
    ///
    /// # Errors
    /// If the address can't be one.
    pub fn channel(&self, address: &str) -> Result<PeerChannel, TransportError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        // Keepalive finds a peer whose machine or process has stopped without closing its sockets.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| TransportError::Refused(format!("{address}: {error}")))?
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let client = Client::new(self.network.channel(endpoint))
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
        let channel = PeerChannel { client };
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

/// Calls to one peer.
#[derive(Debug, Clone)]
pub struct PeerChannel {
    client: Client,
}

/// How long a part of an image may take to come.
const IMAGE_PART_MAX: Duration = Duration::from_secs(10);

/// A part of an image.
#[derive(Debug)]
pub enum ImagePart {
    /// What the image is: comes first.
    Manifest(Bytes),
    /// Bytes of its file.
    Piece(SnapshotPiece),
}

/// An image that is coming.
#[derive(Debug)]
pub struct ImageParts(Streaming<pb::FetchImageResponse>);

impl ImageParts {
    /// The next part; None: that was all.
    ///
    /// # Errors
    /// If the connection breaks, or nothing comes for ten seconds.
    pub async fn next(&mut self) -> Result<Option<ImagePart>, TransportError> {
        Ok(within(IMAGE_PART_MAX, self.0.message()).await?.map(|part| {
            if part.manifest.is_empty() {
                ImagePart::Piece(SnapshotPiece { offset: part.offset, bytes: part.piece, checksum: part.checksum })
            } else {
                ImagePart::Manifest(part.manifest)
            }
        }))
    }
}

/// What a peer has of the entries that were asked for.
#[derive(Debug)]
pub enum LogAnswer {
    /// They are there.
    Holds {
        /// The entry before the first one, if that is known.
        before: Option<Position>,
        /// As many as one message takes.
        records: Vec<Record>,
    },
    /// They aren't, for this reason.
    Lacks(String),
}

/// What a machine came to at one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestAt {
    /// The index.
    pub index: LogIndex,
    /// The running digest after it.
    pub digest: Digest,
    /// The state's hash, if one was made there.
    pub state: Option<Digest>,
}

/// What a peer's machine came to.
#[derive(Debug, Clone)]
pub struct DigestsAnswer {
    /// Whose it is.
    pub disk: DiskId,
    /// What it still knows of the indexes that it was asked for.
    pub digests: Vec<DigestAt>,
    /// The last index that it has applied.
    pub applied: LogIndex,
    /// Whether its state is known to differ from what a majority has.
    pub quarantined: bool,
    /// Whether its state differs from another's, and it isn't known whose is right.
    pub disputed: bool,
}

/// A position, as messages hold it.
#[must_use]
pub const fn position_message(position: Position) -> pb::LogPosition {
    pb::LogPosition { epoch: position.epoch.0, log_index: position.index.0 }
}

/// The reverse of [`position_message`].
#[must_use]
pub const fn position_of(position: pb::LogPosition) -> Position {
    Position::new(position.epoch, position.log_index)
}

fn malformed(what: &str) -> TransportError {
    TransportError::Malformed(what.to_owned())
}

/// Puts a bound on one answer.
async fn within<T>(bound: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, TransportError> {
    match tokio::time::timeout(bound, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(TransportError::Unreachable(format!("no answer within {} ms", bound.as_millis()))),
    }
}

impl PeerChannel {
    /// Tells the peer who starts, and asks what it remembers.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn hello(&self, hello: &Hello, bound: Duration) -> Result<HelloAnswer, TransportError> {
        let (cluster_id, lineage) = split_cluster(hello.cluster);
        let request = pb::HelloRequest {
            cluster_id,
            lineage,
            node_id: hello.node.clone(),
            disk_id: hello.disk.0,
            incarnation: hello.incarnation.0,
            last_log_index: hello.last_log_index.0,
            floor_log_index: hello.floor.0,
            start: hello.start,
        };
        let answer = within(bound, self.client.clone().hello(request)).await?.into_inner();
        Ok(HelloAnswer {
            cluster: cluster_of(&answer.cluster_id, answer.lineage).map_err(malformed)?,
            node: answer.node_id,
            disk: DiskId(answer.disk_id),
            known_incarnation: Incarnation(answer.known_incarnation),
            known_durable: LogIndex(answer.known_durable_index),
            last_log_index: LogIndex(answer.last_log_index),
            replaced: answer.replaced,
            disk_full: answer.disk_full,
        })
    }

    /// Asks to be let in.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn join(&self, join: &Join, bound: Duration) -> Result<JoinAnswer, TransportError> {
        let request = pb::JoinRequest {
            node_id: join.node.clone(),
            disk_id: join.disk.0,
            client_address: join.client_address.clone(),
            peer_address: join.peer_address.clone(),
            witness: join.witness,
        };
        let answer = within(bound, self.client.clone().join(request)).await?.into_inner();
        Ok(JoinAnswer {
            cluster: cluster_of(&answer.cluster_id, answer.lineage).map_err(malformed)?,
            primary_peer_address: Some(answer.primary_peer_address).filter(|address| !address.is_empty()),
            accepted: answer.accepted,
            detail: answer.detail,
        })
    }

    /// Opens a replication stream: payloads go out as `payloads` yields them, answers come back in the same order.
    ///
    /// # Errors
    /// If the stream can't be opened within `bound`.
    pub async fn append(
        &self,
        envelope: Envelope,
        payloads: impl Stream<Item = Bytes> + Send + 'static,
        bound: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        let mut envelope = Some(envelope.into());
        let requests = payloads.map(move |payload| pb::AppendRequest { envelope: envelope.take(), payload });
        let answers = within(bound, self.client.clone().append(requests)).await?.into_inner();
        Ok(answers.map(|answer| answer.map(|answer| answer.payload).map_err(Into::into)).boxed())
    }

    /// Opens a stream of messages that nothing answers. The returned future ends when the stream does, and says why.
    ///
    /// # Errors
    /// If the stream can't be opened within `bound`.
    pub async fn messages(
        &self,
        envelope: Envelope,
        payloads: impl Stream<Item = Bytes> + Send + 'static,
        bound: Duration,
    ) -> Result<impl Future<Output = TransportError> + Send + 'static, TransportError> {
        let mut envelope = Some(envelope.into());
        let requests = payloads.map(move |payload| pb::ChainRequest { envelope: envelope.take(), payload });
        let mut answers = within(bound, self.client.clone().chain(requests)).await?.into_inner();
        Ok(async move {
            match answers.message().await {
                Ok(_) => TransportError::Unreachable("the peer closed the stream".into()),
                Err(status) => status.into(),
            }
        })
    }

    /// Asks for a vote, or in a pre-vote whether one would be granted.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn vote(
        &self,
        envelope: Envelope,
        pre_vote: bool,
        payload: Bytes,
        bound: Duration,
    ) -> Result<Bytes, TransportError> {
        let request = pb::VoteRequest { envelope: Some(envelope.into()), pre_vote, payload };
        Ok(within(bound, self.client.clone().vote(request)).await?.into_inner().payload)
    }

    /// Orders the peer to stand for election.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn transfer(&self, envelope: Envelope, payload: Bytes, bound: Duration) -> Result<(), TransportError> {
        let request = pb::TransferRequest { envelope: Some(envelope.into()), payload };
        within(bound, self.client.clone().transfer(request)).await?;
        Ok(())
    }

    /// Orders the peer to go on from an image, which it fetches by itself.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn install(&self, envelope: Envelope, payload: Bytes, bound: Duration) -> Result<Bytes, TransportError> {
        let request = pb::InstallRequest { envelope: Some(envelope.into()), payload };
        Ok(within(bound, self.client.clone().install(request)).await?.into_inner().payload)
    }

    /// Passes entries to the primary. False: the peer isn't it, and has proposed none of them.
    ///
    /// # Errors
    /// If there is no answer within `bound`: the entries may have been proposed.
    pub async fn propose(
        &self,
        envelope: Envelope,
        entries: Vec<Bytes>,
        bound: Duration,
    ) -> Result<Proposed, TransportError> {
        let request = pb::ProposeRequest { envelope: Some(envelope.into()), entries };
        let answer = within(bound, self.client.clone().propose(request)).await?.into_inner();
        Ok(match answer {
            pb::ProposeResponse { proposed: true, .. } => Proposed::Taken,
            pb::ProposeResponse { disk_full: true, .. } => Proposed::NoRoom,
            _ => Proposed::NotPrimary,
        })
    }

    /// Asks the primary for a read index. None: the peer isn't the confirmed primary.
    ///
    /// # Errors
    /// If there is no answer within `bound`.
    pub async fn read_index(&self, envelope: Envelope, bound: Duration) -> Result<Option<LogIndex>, TransportError> {
        let request = pb::ReadIndexRequest { envelope: Some(envelope.into()) };
        let answer = within(bound, self.client.clone().read_index(request)).await?.into_inner();
        Ok(answer.confirmed.then_some(LogIndex(answer.log_index)))
    }

    /// Passes ephemeral pushes on: to whom each goes, and what.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn deliver(
        &self,
        envelope: Envelope,
        pushes: Vec<([u8; 16], Bytes)>,
        bound: Duration,
    ) -> Result<(), TransportError> {
        let pushed = |(to, payload): ([u8; 16], Bytes)| pb::DeliveredPush { to: Bytes::copy_from_slice(&to), payload };
        let pushes = pushes.into_iter().map(pushed).collect();
        within(bound, self.client.clone().deliver(pb::DeliverRequest { envelope: Some(envelope.into()), pushes }))
            .await?;
        Ok(())
    }

    /// Fetches an image of at least that position, from `offset` on if it is still the one with the manifest `known`.
    ///
    /// # Errors
    /// If the peer has none, doesn't answer, or is the primary and `not_of_primary` is set.
    pub async fn fetch_image(
        &self,
        cluster: (ClusterId, Lineage),
        at_least: Position,
        known: Option<Bytes>,
        offset: u64,
        not_of_primary: bool,
    ) -> Result<ImageParts, TransportError> {
        let (cluster_id, lineage) = split_cluster(Some(cluster));
        let request = pb::FetchImageRequest {
            cluster_id,
            lineage,
            epoch: at_least.epoch.0,
            log_index: at_least.index.0,
            known_manifest: known.unwrap_or_default(),
            offset,
            not_of_primary,
        };
        Ok(ImageParts(within(IMAGE_PART_MAX, self.client.clone().fetch_image(request)).await?.into_inner()))
    }

    /// Reads entries of the peer's log called `log`, if it holds `anchor`.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer is of another history.
    pub async fn fetch_log(
        &self,
        cluster: (ClusterId, Lineage),
        log: &str,
        entries: Range<LogIndex>,
        anchor: Position,
        bound: Duration,
    ) -> Result<LogAnswer, TransportError> {
        let (cluster_id, lineage) = split_cluster(Some(cluster));
        let request = pb::FetchLogRequest {
            cluster_id,
            lineage,
            log: log.to_owned(),
            from_log_index: entries.start.0,
            to_log_index: entries.end.0,
            anchor: Some(position_message(anchor)),
        };
        let answer = within(bound, self.client.clone().fetch_log(request)).await?.into_inner();
        if !answer.held {
            return Ok(LogAnswer::Lacks(answer.why));
        }
        let records = answer.entries.into_iter().map(|entry| {
            let position = entry.position.map(position_of).ok_or_else(|| malformed("an entry without a position"))?;
            Ok(Record { position, payload: entry.payload })
        });
        let records = records.collect::<Result<_, TransportError>>()?;
        Ok(LogAnswer::Holds { before: answer.before.map(position_of), records })
    }

    /// Asks what the peer's machine came to at these indexes; it keeps what it has at those that are to be `kept`.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer is of another history.
    pub async fn digests(
        &self,
        cluster: (ClusterId, Lineage),
        indexes: &[LogIndex],
        kept: &[LogIndex],
        bound: Duration,
    ) -> Result<DigestsAnswer, TransportError> {
        let (cluster_id, lineage) = split_cluster(Some(cluster));
        let numbers = |indexes: &[LogIndex]| indexes.iter().map(|index| index.0).collect();
        let (log_indexes, kept_log_indexes) = (numbers(indexes), numbers(kept));
        let request = pb::DigestsRequest { cluster_id, lineage, log_indexes, kept_log_indexes };
        let answer = within(bound, self.client.clone().digests(request)).await?.into_inner();
        let digest = |at: pb::DigestAt| DigestAt {
            index: LogIndex(at.log_index),
            digest: Digest(at.digest),
            state: at.state_hash.map(Digest),
        };
        Ok(DigestsAnswer {
            disk: DiskId(answer.disk_id),
            digests: answer.digests.into_iter().map(digest).collect(),
            applied: LogIndex(answer.applied_log_index),
            quarantined: answer.quarantined,
            disputed: answer.disputed,
        })
    }
}
