//! A cluster in the test's process: real tonic servers over one shared, plainly correct session table. Each node follows
//! a script of faults; without one it behaves.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::Stream;
use replicator_client::{
    Client, ClientBuilder,
    proto::{self as pb, replicator_service_server as server},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::server::TcpIncoming};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(crate) const LINEAGE: u64 = 77;
/// Requests that begin with this are too large.
pub(crate) const TOO_LARGE: &[u8] = b"large";
/// Requests that begin with this trap.
pub(crate) const TRAP: &[u8] = b"trap";

/// What a node does with one call instead of serving it.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Refuses, and names the primary.
    NotReady { primary: Option<String> },
    /// Looks like a broken connection. Nothing was done.
    Broken,
    /// Executes, then looks like a broken connection.
    ExecutesThenBroken,
    /// Never answers. Nothing was done.
    Silent,
    /// Executes, and never answers.
    ExecutesThenSilent,
    /// In a stream: executes this many requests, answers them, executes one more, and breaks the stream.
    BreaksAfter(usize),
    /// In a stream: loses the first request, as a node does that passed it to a dying primary.
    LosesFirst,
    /// In a subscription: begins one event too early, sends this many, and breaks the stream.
    DoublesThenBreaks(usize),
}

/// The state that all nodes share.
#[derive(Debug, Default)]
pub(crate) struct State {
    sessions: HashMap<Vec<u8>, Table>,
    /// What was executed, in order.
    pub(crate) log: Vec<Vec<u8>>,
    /// Every ExecuteRequest that came: (node, sequence, acked_below, request).
    pub(crate) received: Vec<(usize, u64, u64, Vec<u8>)>,
    pub(crate) queries: Vec<pb::QueryRequest>,
    pub(crate) subscriptions: Vec<(usize, Option<pb::Cursor>)>,
    scripts: HashMap<usize, VecDeque<Fault>>,
    pub(crate) events: Vec<(u64, u32)>,
    pub(crate) cursor_expired: bool,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    floor: u64,
    outcomes: BTreeMap<u64, (Vec<u8>, Result<pb::ExecuteResponse, pb::Error>)>,
}

#[derive(Debug, Clone)]
struct Node {
    name: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    pub(crate) addresses: Vec<String>,
    servers: Vec<JoinHandle<()>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Cluster {
    pub(crate) async fn start(nodes: usize) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (mut addresses, mut servers) = (Vec::new(), Vec::new());
        for name in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let service = server::ReplicatorServiceServer::new(Node { name, state: Arc::clone(&state) });
            let serve = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
            servers.push(tokio::spawn(async move { serve.await.unwrap() }));
        }
        Self { state, addresses, servers }
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().endpoints(self.addresses.clone()).attempt_timeout(Duration::from_millis(200))
    }

    pub(crate) fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next calls at every node meet `faults`, in that order, wherever they come: a fault is used up once.
    pub(crate) fn everywhere(&self, faults: &[Fault]) {
        self.state().scripts.insert(usize::MAX, faults.iter().cloned().collect());
    }

    pub(crate) fn at(&self, node: usize, faults: &[Fault]) {
        self.state().scripts.insert(node, faults.iter().cloned().collect());
    }

    pub(crate) fn stop(&self, node: usize) {
        self.servers[node].abort();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state().log.iter().map(|request| String::from_utf8_lossy(request).into_owned()).collect()
    }
}

fn error(code: Code, reason: pb::ErrorReason, last_sequence: u64) -> pb::Error {
    pb::Error {
        code: code as i32,
        reason: reason.into(),
        message: "scripted".into(),
        last_sequence,
        ..Default::default()
    }
}

pub(crate) fn status(error: &pb::Error, primary: Option<String>) -> Status {
    let mut metadata = HashMap::from([
        ("last_sequence".to_owned(), error.last_sequence.to_string()),
        ("log_index".to_owned(), error.log_index.to_string()),
        ("state_digest".to_owned(), format!("{:016x}", error.state_digest)),
    ]);
    metadata.extend(primary.map(|address| ("primary_address".to_owned(), address)));
    let reason = error.reason().as_str_name().trim_start_matches("ERROR_REASON_");
    let details = ErrorDetails::with_error_info(reason, "replicator", metadata);
    Status::with_error_details(Code::from_i32(error.code), error.message.clone(), details)
}

