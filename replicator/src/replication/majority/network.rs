//! openraft's view of the peers.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use openraft::{
    OptionalSend, RaftNetworkFactory,
    alias::{SnapshotOf, VoteOf},
    base::{BoxFuture, BoxStream as RaftStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, stream_append_sequential, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use replicator_types::{
    DiskId,
    codec::{self, Format},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::types::{
    Address, TypeConfig, WireAppend, WireAppended, WireInstall, WireInstalled, WireTransfer, WireVote, WireVoted,
    position,
};
use crate::transport::{Envelope, PeerChannel, Peers, TransportError};

/// How long one call waits for a peer that fetches an image; the next one finds it further.
const INSTALL_MAX: Duration = Duration::from_secs(60);

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Makes links to peers.
pub(super) struct Links {
    pub(super) peers: Peers,
    /// With this replica as sender; the receiver is filled in.
    pub(super) envelope: Envelope,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: DiskId, address: &Address) -> Link {
        let channel = self.peers.channel(&address.peer);
        Link {
            node: address.node.clone(),
            channel,
            envelope: Envelope { to: target, ..self.envelope },
            heartbeats: false,
            exchange: None,
            answers: true,
        }
    }

    async fn new_heartbeat_client(&mut self, target: DiskId, address: &Address) -> Link {
        Link { heartbeats: true, ..self.new_client(target, address).await }
    }
}

/// Calls from one of the group's tasks to one peer.
pub(super) struct Link {
    node: String,
    channel: Result<PeerChannel, TransportError>,
    envelope: Envelope,
    /// Whether it carries heartbeats: one request at a time, all on one stream, which is kept open.
    heartbeats: bool,
    exchange: Option<Exchange>,
    /// Whether the peer answered last time, so that a change is told once.
    answers: bool,
}

/// An open stream on which each request waits for its answer: heartbeats.
struct Exchange {
    requests: mpsc::Sender<Bytes>,
    /// Never locked: the mutex only makes the stream shareable, as openraft demands of a network.
    answers: Mutex<BoxStream<'static, Result<Bytes, TransportError>>>,
}

fn unreachable(error: &TransportError) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn network(error: &TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Unreachable(_) => unreachable(error),
        _ => RPCError::Network(NetworkError::new(error)),
    }
}

fn decoded<T: Format>(bytes: &[u8]) -> Rpc<T> {
    codec::decode(bytes).map_err(|error| network(&TransportError::Malformed(error.to_string())))
}

impl Link {
    fn channel(&self) -> Rpc<&PeerChannel> {
        self.channel.as_ref().map_err(unreachable)
    }

    async fn ask(
        &self,
        pre_vote: bool,
        request: VoteRequest<TypeConfig>,
        bound: Duration,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let payload = codec::encode(&WireVote(request)).into();
        let answer = self.channel()?.vote(self.envelope, pre_vote, payload, bound).await.map_err(|e| network(&e))?;
        Ok(decoded::<WireVoted>(&answer)?.0)
    }

    /// Sends one request on the exchange, opening it first if need be. Any failure closes it.
    async fn exchange(&mut self, payload: Bytes, bound: Duration) -> Result<Bytes, TransportError> {
        let mut exchange = match self.exchange.take() {
            Some(exchange) => exchange,
            None => {
                let channel = self.channel.as_ref().map_err(Clone::clone)?;
                let (requests, outgoing) = mpsc::channel(1);
                let answers = channel.append(self.envelope, ReceiverStream::new(outgoing), bound).await?;
                Exchange { requests, answers: Mutex::new(answers) }
            }
        };
        let closed = || TransportError::Unreachable("the peer closed the stream".into());
        exchange.requests.send(payload).await.map_err(|_| closed())?;
        let answers = exchange.answers.get_mut().unwrap_or_else(PoisonError::into_inner);
        let answer = tokio::time::timeout(bound, answers.next()).await;
        let answer =
            answer.map_err(|_| TransportError::Unreachable("no answer in time".into()))?.ok_or_else(closed)??;
        self.exchange = Some(exchange);
        Ok(answer)
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let payload = codec::encode(&WireAppend(request)).into();
        let answer = self.exchange(payload, option.hard_ttl()).await;
        match &answer {
            Ok(_) if !self.answers => tracing::info!(node = self.node, "answers again"),
            Err(error) if self.answers => tracing::warn!(node = self.node, %error, "doesn't answer"),
            _ => {}
        }
        self.answers = answer.is_ok();
        let answer = answer.map_err(|error| network(&error))?;
        Ok(match decoded::<WireAppended>(&answer)?.0 {
            Ok(durable) if durable == last => AppendEntriesResponse::Success,
            Ok(durable) => AppendEntriesResponse::PartialSuccess(durable),
            Err(StreamAppendError::Conflict(_)) => {
                self.exchange = None; // The receiver ends a stream with its first error.
                AppendEntriesResponse::Conflict
            }
            Err(StreamAppendError::HigherVote(vote)) => {
                self.exchange = None;
                AppendEntriesResponse::HigherVote(vote)
            }
        })
    }

    /// Takes the first request before it connects: openraft backs off from a peer that fails by holding its requests back, and a
    /// connection that fails without ever asking for one would be tried again at once, for ever.
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<RaftStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let Some(first) = input.next().await else { return Ok(Box::pin(stream::empty()) as RaftStream<'s, _>) };
            let requests = stream::iter([first]).chain(input);
            let payloads = requests.map(|request| codec::encode(&WireAppend(request)).into());
            let answers = self.channel()?.append(self.envelope, payloads, option.hard_ttl()).await;
            let answers = answers.map_err(|error| network(&error))?.map(|answer| {
                let answer = answer.map_err(|error| network(&error))?;
                Ok(decoded::<WireAppended>(&answer)?.0)
            });
            Ok(Box::pin(answers) as RaftStream<'s, _>)
        })
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask(false, request, option.hard_ttl()).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask(true, request, option.hard_ttl()).await
    }

    /// The receiver fetches the image by itself, and goes on where it was if this is asked again.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, ()>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let at = snapshot.meta.last_log_id.as_ref().map(position).unwrap_or_default();
        let payload = codec::encode(&WireInstall(vote, at)).into();
        let failed = |error: TransportError| StreamingError::Unreachable(Unreachable::new(&error));
        let channel = self.channel.as_ref().map_err(|error| failed(error.clone()))?;
        let answer = tokio::select! {
            answer = channel.install(self.envelope, payload, INSTALL_MAX) => answer.map_err(failed)?,
            closed = cancel => return Err(closed.into()),
        };
        let answer = codec::decode::<WireInstalled>(&answer);
        answer.map(|answer| answer.0).map_err(|error| failed(TransportError::Malformed(error.to_string())))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let payload = codec::encode(&WireTransfer(request)).into();
        let sent = self.channel()?.transfer(self.envelope, payload, option.hard_ttl()).await;
        sent.map(Ok).map_err(|error| network(&error))
    }
}
