//! The two kinds of shared streams: what travels on them, and how results find their calls.

use std::{fmt::Debug, future::Future, hash::Hash};

use bytes::Bytes;
use futures::Stream;
use replicator_proto::replicator::v1::{self as pb, execute_result, query_result};
use tonic::{Response, Status, Streaming, transport::Channel};

use super::{Lane, Miss};
use crate::{client::service, link::Link};

/// A kind of stream.
pub(crate) trait Traffic: Sized + Send + Sync + 'static {
    /// What a call asks.
    type Request: Clone + Send + Sync + 'static;
    /// What it gets.
    type Answer: Send + 'static;
    /// Names a request among those on the stream.
    type Key: Copy + Debug + Eq + Hash + Send + Sync + 'static;
    /// What the stream carries to the node.
    type Message: Send + 'static;
    /// What it carries back.
    type Reply: Send + 'static;

    /// Whether a key may come again, in a repeat or for another request.
    const KEYS_COME_AGAIN: bool;

    /// This kind's stream of a connection.
    fn lane(link: &Link) -> &Lane<Self>;

    /// The key of `request`, the `number`th of its stream.
    fn key(request: &Self::Request, number: u64) -> Self::Key;

    /// The request's own size in bytes.
    fn bytes(request: &Self::Request) -> usize;

    /// The requests as one message.
    fn message(requests: Vec<(u64, Self::Request)>) -> Self::Message;

    /// Opens the stream.
    fn open<S>(
        channel: Channel,
        outgoing: S,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Reply>>, Status>> + Send
    where
        S: Stream<Item = Self::Message> + Send + 'static;

    /// The results in a message of a stream whose first request had the key `first`.
    fn results(
        reply: Self::Reply,
        first: Option<Self::Key>,
    ) -> impl Iterator<Item = (Self::Key, Result<Self::Answer, Miss>)>;

    /// The same as a unary call.
    fn alone(channel: Channel, request: Self::Request) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// Writes, over `ExecuteStream`.
pub(crate) enum Executions {}

impl Traffic for Executions {
    type Request = pb::ExecuteRequest;
    type Answer = pb::ExecuteResponse;
    type Key = ([u8; 16], u64);
    type Message = pb::ExecuteStreamRequest;
    type Reply = pb::ExecuteStreamResponse;

    const KEYS_COME_AGAIN: bool = true;

    fn lane(link: &Link) -> &Lane<Self> {
        link.executions()
    }

    fn key(request: &Self::Request, _: u64) -> Self::Key {
        let session = session(&request.session_id).expect("a session's id has 16 bytes");
        (session, request.sequence)
    }

    fn bytes(request: &Self::Request) -> usize {
        request.request.len()
    }

    fn message(requests: Vec<(u64, Self::Request)>) -> Self::Message {
        pb::ExecuteStreamRequest { requests: requests.into_iter().map(|(_, request)| request).collect() }
    }

    async fn open<S>(channel: Channel, outgoing: S) -> Result<Response<Streaming<Self::Reply>>, Status>
    where
        S: Stream<Item = Self::Message> + Send + 'static,
    {
        service(channel).execute_stream(outgoing).await
    }

    fn results(
        reply: Self::Reply,
        first: Option<Self::Key>,
    ) -> impl Iterator<Item = (Self::Key, Result<Self::Answer, Miss>)> {
        reply.results.into_iter().filter_map(move |pb::ExecuteResult { session_id, sequence, result }| {
            // An id that isn't one is nobody's.
            let session = if session_id.is_empty() { first?.0 } else { session(&session_id)? };
            let result = match result {
                Some(execute_result::Result::Response(response)) => Ok(response),
                Some(execute_result::Result::Error(error)) => Err(Miss::Refused(Box::new(error))),
                None => Err(Miss::Nonsense),
            };
            Some(((session, sequence), result))
        })
    }

    async fn alone(channel: Channel, request: Self::Request) -> Result<Self::Answer, Status> {
        Ok(service(channel).execute(request).await?.into_inner())
    }
}

fn session(id: &Bytes) -> Option<[u8; 16]> {
    id[..].try_into().ok()
}

/// Reads, over `QueryStream`.
pub(crate) enum Queries {}

impl Traffic for Queries {
    type Request = pb::QueryRequest;
    type Answer = pb::QueryResponse;
    type Key = u64;
    type Message = pb::QueryStreamRequest;
    type Reply = pb::QueryStreamResponse;

    const KEYS_COME_AGAIN: bool = false;

    fn lane(link: &Link) -> &Lane<Self> {
        link.queries()
    }

    fn key(_: &Self::Request, number: u64) -> Self::Key {
        number
    }

    fn bytes(request: &Self::Request) -> usize {
        request.request.len()
    }

    fn message(requests: Vec<(u64, Self::Request)>) -> Self::Message {
        let queries = requests.into_iter().map(|(number, query)| pb::NumberedQuery { number, query: Some(query) });
        pb::QueryStreamRequest { queries: queries.collect() }
    }

    async fn open<S>(channel: Channel, outgoing: S) -> Result<Response<Streaming<Self::Reply>>, Status>
    where
        S: Stream<Item = Self::Message> + Send + 'static,
    {
        service(channel).query_stream(outgoing).await
    }

    fn results(
        reply: Self::Reply,
        _: Option<Self::Key>,
    ) -> impl Iterator<Item = (Self::Key, Result<Self::Answer, Miss>)> {
        reply.results.into_iter().map(|pb::QueryResult { number, result }| {
            let result = match result {
                Some(query_result::Result::Response(response)) => Ok(response),
                Some(query_result::Result::Error(error)) => Err(Miss::Refused(Box::new(error))),
                None => Err(Miss::Nonsense),
            };
            (number, result)
        })
    }

    async fn alone(channel: Channel, request: Self::Request) -> Result<Self::Answer, Status> {
        Ok(service(channel).query(request).await?.into_inner())
    }
}
