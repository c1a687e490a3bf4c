//! `ExecuteStream`: many requests of one client under way at once, results as they come.

use std::{collections::VecDeque, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, stream::FuturesUnordered};
use replicator_proto::replicator::v1 as pb;
use tokio::sync::mpsc;
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
        let mut under_way = FuturesUnordered::new();
        let mut queue = VecDeque::new();
        let mut open = true;
        while open || !queue.is_empty() || !under_way.is_empty() {
            let room = under_way.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                Some(first) = under_way.next(), if !under_way.is_empty() => {
                    let mut batch = vec![first];
                    while batch.len() < RESULTS_MAX {
                        match under_way.next().now_or_never() {
                            Some(Some(result)) => batch.push(result),
                            _ => break,
                        }
                    }
                    if results.send(Ok(pb::ExecuteStreamResponse { results: batch })).await.is_err() {
                        return; // The client is gone; what it proposed goes its way.
                    }
                }
                () = results.closed() => return,
                () = std::future::ready(()), if room && !queue.is_empty() => {
                    let Some(request): Option<pb::ExecuteRequest> = queue.pop_front() else { continue };
                    let (session_id, sequence) = (request.session_id.clone(), request.sequence);
                    // In order: the next one begins after this one has its place.
                    let begun = begin(&node, request, Node::deadline(DEADLINE)).await;
                    let node = node.clone();
                    under_way.push(async move {
                        let result = match outcome(&node, begun).await {
                            Ok(response) => pb::execute_result::Result::Response(response),
                            Err(error) => pb::execute_result::Result::Error(error.into()),
                        };
                        pb::ExecuteResult { session_id, sequence, result: Some(result) }
                    });
                }
                message = requests.message(), if open && queue.is_empty() => match message {
                    Ok(Some(message)) => queue.extend(message.requests),
                    Ok(None) => open = false,
                    Err(status) => {
                        let _ = results.send(Err(status)).await;
                        return;
                    }
                },
            }
        }
    });
    ReceiverStream::new(answered)
}
