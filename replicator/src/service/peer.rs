//! `PeerService`: what the other nodes call.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use replicator_machine::Push;
use replicator_proto::replicator::v1::{self as pb, peer_service_server::PeerService};
use replicator_storage::{Matching, Record, SnapshotPiece};
use replicator_types::{DiskId, Incarnation, LogIndex, Position, codec};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::modules;
use crate::{
    node::{EnvelopeError, Node, Running},
    replication::PeerMessageError,
    transport::{DigestAt, Envelope, Hello, Join, Proposed, cluster_of, position_message, position_of, split_cluster},
};

pub(super) struct PeerApi {
    pub(super) node: Arc<Node>,
}

impl From<EnvelopeError> for Status {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Refused(why) => Self::failed_precondition(why),
            EnvelopeError::NotReady(why) => Self::unavailable(why),
            EnvelopeError::Storage(error) => Self::internal(error.to_string()),
        }
    }
}

impl From<PeerMessageError> for Status {
    fn from(error: PeerMessageError) -> Self {
        match error {
            PeerMessageError::Malformed(_) => Self::invalid_argument(error.to_string()),
            PeerMessageError::Stopped(_) => Self::unavailable(error.to_string()),
        }
    }
}

fn envelope(envelope: Option<pb::Envelope>) -> Result<Envelope, Status> {
    Envelope::try_from(envelope).map_err(Status::invalid_argument)
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream whose first message was let in.
struct Admitted {
    from: DiskId,
    running: Arc<Running>,
    /// Of all its messages, up to the first that can't be read.
    payloads: BoxStream<'static, Bytes>,
}

/// Waits for the first message, whose envelope counts for all; None: there was none.
async fn admit_stream<M: Send + 'static>(
    node: &Node,
    mut messages: Streaming<M>,
    split: fn(M) -> (Option<pb::Envelope>, Bytes),
) -> Result<Option<Admitted>, Status> {
    let Some(first) = messages.message().await? else { return Ok(None) };
    let (sender, payload) = split(first);
    let sender = envelope(sender)?;
    let running = node.admit(&sender).await?;
    let rest = stream::unfold(messages, async |mut messages| Some((messages.message().await.ok()??, messages)));
    let rest = rest.map(move |message| split(message).1);
    Ok(Some(Admitted { from: sender.from, running, payloads: stream::iter([payload]).chain(rest).boxed() }))
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    async fn hello(&self, request: Request<pb::HelloRequest>) -> Result<Response<pb::HelloResponse>, Status> {
        let request = request.into_inner();
        let hello = Hello {
            cluster: cluster_of(&request.cluster_id, request.lineage).map_err(Status::invalid_argument)?,
            node: request.node_id,
            disk: DiskId(request.disk_id),
            incarnation: Incarnation(request.incarnation),
            start: request.start,
            last_log_index: LogIndex(request.last_log_index),
            floor: LogIndex(request.floor_log_index),
        };
        let answer = self.node.on_hello(hello).await?;
        let (cluster_id, lineage) = split_cluster(answer.cluster);
        Ok(Response::new(pb::HelloResponse {
            cluster_id,
            lineage,
            node_id: answer.node,
            disk_id: answer.disk.0,
            known_incarnation: answer.known_incarnation.0,
            known_durable_index: answer.known_durable.0,
            last_log_index: answer.last_log_index.0,
            replaced: answer.replaced,
            disk_full: answer.disk_full,
        }))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        let request = request.into_inner();
        let join = Join {
            node: request.node_id,
            disk: DiskId(request.disk_id),
            client_address: request.client_address,
            peer_address: request.peer_address,
            witness: request.witness,
        };
        let answer = self.node.on_join(join).await;
        let (cluster_id, lineage) = split_cluster(answer.cluster);
        Ok(Response::new(pb::JoinResponse {
            cluster_id,
            lineage,
            primary_peer_address: answer.primary_peer_address.unwrap_or_default(),
            accepted: answer.accepted,
            detail: answer.detail,
        }))
    }

    type AppendStream = Answers<pb::AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let node = self.node.clone();
        // The answer's head leaves at once: the sender's first message may wait for it.
        let (answers, outgoing) = mpsc::channel(64);
        tokio::spawn(async move {
            let admitted = admit_stream(&node, request.into_inner(), |message| (message.envelope, message.payload));
            let Admitted { running, payloads, .. } = match admitted.await {
                Ok(Some(admitted)) => admitted,
                Ok(None) => return,
                Err(status) => return drop(answers.send(Err(status)).await),
            };
            let mut appended = running.strategy.on_append(payloads);
            while let Some(answer) = appended.next().await {
                let answer = answer.map(|payload| pb::AppendResponse { payload }).map_err(Status::from);
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    type ChainStream = Answers<pb::ChainResponse>;

    async fn chain(
        &self,
        request: Request<Streaming<pb::ChainRequest>>,
    ) -> Result<Response<Self::ChainStream>, Status> {
        let node = self.node.clone();
        let (ended, outgoing) = mpsc::channel(1);
        tokio::spawn(async move {
            let taken = async {
                let admitted = admit_stream(&node, request.into_inner(), |message| (message.envelope, message.payload));
                if let Some(Admitted { from, running, payloads }) = admitted.await? {
                    running.strategy.on_messages(from, payloads).await?;
                }
                Ok::<_, Status>(())
            };
            if let Err(status) = taken.await {
                let _ = ended.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        let running = self.node.admit(&envelope(request.envelope)?).await?;
        let payload = running.strategy.on_vote(request.pre_vote, request.payload).await?;
        Ok(Response::new(pb::VoteResponse { payload }))
    }

    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Result<Response<pb::TransferResponse>, Status> {
        let request = request.into_inner();
        let running = self.node.admit(&envelope(request.envelope)?).await?;
        running.strategy.on_transfer(request.payload).await?;
        Ok(Response::new(pb::TransferResponse {}))
    }

    async fn install(&self, request: Request<pb::InstallRequest>) -> Result<Response<pb::InstallResponse>, Status> {
        let request = request.into_inner();
        let envelope = envelope(request.envelope)?;
        let running = self.node.admit(&envelope).await?;
        let payload = running.strategy.on_install(request.payload).await?;
        Ok(Response::new(pb::InstallResponse { payload }))
    }

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeResponse>, Status> {
        let request = request.into_inner();
        let running = self.node.admit(&envelope(request.envelope)?).await?;
        let answer = self.node.on_propose(&running, request.entries).await?;
        let (proposed, disk_full) = (answer == Proposed::Taken, answer == Proposed::NoRoom);
        Ok(Response::new(pb::ProposeResponse { proposed, disk_full }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        let running = self.node.admit(&envelope(request.into_inner().envelope)?).await?;
        let index = running.strategy.read_index().await;
        Ok(Response::new(pb::ReadIndexResponse { confirmed: index.is_some(), log_index: index.unwrap_or_default().0 }))
    }

    async fn deliver(&self, request: Request<pb::DeliverRequest>) -> Result<Response<pb::DeliverResponse>, Status> {
        let request = request.into_inner();
        self.node.admit(&envelope(request.envelope)?).await?;
        let pushed = |push: pb::DeliveredPush| {
            let to = push.to[..].try_into().map_err(|_| Status::invalid_argument("a target has 16 bytes"))?;
            Ok::<_, Status>(Push { to, payload: push.payload })
        };
        let pushes = request.pushes.into_iter().map(pushed).collect::<Result<_, _>>()?;
        self.node.on_deliver(pushes).await?;
        Ok(Response::new(pb::DeliverResponse {}))
    }

    type FetchImageStream = Answers<pb::FetchImageResponse>;

    async fn fetch_image(
        &self,
        request: Request<pb::FetchImageRequest>,
    ) -> Result<Response<Self::FetchImageStream>, Status> {
        let pb::FetchImageRequest { cluster_id, lineage, epoch, log_index, known_manifest, offset, not_of_primary } =
            request.into_inner();
        let cluster = cluster_of(&cluster_id, lineage).map_err(Status::invalid_argument)?;
        // Whoever belongs to this history may have its images: a new disk knows none of ours yet.
        if cluster.is_none() || cluster != self.node.status().cluster {
            return Err(Status::failed_precondition("this node takes no part in that cluster's history"));
        }
        if not_of_primary && self.node.is_primary() {
            return Err(Status::failed_precondition("this node is the primary; another one's image is wanted first"));
        }
        let at_least = Position::new(epoch, log_index);
        let served = self.node.serve_image(at_least, &known_manifest, offset).await;
        let served = served.map_err(|error| Status::internal(error.to_string()))?;
        let served = served.ok_or_else(|| Status::not_found(format!("no image of {at_least} here")))?;
        let manifest = served.manifest();
        #[cfg(feature = "planted-wrong-answers")]
        let manifest = &super::planted::given(manifest);
        let manifest = codec::encode(manifest).into();
        let first = pb::FetchImageResponse { manifest, ..pb::FetchImageResponse::default() };
        let pieces = stream::try_unfold(served, async |mut served| {
            let piece = served.next().await.map_err(|error| Status::internal(error.to_string()))?;
            Ok(piece.map(|SnapshotPiece { offset, bytes, checksum }| {
                (pb::FetchImageResponse { manifest: Bytes::new(), offset, piece: bytes, checksum }, served)
            }))
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(pieces))))
    }

    async fn fetch_log(&self, request: Request<pb::FetchLogRequest>) -> Result<Response<pb::FetchLogResponse>, Status> {
        let pb::FetchLogRequest { cluster_id, lineage, log, from_log_index, to_log_index, anchor } =
            request.into_inner();
        let cluster = cluster_of(&cluster_id, lineage).map_err(Status::invalid_argument)?;
        let anchor = position_of(anchor.ok_or_else(|| Status::invalid_argument("the anchor is missing"))?);
        let entries = LogIndex(from_log_index)..LogIndex(to_log_index);
        let lacks = |why: String| pb::FetchLogResponse { why, ..pb::FetchLogResponse::default() };
        let answer = match self.node.serve_log(cluster, &log, entries, anchor).await? {
            Matching::Held { before, records } => pb::FetchLogResponse {
                held: true,
                before: before.map(position_message),
                entries: records
                    .into_iter()
                    .map(|Record { position, payload }| pb::LogEntry {
                        position: Some(position_message(position)),
                        payload,
                    })
                    .collect(),
                ..pb::FetchLogResponse::default()
            },
            Matching::Purged(through) => lacks(format!("its log begins after {through}")),
            Matching::Other(other) => lacks(format!("its log has {other} in the place of {anchor}")),
            Matching::Short(last) => {
                lacks(last.map_or("its log is empty".into(), |last| format!("its log ends at {last}, before {anchor}")))
            }
        };
        Ok(Response::new(answer))
    }

    async fn modules(&self, request: Request<pb::ModulesRequest>) -> Result<Response<pb::ModulesResponse>, Status> {
        let request = request.into_inner();
        self.node.admit(&envelope(request.envelope)?).await?;
        modules::held(&self.node, &request.wanted, request.all).await
    }

    async fn prepare_module(
        &self,
        request: Request<pb::PrepareModuleRequest>,
    ) -> Result<Response<pb::PrepareModuleResponse>, Status> {
        let request = request.into_inner();
        let running = self.node.admit(&envelope(request.envelope)?).await?;
        modules::prepare(&self.node, running, &request.sha256, request.wait_ms).await
    }

    async fn digests(&self, request: Request<pb::DigestsRequest>) -> Result<Response<pb::DigestsResponse>, Status> {
        let pb::DigestsRequest { cluster_id, lineage, log_indexes, kept_log_indexes } = request.into_inner();
        let cluster = cluster_of(&cluster_id, lineage).map_err(Status::invalid_argument)?;
        let indexes = |numbers: Vec<u64>| numbers.into_iter().map(LogIndex).collect::<Vec<_>>();
        let answer = self.node.on_digests(cluster, &indexes(log_indexes), &indexes(kept_log_indexes))?;
        let digest = |at: DigestAt| pb::DigestAt {
            log_index: at.index.0,
            digest: at.digest.0,
            state_hash: at.state.map(|state| state.0),
        };
        Ok(Response::new(pb::DigestsResponse {
            node_id: self.node.config().name.to_string(),
            disk_id: answer.disk.0,
            digests: answer.digests.into_iter().map(digest).collect(),
            applied_log_index: answer.applied.0,
            quarantined: answer.quarantined,
            disputed: answer.disputed,
        }))
    }

    type FetchModuleStream = Answers<pb::FetchModuleResponse>;

    async fn fetch_module(
        &self,
        request: Request<pb::FetchModuleRequest>,
    ) -> Result<Response<Self::FetchModuleStream>, Status> {
        let chunks = modules::chunks(&self.node, &request.get_ref().sha256).await?;
        Ok(Response::new(Box::pin(stream::iter(chunks.map(|chunk| Ok(pb::FetchModuleResponse { chunk }))))))
    }
}
