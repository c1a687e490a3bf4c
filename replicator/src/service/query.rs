//! `Query`, and `QueryStream`: many reads of one client under way at once, answers as they come.

use std::{mem, sync::Arc, time::Instant};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use replicator_proto::replicator::v1::{self as pb, query_result};
use replicator_types::{Lineage, LogIndex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    DEADLINE, NodeOrBad,
    errors::ApiError,
    session,
    stream::{IN_FLIGHT_MAX, RESULTS_MAX, messages},
};
use crate::node::{Answered, MustSee, Node, Read};

/// Checks a query's form and lineage.
fn parse(node: &Node, query: pb::QueryRequest) -> Result<(Read, MustSee), ApiError> {
    let parsed = || {
        let session = match &query.session_id[..] {
            [] => None,
            id => Some(session(id)?),
        };
        session.map_or(Ok(()), |session| node.check_session(session))?;
        node.check_lineage(Lineage(query.lineage))?;
        let must_see = match query.consistency() {
            pb::Consistency::Unspecified | pb::Consistency::Linearizable => MustSee::Acknowledged,
            pb::Consistency::Session => MustSee::Index(LogIndex(query.min_log_index)),
            pb::Consistency::Local => MustSee::Anything,
        };
        Ok((Read { session, request: query.request.clone() }, must_see))
    };
    parsed().map_err(|error: NodeOrBad| ApiError::of(node, error))
}

fn told(node: &Node, answered: Answered) -> Result<pb::QueryResponse, ApiError> {
    let (response, index) = answered.map_err(|error| ApiError::of(node, error.into()))?;
    let told = pb::QueryResponse { response, log_index: index.0, node_id: node.config().name.to_string() };
    #[cfg(feature = "planted-wrong-answers")]
    let told = super::planted::answered(told);
    Ok(told)
}

/// Answers one query.
pub(super) async fn query(
    node: &Node,
    query: pb::QueryRequest,
    deadline: Instant,
) -> Result<pb::QueryResponse, ApiError> {
    let (read, must_see) = parse(node, query)?;
    let answers = node.query(&[read], must_see, deadline).await;
    let answered = answers.map(|mut answers| answers.pop().expect("one read has one answer"));
    told(node, answered.unwrap_or_else(Err))
}

/// Queries that are answered together at most.
const GROUP_MAX: usize = 256;

/// Queries that are answered together, from one state.
struct Group {
    numbers: Vec<u64>,
    reads: Vec<Read>,
    must_see: MustSee,
}

impl Group {
    fn new(must_see: MustSee) -> Self {
        Self { numbers: Vec::new(), reads: Vec::new(), must_see }
    }

    fn add(&mut self, number: u64, read: Read) {
        self.numbers.push(number);
        self.reads.push(read);
    }

    /// Groups of at most [`GROUP_MAX`]: between two, the machine gets on with the log.
    fn split(mut self) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let rest = self.reads.len().min(GROUP_MAX);
            let (numbers, reads) = (self.numbers.split_off(rest), self.reads.split_off(rest));
            let first = Self {
                numbers: mem::replace(&mut self.numbers, numbers),
                reads: mem::replace(&mut self.reads, reads),
                ..self
            };
            (!first.reads.is_empty()).then_some(first)
        })
    }

    async fn answer(self, node: Arc<Node>) -> Vec<pb::QueryResult> {
        let answers = node.query(&self.reads, self.must_see, Node::deadline(DEADLINE)).await;
        let answers = answers.unwrap_or_else(|error| vec![Err(error); self.reads.len()]);
        self.numbers.into_iter().zip(answers).map(|(number, answered)| result(number, told(&node, answered))).collect()
    }
}

fn result(number: u64, answered: Result<pb::QueryResponse, ApiError>) -> pb::QueryResult {
    let result = match answered {
        Ok(response) => query_result::Result::Response(response),
        Err(error) => query_result::Result::Error(error.into()),
    };
    pb::QueryResult { number, result: Some(result) }
}

fn response_bytes(result: &pb::QueryResult) -> usize {
    match &result.result {
        Some(query_result::Result::Response(response)) => response.response.len(),
        _ => 0,
    }
}

/// Sorts a message's queries into groups. What must see an index that this replica hasn't reached is a group of its own, and holds up nothing
/// else. Returns the groups, and what could not be asked.
fn groups(node: &Node, queries: Vec<pb::NumberedQuery>) -> (Vec<Group>, Vec<pb::QueryResult>) {
    let applied = node.applied().borrow().index().unwrap_or_default();
    let (mut acknowledged, mut at_once) = (Group::new(MustSee::Acknowledged), Group::new(MustSee::Anything));
    let (mut groups, mut failed) = (Vec::new(), Vec::new());
    for pb::NumberedQuery { number, query } in queries {
        match parse(node, query.unwrap_or_default()) {
            Ok((read, MustSee::Acknowledged)) => acknowledged.add(number, read),
            Ok((read, MustSee::Index(index))) if index > applied => {
                let mut later = Group::new(MustSee::Index(index));
                later.add(number, read);
                groups.push(later);
            }
            Ok((read, MustSee::Index(_) | MustSee::Anything)) => at_once.add(number, read),
            Err(error) => failed.push(result(number, Err(error))),
        }
    }
    groups.extend(acknowledged.split().chain(at_once.split()));
    (groups, failed)
}

/// Answers what comes in, and yields the results.
pub(super) fn query_all(
    node: Arc<Node>,
    mut requests: Streaming<pb::QueryStreamRequest>,
) -> impl Stream<Item = Result<pb::QueryStreamResponse, Status>> + Send {
    let (outgoing, answered) = mpsc::channel::<Result<pb::QueryStreamResponse, Status>>(16);
    tokio::spawn(async move {
        let mut under_way: FuturesUnordered<BoxFuture<'static, Vec<pb::QueryResult>>> = FuturesUnordered::new();
        let mut queries = 0;
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(mut batch) = under_way.next() => {
                    while batch.len() < RESULTS_MAX && let Some(Some(more)) = under_way.next().now_or_never() {
                        batch.extend(more);
                    }
                    queries -= batch.len();
                    for results in messages(batch, response_bytes) {
                        if outgoing.send(Ok(pb::QueryStreamResponse { results })).await.is_err() {
                            return; // The client is gone.
                        }
                    }
                }
                () = outgoing.closed() => return,
                message = requests.message(), if open && queries < IN_FLIGHT_MAX => match message {
                    Ok(Some(message)) if message.queries.len() > IN_FLIGHT_MAX => {
                        let why = format!("{} queries in one message; at most {IN_FLIGHT_MAX}", message.queries.len());
                        let _ = outgoing.send(Err(Status::invalid_argument(why))).await;
                        return;
                    }
                    Ok(Some(message)) => {
                        queries += message.queries.len();
                        let (groups, failed) = groups(&node, message.queries);
                        under_way.extend(groups.into_iter().map(|group| group.answer(node.clone()).boxed()));
                        if !failed.is_empty() {
                            under_way.push(std::future::ready(failed).boxed());
                        }
                    }
                    Ok(None) => open = false,
                    Err(status) => {
                        let _ = outgoing.send(Err(status)).await;
                        return;
                    }
                },
            }
        }
    });
    ReceiverStream::new(answered)
}
