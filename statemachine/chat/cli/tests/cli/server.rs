//! A stand-in for the servers: a correct session table, the rules of chat that the tests need, and scripted faults.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use ed25519_dalek::{Signature, VerifyingKey};
use futures::Stream;
use prost::Message as _;
use replicator_proto::{
    chat::v1::{self as chat, chat_query, chat_request::Action, chat_response::Result as Reply},
    replicator::v1::{self as pb, replicator_service_server as service},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::server::TcpIncoming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What the next execution meets, wherever it comes.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Looks like a broken connection. Nothing was done.
    Broken,
    /// Executes, then looks like a broken connection.
    ExecutesThenBroken,
}

type Outcome = (Vec<u8>, pb::ExecuteResponse);

#[derive(Debug, Default)]
struct Session {
    last: u64,
    floor: u64,
    outcomes: BTreeMap<u64, Outcome>,
    account: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    opened: u8,
    sessions: HashMap<Vec<u8>, Session>,
    keys: BTreeMap<String, Vec<u8>>,
    /// (recipient, message), with its log index.
    messages: Vec<(String, chat::Message, u64)>,
    log_index: u64,
    faults: VecDeque<Fault>,
}

#[derive(Debug, Clone)]
struct Node(Arc<Mutex<State>>);

pub(crate) struct Server {
    node: Node,
    pub(crate) addresses: Vec<String>,
    _runtime: Runtime,
}

impl Server {
    pub(crate) fn start(nodes: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let node = Node(Arc::default());
        let mut addresses = Vec::new();
        for _ in 0..nodes {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let service = service::ReplicatorServiceServer::new(node.clone());
            let incoming = {
                let _guard = runtime.enter();
                TcpIncoming::from(listener)
            };
            runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        }
        Self { node, addresses, _runtime: runtime }
    }

    pub(crate) fn faults(&self, faults: &[Fault]) {
        self.node.state().faults = faults.iter().cloned().collect();
    }

    pub(crate) fn forget_sessions(&self) {
        self.node.state().sessions.clear();
    }

    pub(crate) fn texts(&self, account: &str) -> Vec<String> {
        self.node.state().messages.iter().filter(|m| m.0 == account).map(|m| m.1.text.clone()).collect()
    }
}

fn refuse(code: chat::ChatErrorCode, message: &str) -> Reply {
    Reply::Error(chat::ChatError { code: code.into(), message: message.into() })
}

fn error(code: Code, reason: pb::ErrorReason, last_sequence: u64) -> pb::Error {
    pb::Error {
        code: code as i32,
        reason: reason.into(),
        message: "said the server".into(),
        last_sequence,
        ..Default::default()
    }
}

fn status(error: &pb::Error) -> Status {
    let metadata = HashMap::from([("last_sequence".to_owned(), error.last_sequence.to_string())]);
    let reason = error.reason().as_str_name().trim_start_matches("ERROR_REASON_");
    let details = ErrorDetails::with_error_info(reason, "replicator", metadata);
    Status::with_error_details(Code::from_i32(error.code), error.message.clone(), details)
}

impl State {
    fn execute(&mut self, request: &pb::ExecuteRequest) -> Result<pb::ExecuteResponse, pb::Error> {
        let Some(session) = self.sessions.get_mut(&request.session_id[..]) else {
            return Err(error(Code::NotFound, pb::ErrorReason::SessionExpired, 0));
        };
        let (sequence, last) = (request.sequence, session.last);
        session.floor = session.floor.max(request.acked_below);
        session.outcomes = session.outcomes.split_off(&session.floor);
        if sequence < session.floor {
            return Err(error(Code::OutOfRange, pb::ErrorReason::SequenceStale, last));
        }
        if let Some((known, outcome)) = session.outcomes.get(&sequence) {
            return match known[..] == request.request[..] {
                true => Ok(outcome.clone()),
                false => Err(error(Code::InvalidArgument, pb::ErrorReason::SequenceReused, last)),
            };
        }
        if sequence != last + 1 {
            return Err(error(Code::FailedPrecondition, pb::ErrorReason::SequenceGap, last));
        }
        self.log_index += 1;
        let action = chat::ChatRequest::decode(&request.request[..]).unwrap().action.unwrap();
        let result = Some(self.apply(&request.session_id, action));
        let response = chat::ChatResponse { result }.encode_to_vec().into();
        let log_index = self.log_index;
        let outcome = pb::ExecuteResponse { response, log_index, epoch: 1, node_id: "n1".into(), state_digest: 1 };
        let session = self.sessions.get_mut(&request.session_id[..]).unwrap();
        session.last = sequence;
        session.outcomes.insert(sequence, (request.request.to_vec(), outcome.clone()));
        Ok(outcome)
    }