impl State {
    fn execute(&mut self, node: usize, request: &pb::ExecuteRequest) -> Result<pb::ExecuteResponse, pb::Error> {
        self.received.push((node, request.sequence, request.acked_below, request.request.to_vec()));
        let Some(table) = self.sessions.get_mut(&request.session_id[..]) else {
            return Err(error(Code::NotFound, pb::ErrorReason::SessionExpired, 0));
        };
        table.floor = table.floor.max(request.acked_below);
        table.outcomes = table.outcomes.split_off(&table.floor);
        let (sequence, last) = (request.sequence, table.last);
        if sequence < table.floor {
            return Err(error(Code::OutOfRange, pb::ErrorReason::SequenceStale, last));
        }
        if let Some((known, outcome)) = table.outcomes.get(&sequence) {
            if known[..] != request.request[..] {
                return Err(error(Code::InvalidArgument, pb::ErrorReason::SequenceReused, last));
            }
            return outcome.clone();
        }
        if request.request.starts_with(TOO_LARGE) {
            return Err(error(Code::InvalidArgument, pb::ErrorReason::RequestTooLarge, last));
        }
        if sequence != last + 1 {
            return Err(error(Code::FailedPrecondition, pb::ErrorReason::SequenceGap, last));
        }
        self.log.push(request.request.to_vec());
        let log_index = 100 + self.log.len() as u64;
        let outcome = if request.request.starts_with(TRAP) {
            Err(pb::Error { log_index, state_digest: 9, ..error(Code::Aborted, pb::ErrorReason::ModuleTrapped, 0) })
        } else {
            let response = [b"did ", &request.request[..]].concat().into();
            Ok(pb::ExecuteResponse { response, log_index, epoch: 1, node_id: format!("n{node}"), state_digest: 9 })
        };
        table.last = sequence;
        table.outcomes.insert(sequence, (request.request.to_vec(), outcome.clone()));
        outcome
    }

    fn fault(&mut self, node: usize) -> Option<Fault> {
        for key in [node, usize::MAX] {
            if let Some(fault) = self.scripts.get_mut(&key).and_then(VecDeque::pop_front) {
                return Some(fault);
            }
        }
        None
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
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

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl server::ReplicatorService for Node {
    type ExecuteStreamStream = Outgoing<pb::ExecuteStreamResponse>;
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
            Ok(pb::OpenSessionResponse { session_id, ttl_ms, window: 16, lineage: LINEAGE, log_index: 5 })
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
        let mut incoming = request.into_inner();
        let fault = self.state().fault(self.name);
        if matches!(fault, Some(Fault::Broken)) {
            return Err(Status::unavailable("connection reset"));
        }
        let mut left = if let Some(Fault::BreaksAfter(count)) = fault { count } else { usize::MAX };
        let mut lose = matches!(fault, Some(Fault::LosesFirst));
        let silent = matches!(fault, Some(Fault::ExecutesThenSilent));
        let (sender, receiver) = mpsc::channel(1024);
        let node = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                for request in message.requests {
                    let sequence = request.sequence;
                    let outcome = if std::mem::take(&mut lose) {
                        Err(error(Code::Unavailable, pb::ErrorReason::OutcomeUnknown, 0))
                    } else {
                        node.state().execute(node.name, &request)
                    };
                    if left == 0 {
                        let _ = sender.send(Err(Status::unavailable("connection reset"))).await;
                        return;
                    }
                    left -= 1;
                    if silent {
                        continue;
                    }
                    let result = Some(match outcome {
                        Ok(response) => pb::execute_result::Result::Response(response),
                        Err(error) => pb::execute_result::Result::Error(error),
                    });
                    let results = vec![pb::ExecuteResult { session_id: Default::default(), sequence, result }];
                    if sender.send(Ok(pb::ExecuteStreamResponse { results })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        let request = request.into_inner();
        self.serve(|state| {
            state.queries.push(request.clone());
            let log_index = 100 + state.log.len() as u64;
            Ok(pb::QueryResponse { response: request.request.clone(), log_index, node_id: format!("n{}", self.name) })
        })
        .await
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
        let mut messages = vec![Ok(pb::subscribe_response::Item::Progress(start))];
        let mut count = usize::MAX;
        if let Some(Fault::DoublesThenBreaks(sent)) = fault {
            from = from.saturating_sub(1);
            count = sent;
        }
        let cut = count < state.events.len() - from;
        messages.extend(state.events.iter().skip(from).take(count).map(|event| {
            let payload = format!("{}.{}", event.0, event.1).into();
            Ok(pb::subscribe_response::Item::Push(pb::Push { cursor: Some(cursor(event)), topic: "t".into(), payload }))
        }));
        if cut {
            messages.push(Err(Status::unavailable("connection reset")));
        }
        let messages = messages.into_iter().map(|item| item.map(|item| pb::SubscribeResponse { item: Some(item) }));
        // A stream that isn't cut stays open.
        let stream = futures::StreamExt::chain(tokio_stream::iter(messages), futures::stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
}
