//! `ExecuteStream`: many requests of one client under way at once, results as they come.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream::FuturesUnordered};
use replicator_proto::replicator::v1 as pb;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    DEADLINE,
    client::{begin, outcome},
};
use crate::node::Node;

/// Requests of one stream under way at once; the stream is not read while there are as many.
const IN_FLIGHT_MAX: usize = 4_096;
/// Results in one message.
const RESULTS_MAX: usize = 256;

/// Executes what comes in, and yields the results.
pub(super) fn execute_all(
    node: Arc<Node>,
    mut requests: Streaming<pb::ExecuteStreamRequest>,
) -> impl Stream<Item = Result<pb::ExecuteStreamResponse, Status>> + Send {
    let (results, answered) = mpsc::channel::<Result<pb::ExecuteStreamResponse, Status>>(16);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(first) = under_way.next(), if !under_way.is_empty() => {
                    let mut batch = vec![first];
                    while batch.len() < RESULTS_MAX {
                        match futures::FutureExt::now_or_never(under_way.next()) {
                            Some(Some(result)) => batch.push(result),
                            _ => break,
                        }
                    }
                    if results.send(Ok(pb::ExecuteStreamResponse { results: batch })).await.is_err() {
                        return; // The client is gone; what it proposed goes its way.
                    }
                }
                message = requests.message(), if open && permits.available_permits() > 0 => match message {
                    Ok(Some(message)) => {
                        for request in message.requests {
                            let Ok(permit) = permits.clone().acquire_owned().await else { return };
                            let node = node.clone();
                            let (session_id, sequence) = (request.session_id.clone(), request.sequence);
                            let begun = begin(&node, request, Node::deadline(DEADLINE)).await;
                            under_way.push(async move {
                                let result = match outcome(&node, begun).await {
                                    Ok(response) => pb::execute_result::Result::Response(response),
                                    Err(error) => pb::execute_result::Result::Error(error.into()),
                                };
                                drop(permit);
                                pb::ExecuteResult { session_id, sequence, result: Some(result) }
                            });
                        }
                    }
                    Ok(None) => open = false,
                    Err(status) => {
                        let _ = results.send(Err(status)).await;
                        return;
                    }
                },
                () = results.closed() => return,
            }
        }
    });
    ReceiverStream::new(answered)
}
