//! A cluster in the test's process: real tonic servers over one shared, plainly correct session table. Each node follows
//! a script of faults; without one it behaves.

mod admin;
mod node;
mod streams;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use replicator_client::{
    Client, ClientBuilder,
    proto::{self as pb, admin_service_server as admin_server, replicator_service_server as server},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Code, Status, transport::server::TcpIncoming};
use tonic_types::{ErrorDetails, StatusExt as _};

use self::node::Node;

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
    /// In a stream: loses the first request, as a node does that passed it to a dying primary. Names the primary.
    LosesFirst { primary: Option<String> },
    /// In a stream: keeps its results until there are this many, and then gives the last first.
    Reverses(usize),
    /// In a stream: gives each result twice.
    Repeats,
    /// In a stream: keeps the first result until the second request has come.
    Delays,
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
    /// Before each event, a passing one.
    pub(crate) ephemerals: bool,
    /// The shared streams that were opened, by node and kind, and the number of requests in each of their messages.
    pub(crate) streams: Vec<(usize, &'static str)>,
    pub(crate) messages: Vec<usize>,
    /// Results of streams leave the session out, as they may for that of the first request.
    pub(crate) anonymous: bool,
    /// What these nodes put behind every response: they are wrong.
    pub(crate) wrong: HashMap<usize, &'static str>,
    /// These nodes refuse every request.
    pub(crate) refusing: HashSet<usize>,
    /// What every node says of the members.
    pub(crate) members: Vec<pb::Member>,
    /// How often nodes were asked for it.
    pub(crate) statuses: usize,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    floor: u64,
    outcomes: BTreeMap<u64, (Vec<u8>, Result<pb::ExecuteResponse, pb::Error>)>,
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
            let node = Node { name, state: Arc::clone(&state) };
            let serve = tonic::transport::Server::builder()
                .add_service(admin_server::AdminServiceServer::new(node.clone()))
                .add_service(server::ReplicatorServiceServer::new(node))
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
            servers.push(tokio::spawn(async move { serve.await.unwrap() }));
        }
        Self { state, addresses, servers }
    }

    /// Lets every node name `voters` as such, and the others as learners.
    pub(crate) fn name_members(&self, voters: &[usize]) {
        let member = |(at, address): (usize, &String)| pb::Member {
            node_id: format!("n{at}"),
            client_address: address.clone(),
            voter: voters.contains(&at),
            ..Default::default()
        };
        self.state().members = self.addresses.iter().enumerate().map(member).collect();
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

    /// How often `request` came to any node.
    pub(crate) fn received(&self, request: &str) -> usize {
        self.state().received.iter().filter(|received| received.3 == request.as_bytes()).count()
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
        if self.refusing.contains(&node) {
            return Err(error(Code::InvalidArgument, pb::ErrorReason::InvalidRequest, 0));
        }
        let mut outcome = self.outcome(node, request);
        if let (Ok(executed), Some(wrong)) = (&mut outcome, self.wrong.get(&node)) {
            executed.response = [&executed.response[..], wrong.as_bytes()].concat().into();
        }
        outcome
    }

    fn outcome(&mut self, node: usize, request: &pb::ExecuteRequest) -> Result<pb::ExecuteResponse, pb::Error> {
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
            return outcome.clone().map(|executed| pb::ExecuteResponse { node_id: format!("n{node}"), ..executed });
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

    fn answer(&mut self, node: usize, query: &pb::QueryRequest) -> pb::QueryResponse {
        self.queries.push(query.clone());
        let wrong = self.wrong.get(&node).copied().unwrap_or_default();
        let response = [&query.request[..], wrong.as_bytes()].concat().into();
        pb::QueryResponse { response, log_index: 100 + self.log.len() as u64, node_id: format!("n{node}") }
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
