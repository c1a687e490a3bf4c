//! `ExecuteStream`: many requests of one client under way at once, results as they come.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::Stream;
use replicator_proto::replicator::v1::{self as pb, execute_result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    DEADLINE,
    client::parse,
    errors::{self, ApiError},
};
use crate::node::{Finished, Node};

/// Requests of one stream under way at once; the stream is not read while there are as many.
pub(super) const IN_FLIGHT_MAX: usize = 4_096;
/// Results in one message, about.
pub(super) const RESULTS_MAX: usize = 256;

/// Which request of a stream: its session and number, as they came.
type Tag = (Bytes, u64);

fn result((session_id, sequence): Tag, told: Result<pb::ExecuteResponse, ApiError>) -> pb::ExecuteResult {
    let result = match told {
        Ok(response) => execute_result::Result::Response(response),
        Err(error) => execute_result::Result::Error(error.into()),
    };
    pb::ExecuteResult { session_id, sequence, result: Some(result) }
}

/// Executes what comes in, and yields the results.
pub(super) fn execute_all(
    node: Arc<Node>,
    mut requests: Streaming<pb::ExecuteStreamRequest>,
) -> impl Stream<Item = Result<pb::ExecuteStreamResponse, Status>> + Send {
    let (outgoing, answered) = mpsc::channel::<Result<pb::ExecuteStreamResponse, Status>>(16);
    tokio::spawn(async move {
        let mut pipeline = node.pipeline::<Tag>();
        let mut queue: VecDeque<pb::ExecuteRequest> = VecDeque::new();
        let mut open = true;
        while open || !queue.is_empty() || !pipeline.is_empty() {
            let room = IN_FLIGHT_MAX.saturating_sub(pipeline.len());
            let mut results = Vec::new();
            tokio::select! {
                biased;
                finished = pipeline.finished(), if !pipeline.is_empty() => {
                    results.extend(finished.into_iter().map(|(tag, executed)| result(tag, errors::response(&node, executed))));
                }
                () = outgoing.closed() => return, // The client is gone; what it proposed goes its way.
                () = std::future::ready(()), if room > 0 && !queue.is_empty() => {
                    let mut good = Vec::with_capacity(queue.len().min(room));
                    for request in queue.drain(..queue.len().min(room)) {
                        let tag = (request.session_id.clone(), request.sequence);
                        match parse(&node, request) {
                            Ok(request) => good.push((tag, request)),
                            Err(error) => results.push(result(tag, Err(error))),
                        }
                    }
                    let failed: Vec<Finished<Tag>> = pipeline.begin(good.into_iter(), Node::deadline(DEADLINE)).await;
                    results.extend(failed.into_iter().map(|(tag, error)| result(tag, errors::response(&node, error))));
                }
                message = requests.message(), if open && queue.is_empty() => match message {
                    Ok(Some(message)) => queue.extend(message.requests),
                    Ok(None) => open = false,
                    Err(status) => {
                        let _ = outgoing.send(Err(status)).await;
                        return;
                    }
                },
            }
            while !results.is_empty() {
                let rest = results.split_off(results.len().min(RESULTS_MAX));
                if outgoing.send(Ok(pb::ExecuteStreamResponse { results })).await.is_err() {
                    return;
                }
                results = rest;
            }
        }
    });
    ReceiverStream::new(answered)
}