    fn apply(&mut self, session_id: &[u8], action: Action) -> Reply {
        let account = self.sessions[session_id].account.clone();
        match action {
            Action::Register(new) if self.keys.contains_key(&new.account) => {
                refuse(chat::ChatErrorCode::AccountExists, "the name is taken")
            }
            Action::Register(new) => {
                self.keys.insert(new.account, new.public_key);
                Reply::Registered(chat::Registered {})
            }
            Action::Login(login) => {
                let key = self.keys.get(&login.account).map(|key| key[..].try_into().unwrap());
                let message = [b"chat.v1 login\0", session_id, login.account.as_bytes()].concat();
                let signature = Signature::from_slice(&login.signature).unwrap();
                let verified = key.is_some_and(|key| {
                    VerifyingKey::from_bytes(&key).unwrap().verify_strict(&message, &signature).is_ok()
                });
                if !verified {
                    return refuse(chat::ChatErrorCode::WrongPassword, "the password is wrong");
                }
                self.sessions.get_mut(session_id).unwrap().account = Some(login.account.clone());
                let unread = self.unread(&login.account);
                Reply::LoggedIn(chat::LoggedIn { account: login.account, unread })
            }
            Action::Logout(_) => {
                self.sessions.get_mut(session_id).unwrap().account = None;
                Reply::LoggedOut(chat::LoggedOut {})
            }
            Action::Send(send) if !self.keys.contains_key(&send.to) => {
                refuse(chat::ChatErrorCode::NoSuchAccount, "there is no such account")
            }
            Action::Send(send) if send.text.starts_with("refuse") => {
                refuse(chat::ChatErrorCode::Invalid, "refused as asked")
            }
            Action::Send(send) => {
                let id = self.messages.len() as u64 + 1;
                let from = account.unwrap();
                let message = chat::Message { id, from, text: send.text, unread: true, ..Default::default() };
                self.messages.push((send.to, message, self.log_index));
                Reply::Sent(chat::Sent { message_id: id, pushed_to: 1 })
            }
            Action::ReadNext(read) => {
                let account = account.unwrap();
                let mine = self.messages.iter_mut().filter(|m| m.0 == account && m.1.unread);
                let messages = mine.take(read.limit as usize).map(|m| {
                    let shown = m.1.clone();
                    m.1.unread = false;
                    shown
                });
                let messages = messages.collect();
                Reply::Messages(chat::Messages { messages, unread: self.unread(&account), more: false })
            }
            Action::MarkRead(mark) => {
                for message in self.messages.iter_mut().filter(|m| mark.message_ids.contains(&m.1.id)) {
                    message.1.unread = false;
                }
                Reply::Marked(chat::Marked { count: mark.message_ids.len() as u32 })
            }
            other => panic!("the stand-in doesn't know {other:?}"),
        }
    }

