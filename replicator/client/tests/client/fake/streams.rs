//! The fake's two kinds of streams, with one script of faults.

use replicator_client::proto::{self as pb, execute_result, query_result};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Response, Status, Streaming};

use super::{
    Fault, error,
    node::{Node, Outgoing},
};

/// A kind of stream.
pub(super) trait Kind: Send + 'static {
    type Message: Send + 'static;
    type Request: Send + 'static;
    type Result: Clone + Send + 'static;
    type Reply: Send + 'static;

    const NAME: &'static str;

    fn requests(message: Self::Message) -> Vec<Self::Request>;
    fn serve(node: &Node, request: &Self::Request) -> Self::Result;
    /// Refuses a request as one whose outcome is not known.
    fn lose(request: &Self::Request, primary: &Option<String>) -> Self::Result;
    fn reply(results: Vec<Self::Result>) -> Self::Reply;
}

pub(super) struct Executions;

impl Kind for Executions {
    type Message = pb::ExecuteStreamRequest;
    type Request = pb::ExecuteRequest;
    type Result = pb::ExecuteResult;
    type Reply = pb::ExecuteStreamResponse;

    const NAME: &'static str = "execute";

    fn requests(message: Self::Message) -> Vec<Self::Request> {
        message.requests
    }

    fn serve(node: &Node, request: &Self::Request) -> Self::Result {
        let mut state = node.state();
        let result = match state.execute(node.name, request) {
            Ok(response) => execute_result::Result::Response(response),
            Err(error) => execute_result::Result::Error(error),
        };
        let session_id = if state.anonymous { Default::default() } else { request.session_id.clone() };
        pb::ExecuteResult { session_id, sequence: request.sequence, result: Some(result) }
    }

    fn lose(request: &Self::Request, primary: &Option<String>) -> Self::Result {
        let lost = execute_result::Result::Error(lost(primary));
        pb::ExecuteResult { session_id: request.session_id.clone(), sequence: request.sequence, result: Some(lost) }
    }

    fn reply(results: Vec<Self::Result>) -> Self::Reply {
        pb::ExecuteStreamResponse { results }
    }
}

pub(super) struct Queries;

impl Kind for Queries {
    type Message = pb::QueryStreamRequest;
    type Request = pb::NumberedQuery;
    type Result = pb::QueryResult;
    type Reply = pb::QueryStreamResponse;

    const NAME: &'static str = "query";

    fn requests(message: Self::Message) -> Vec<Self::Request> {
        message.queries
    }

    fn serve(node: &Node, request: &Self::Request) -> Self::Result {
        let response = node.state().answer(node.name, request.query.as_ref().unwrap());
        pb::QueryResult { number: request.number, result: Some(query_result::Result::Response(response)) }
    }

    fn lose(request: &Self::Request, primary: &Option<String>) -> Self::Result {
        pb::QueryResult { number: request.number, result: Some(query_result::Result::Error(lost(primary))) }
    }

    fn reply(results: Vec<Self::Result>) -> Self::Reply {
        pb::QueryStreamResponse { results }
    }
}

fn lost(primary: &Option<String>) -> pb::Error {
    let primary_address = primary.clone().unwrap_or_default();
    pb::Error { primary_address, ..error(Code::Unavailable, pb::ErrorReason::OutcomeUnknown, 0) }
}

impl Node {
    pub(super) fn open_stream<K: Kind>(
        &self,
        _: K,
        mut incoming: Streaming<K::Message>,
    ) -> Result<Response<Outgoing<K::Reply>>, Status> {
        let fault = {
            let mut state = self.state();
            state.streams.push((self.name, K::NAME));
            state.fault(self.name)
        };
        if matches!(fault, Some(Fault::Broken)) {
            return Err(Status::unavailable("connection reset"));
        }
        let (sender, receiver) = mpsc::channel(1024);
        let node = self.clone();
        tokio::spawn(async move {
            let (mut served, mut kept) = (0, Vec::new());
            while let Some(Ok(message)) = incoming.next().await {
                let requests = K::requests(message);
                node.state().messages.push(requests.len());
                for request in requests {
                    served += 1;
                    kept.push(match &fault {
                        Some(Fault::Silent) => continue,
                        Some(Fault::LosesFirst { primary }) if served == 1 => K::lose(&request, primary),
                        _ => K::serve(&node, &request),
                    });
                    let results: Vec<_> = match fault {
                        Some(Fault::ExecutesThenSilent) => continue,
                        Some(Fault::BreaksAfter(count)) if served > count => {
                            let _ = sender.send(Err(Status::unavailable("connection reset"))).await;
                            return;
                        }
                        Some(Fault::Reverses(count)) if kept.len() < count => continue,
                        Some(Fault::Reverses(_)) => kept.drain(..).rev().collect(),
                        Some(Fault::Delays) if served == 1 => continue,
                        Some(Fault::Repeats) => kept.drain(..).flat_map(|result| [result.clone(), result]).collect(),
                        _ => std::mem::take(&mut kept),
                    };
                    for result in results {
                        if sender.send(Ok(K::reply(vec![result]))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
