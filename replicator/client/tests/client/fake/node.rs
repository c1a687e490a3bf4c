//! One node of the fake cluster, as a gRPC service.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::Stream;
use replicator_client::proto::{self as pb, replicator_service_server as server, subscribe_response::Item};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Fault, LINEAGE, State, Table, error, status,
    streams::{Executions, Queries},
};

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: usize,
    pub(super) state: Arc<Mutex<State>>,
}

impl Node {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves a call that may have an effect, or follows the script.
    async fn serve<T>(&self, mut execute: impl FnMut(&mut State) -> Result<T, Status>) -> Result<Response<T>, Status> {
        let fault = self.state().fault(self.name);
        if matches!(fault, Some(Fault::ExecutesThenBroken | Fault::ExecutesThenSilent)) {
            let _ = execute(&mut self.state());
        }
        match fault {
            Some(Fault::NotReady { primary }) => {
                Err(status(&error(Code::Unavailable, pb::ErrorReason::NotReady, 0), primary))
            }
            Some(Fault::Broken | Fault::ExecutesThenBroken) => Err(Status::unavailable("connection reset")),
            Some(Fault::Silent | Fault::ExecutesThenSilent) => std::future::pending().await,
            _ => execute(&mut self.state()).map(Response::new),
        }
    }
}

pub(super) type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl server::ReplicatorService for Node {
    type ExecuteStreamStream = Outgoing<pb::ExecuteStreamResponse>;
    type QueryStreamStream = Outgoing<pb::QueryStreamResponse>;
    type SubscribeStream = Outgoing<pb::SubscribeResponse>;

    async fn open_session(
        &self,
        request: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionResponse>, Status> {
        let ttl_ms = request.into_inner().ttl_ms;
        self.serve(|state| {
            let session_id = vec![state.sessions.len() as u8 + 1; 16];
            state.sessions.insert(session_id.clone(), Table::default());
            let session_id = session_id.into();
            Ok(pb::OpenSessionResponse {
                session_id,
                ttl_ms,
                window: 16,
                lineage: LINEAGE,
                log_index: 5,
                request_bytes_max: 1 << 20,
            })
        })
        .await
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        self.state().sessions.remove(&request.into_inner().session_id[..]);
        Ok(Response::new(pb::CloseSessionResponse { log_index: 1 }))
    }

    async fn keep_alive(&self, _: Request<pb::KeepAliveRequest>) -> Result<Response<pb::KeepAliveResponse>, Status> {
        self.serve(|_| Ok(pb::KeepAliveResponse { log_index: 1 })).await
    }

    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Result<Response<pb::ExecuteResponse>, Status> {
        let request = request.into_inner();
        self.serve(|state| state.execute(self.name, &request).map_err(|error| status(&error, None))).await
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<pb::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        self.open_stream(Executions, request.into_inner())
    }

    async fn query_stream(
        &self,
        request: Request<Streaming<pb::QueryStreamRequest>>,
    ) -> Result<Response<Self::QueryStreamStream>, Status> {
        self.open_stream(Queries, request.into_inner())
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        let request = request.into_inner();
        self.serve(|state| Ok(state.answer(self.name, &request))).await
    }

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let after = request.into_inner().after;
        let mut state = self.state();
        state.subscriptions.push((self.name, after));
        let fault = state.fault(self.name);
        if matches!(fault, Some(Fault::Broken)) {
            return Err(Status::unavailable("connection reset"));
        }
        if state.cursor_expired {
            return Err(status(&error(Code::OutOfRange, pb::ErrorReason::CursorExpired, 0), None));
        }
        let cursor = |&(log_index, ordinal): &(u64, u32)| pb::Cursor { lineage: LINEAGE, log_index, ordinal };
        let start = after.unwrap_or(cursor(&(1, 0)));
        let mut from = state.events.partition_point(|&event| event <= (start.log_index, start.ordinal));
        let mut messages = vec![Ok(Item::Progress(start))];
        let mut count = usize::MAX;
        if let Some(Fault::DoublesThenBreaks(sent)) = fault {
            from = from.saturating_sub(1);
            count = sent;
        }
        let cut = count < state.events.len() - from;
        for event in state.events.iter().skip(from).take(count) {
            if state.ephemerals {
                let payload = format!("before {}.{}", event.0, event.1).into();
                messages.push(Ok(Item::Ephemeral(pb::EphemeralPush { topic: "t".into(), payload })));
            }
            let payload = format!("{}.{}", event.0, event.1).into();
            messages.push(Ok(Item::Push(pb::Push { cursor: Some(cursor(event)), topic: "t".into(), payload })));
        }
        if cut {
            messages.push(Err(Status::unavailable("connection reset")));
        }
        let messages = messages.into_iter().map(|item| item.map(|item| pb::SubscribeResponse { item: Some(item) }));
        // A stream that isn't cut stays open.
        let stream = futures::StreamExt::chain(tokio_stream::iter(messages), futures::stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
}
