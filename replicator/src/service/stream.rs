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
/// Results in one message.
pub(super) const RESULTS_MAX: usize = 256;
/// Bytes of replies in one message, unless a single one is longer: a message that is too large would end the stream for all who share it.
const RESULT_BYTES_MAX: usize = 1 << 20;

/// Which request of a stream: its session and number, as they came.
type Tag = (Bytes, u64);

fn result((session_id, sequence): Tag, told: Result<pb::ExecuteResponse, ApiError>) -> pb::ExecuteResult {
    let result = match told {
        Ok(response) => execute_result::Result::Response(response),
        Err(error) => execute_result::Result::Error(error.into()),
    };
    pb::ExecuteResult { session_id, sequence, result: Some(result) }
}

fn response_bytes(result: &pb::ExecuteResult) -> usize {
    match &result.result {
        Some(execute_result::Result::Response(response)) => response.response.len(),
        _ => 0,
    }
}

/// Cuts results into messages of bounded size. `bytes`: what a result's reply takes.
pub(super) fn messages<T>(results: Vec<T>, bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = Vec<T>> {
    let mut results = results.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = results.next()?;
        let mut size = bytes(&first);
        let mut message = vec![first];
        while message.len() < RESULTS_MAX
            && let Some(next) = results.next_if(|next| size + bytes(next) <= RESULT_BYTES_MAX)
        {
            size += bytes(&next);
            message.push(next);
        }
        Some(message)
    })
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
            for results in messages(results, response_bytes) {
                if outgoing.send(Ok(pb::ExecuteStreamResponse { results })).await.is_err() {
                    return;
                }
            }
        }
    });
    ReceiverStream::new(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_in_results_and_bytes() {
        let sizes = |results: Vec<usize>| messages(results, |bytes| *bytes).map(|m| m.len()).collect::<Vec<_>>();
        assert_eq!(sizes(vec![1; 600]), [256, 256, 88]);
        assert_eq!(sizes(vec![400 << 10; 5]), [2, 2, 1]);
        assert_eq!(sizes(vec![8 << 20, 1, 8 << 20]), [1, 1, 1]);
        assert_eq!(sizes(vec![]), [0; 0]);
    }
}
