//! `ReplicatorService`: what applications' clients call.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::Stream;
use replicator_machine::Command;
use replicator_proto::replicator::v1::{self as pb, replicator_service_server::ReplicatorService};
use replicator_types::Sequence;
use tonic::{Request, Response, Status, Streaming};

use super::{NodeOrBad, deadline, errors, errors::ApiError, query, session, stream, subscribe};
use crate::node::{Node, Request as ExecuteRequest};

pub(super) struct ClientApi {
    pub(super) node: Arc<Node>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ClientApi {
    fn told<T>(&self, result: Result<T, NodeOrBad>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|error| ApiError::of(&self.node, error).into())
    }
}

/// Checks a request's form.
pub(super) fn parse(node: &Node, request: pb::ExecuteRequest) -> Result<ExecuteRequest, ApiError> {
    let session = session(&request.session_id).map_err(|error| ApiError::of(node, error))?;
    if request.sequence == 0 {
        return Err(ApiError::bad("sequence is 0; a session's requests are numbered from 1"));
    }
    let (sequence, acked_below) = (Sequence(request.sequence), Sequence(request.acked_below));
    Ok(ExecuteRequest { session, sequence, acked_below, request: request.request })
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
                request_bytes_max: self.node.request_bytes_max(),
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
        let request = parse(&self.node, request.into_inner())?;
        let executed = async { self.node.executed(self.node.begin_execute(request, deadline).await?).await };
        Ok(Response::new(errors::response(&self.node, executed.await)?))
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
        Ok(Response::new(query::query(&self.node, request.into_inner(), deadline).await?))
    }

    type QueryStreamStream = Answers<pb::QueryStreamResponse>;

    async fn query_stream(
        &self,
        request: Request<Streaming<pb::QueryStreamRequest>>,
    ) -> Result<Response<Self::QueryStreamStream>, Status> {
        Ok(Response::new(Box::pin(query::query_all(self.node.clone(), request.into_inner()))))
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