    fn unread(&self, account: &str) -> u64 {
        self.messages.iter().filter(|m| m.0 == account && m.1.unread).count() as u64
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Executes, or follows the script: a status means a broken connection.
    fn execute_or_fail(&self, request: &pb::ExecuteRequest) -> Result<Result<pb::ExecuteResponse, pb::Error>, Status> {
        let mut state = self.state();
        let fault = state.faults.pop_front();
        if matches!(fault, None | Some(Fault::ExecutesThenBroken)) {
            let outcome = state.execute(request);
            if fault.is_none() {
                return Ok(outcome);
            }
        }
        Err(Status::unavailable("connection reset"))
    }
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl service::ReplicatorService for Node {
    type ExecuteStreamStream = Outgoing<pb::ExecuteStreamResponse>;
    type SubscribeStream = Outgoing<pb::SubscribeResponse>;

    async fn open_session(
        &self,
        request: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionResponse>, Status> {
        let mut state = self.state();
        state.opened += 1;
        let session_id = vec![state.opened; 16];
        state.sessions.insert(session_id.clone(), Session::default());
        Ok(Response::new(pb::OpenSessionResponse {
            session_id: session_id.into(),
            ttl_ms: request.into_inner().ttl_ms,
            window: 16,
            lineage: 5,
            log_index: state.log_index,
        }))
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        self.state().sessions.remove(&request.into_inner().session_id[..]);
        Ok(Response::new(pb::CloseSessionResponse::default()))
    }

    async fn keep_alive(&self, _: Request<pb::KeepAliveRequest>) -> Result<Response<pb::KeepAliveResponse>, Status> {
        Ok(Response::new(pb::KeepAliveResponse::default()))
    }

    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Result<Response<pb::ExecuteResponse>, Status> {
        self.execute_or_fail(request.get_ref())?.map(Response::new).map_err(|error| status(&error))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<pb::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let (mut incoming, node) = (request.into_inner(), self.clone());
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                for request in message.requests {
                    let answer = node.execute_or_fail(&request).map(|outcome| {
                        let result = Some(match outcome {
                            Ok(response) => pb::execute_result::Result::Response(response),
                            Err(error) => pb::execute_result::Result::Error(error),
                        });
                        let result = pb::ExecuteResult { sequence: request.sequence, result, ..Default::default() };
                        pb::ExecuteStreamResponse { results: vec![result] }
                    });
                    let broken = answer.is_err();
                    if sender.send(answer).await.is_err() || broken {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        let request = request.into_inner();
        let state = self.state();
        let result = match chat::ChatQuery::decode(&request.request[..]).unwrap().action.unwrap() {
            chat_query::Action::ListAccounts(list) => {
                // Pages of one, so that pages are followed.
                let mut rest = state.keys.keys().filter(|name| **name > list.page_token);
                let accounts: Vec<String> = rest.next().cloned().into_iter().collect();
                let next_page_token = rest.next().and(accounts.last()).cloned().unwrap_or_default();
                Reply::Accounts(chat::Accounts { accounts, next_page_token })
            }
            chat_query::Action::WhoAmI(_) => {
                let account = state.sessions.get(&request.session_id[..]).and_then(|session| session.account.clone());
                match account {
                    Some(account) => Reply::LoggedIn(chat::LoggedIn { unread: state.unread(&account), account }),
                    None => refuse(chat::ChatErrorCode::NotLoggedIn, "the session is not logged in"),
                }
            }
            chat_query::Action::ListMessages(_) => Reply::Messages(chat::Messages::default()),
        };
        let response = chat::ChatResponse { result: Some(result) }.encode_to_vec().into();
        Ok(Response::new(pb::QueryResponse { response, log_index: state.log_index, node_id: "n1".into() }))
    }

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        let state = self.state();
        let account = state.sessions.get(&request.session_id[..]).and_then(|session| session.account.clone());
        let now = pb::Cursor { lineage: 5, log_index: state.log_index, ordinal: 0 };
        let after = request.after.unwrap_or(now);
        let mut items = vec![pb::subscribe_response::Item::Progress(after)];
        for (to, message, log_index) in &state.messages {
            if Some(to) == account.as_ref() && *log_index > after.log_index {
                let event = Some(chat::chat_push::Event::Message(message.clone()));
                let payload = chat::ChatPush { event }.encode_to_vec().into();
                let cursor = Some(pb::Cursor { lineage: 5, log_index: *log_index, ordinal: 0 });
                items.push(pb::subscribe_response::Item::Push(pb::Push { cursor, topic: String::new(), payload }));
            }
        }
        let items: Vec<_> = items.into_iter().map(|item| Ok(pb::SubscribeResponse { item: Some(item) })).collect();
        let stream = futures::StreamExt::chain(tokio_stream::iter(items), futures::stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
}
