//! `ReplicatorService`: what applications' clients call.

use std::{pin::Pin, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::Stream;
use replicator_machine::{Command, Refusal};
use replicator_proto::replicator::v1::{self as pb, replicator_service_server::ReplicatorService};
use replicator_types::{Lineage, LogIndex, Sequence};
use tonic::{Request, Response, Status, Streaming};

use super::{NodeOrBad, deadline, errors, errors::ApiError, session, stream, subscribe};
use crate::node::{Node, NodeError, Pending};

pub(super) struct ClientApi {
    pub(super) node: Arc<Node>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ClientApi {
    fn told<T>(&self, result: Result<T, NodeOrBad>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|error| ApiError::of(&self.node, error).into())
    }
}

/// Begins to execute a client's request: it has its place in the order on return.
pub(super) async fn begin(node: &Node, request: pb::ExecuteRequest, deadline: Instant) -> Result<Pending, ApiError> {
    let begun = async {
        let session = session(&request.session_id)?;
        if request.sequence == 0 {
            return Err(NodeOrBad::Bad("sequence is 0; a session's requests are numbered from 1".into()));
        }
        let (sequence, acked_below) = (Sequence(request.sequence), Sequence(request.acked_below));
        Ok(node.begin_execute(session, sequence, acked_below, request.request, deadline).await?)
    };
    begun.await.map_err(|error| ApiError::of(node, error))
}

/// Waits for the outcome of what [`begin`] began.
pub(super) async fn outcome(node: &Node, begun: Result<Pending, ApiError>) -> Result<pb::ExecuteResponse, ApiError> {
    let executed = node.executed(begun?).await.map_err(|error| ApiError::of(node, error.into()))?;
    errors::response(node, executed)
}

#[tonic::async_trait]
impl ReplicatorService for ClientApi {
    async fn open_session(
        &self,
        request: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionResponse>, Status> {
        let deadline = deadline(&request);
        let ttl_us = request.into_inner().ttl_ms.saturating_mul(1_000);
        let opened = async {
            let (session, ttl_us, window, index) = self.node.open_session(ttl_us, deadline).await?;
            Ok(pb::OpenSessionResponse {
                session_id: Bytes::copy_from_slice(&session.0),
                ttl_ms: ttl_us / 1_000,
                window,
                lineage: self.node.lineage()?.0,
                log_index: index.0,
            })
        };
        self.told(opened.await)
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        let deadline = deadline(&request);
        let closed = async {
            let session = session(&request.get_ref().session_id)?;
            let index = self.node.end_or_keep(Command::CloseSession { session }, deadline).await?;
            Ok(pb::CloseSessionResponse { log_index: index.0 })
        };
        self.told(closed.await)
    }

    async fn keep_alive(
        &self,
        request: Request<pb::KeepAliveRequest>,
    ) -> Result<Response<pb::KeepAliveResponse>, Status> {
        let deadline = deadline(&request);
        let kept = async {
            let session = session(&request.get_ref().session_id)?;
            let index = self.node.end_or_keep(Command::KeepAlive { session }, deadline).await?;
            Ok(pb::KeepAliveResponse { log_index: index.0 })
        };
        self.told(kept.await)
    }

    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Result<Response<pb::ExecuteResponse>, Status> {
        let deadline = deadline(&request);
        let begun = begin(&self.node, request.into_inner(), deadline).await;
        Ok(Response::new(outcome(&self.node, begun).await?))
    }

    type ExecuteStreamStream = Answers<pb::ExecuteStreamResponse>;

    async fn execute_stream(
        &self,
        request: Request<Streaming<pb::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        Ok(Response::new(Box::pin(stream::execute_all(self.node.clone(), request.into_inner()))))
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let answered = async {
            let client = match &request.session_id[..] {
                [] => None,
                id => Some(session(id)?),
            };
            self.node.check_lineage(Lineage(request.lineage))?;
            let must_see = match request.consistency() {
                pb::Consistency::Unspecified | pb::Consistency::Linearizable => {
                    Some(self.node.read_index(deadline).await?)
                }
                pb::Consistency::Session => Some(LogIndex(request.min_log_index)),
                pb::Consistency::Local => None,
            };
            if let Some(index) = must_see {
                self.node.wait_applied(index, deadline).await?;
            }
            let answered = self.node.query(client, request.request.clone(), deadline).await;
            let (response, index) = match answered {
                // This replica may not have heard of the session yet.
                Err(NodeError::Refused(Refusal::SessionExpired)) => {
                    let index = self.node.read_index(deadline).await?;
                    self.node.wait_applied(index, deadline).await?;
                    self.node.query(client, request.request, deadline).await?
                }
                answered => answered?,
            };
            let node_id = self.node.config().name.to_string();
            Ok(pb::QueryResponse { response, log_index: index.0, node_id })
        };
        self.told(answered.await)
    }

    type SubscribeStream = Answers<pb::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let deadline = deadline(&request);
        let events = subscribe::subscribe(self.node.clone(), request.into_inner(), deadline).await;
        let events = events.map_err(|error| Status::from(ApiError::of(&self.node, error)))?;
        Ok(Response::new(Box::pin(events)))
    }
}
