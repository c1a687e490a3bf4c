//! A stand-in for the servers: a correct session table, the rules of chat that the tests need, and scripted faults.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use ed25519_dalek::{Signature, VerifyingKey};
use futures::Stream;
use prost::Message as _;
use replicator_proto::{
    chat::v1::{self as chat, chat_query, chat_request::Action, chat_response::Result as Reply},
    replicator::v1::{self as pb, replicator_service_server as service, subscribe_response::Item},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{broadcast, mpsc, watch},
};
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
    /// Nodes whose answers are not those of the others.
    liars: Vec<usize>,
    opened: u8,
    sessions: HashMap<Vec<u8>, Session>,
    keys: BTreeMap<String, Vec<u8>>,
    /// (recipient, message), with its log index.
    messages: Vec<(String, chat::Message, u64)>,
    /// What was pushed beside messages: to which account, and at which log index.
    events: Vec<(String, chat::chat_push::Event, u64)>,
    /// Whether a version of the module runs that knows neither reactions nor editing.
    is_old: bool,
    log_index: u64,
    faults: VecDeque<Fault>,
    typed_to: Vec<String>,
    deleted: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Node {
    number: usize,
    state: Arc<Mutex<State>>,
    /// Something has happened.
    changed: watch::Sender<()>,
    /// What passes, and whom it is for.
    passing: broadcast::Sender<(String, chat::ChatPush)>,
}

pub(crate) struct Server {
    node: Node,
    pub(crate) addresses: Vec<String>,
    _runtime: Runtime,
}

impl Server {
    pub(crate) fn start(nodes: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let node = Node {
            number: 0,
            state: Arc::default(),
            changed: watch::Sender::new(()),
            passing: broadcast::Sender::new(16),
        };
        let mut addresses = Vec::new();
        for number in 0..nodes {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let service = service::ReplicatorServiceServer::new(Node { number, ..node.clone() });
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
        self.node.changed.send_replace(());
    }

    /// From now on these nodes answer wrongly, each in its own way.
    pub(crate) fn let_lie(&self, nodes: &[usize]) {
        self.node.state().liars = nodes.to_vec();
    }

    /// From now on a version runs that knows neither reactions nor editing.
    pub(crate) fn roll_back(&self) {
        self.node.state().is_old = true;
    }

    /// A message from somebody else.
    pub(crate) fn deliver(&self, from: &str, to: &str, text: &str) {
        let mut state = self.node.state();
        state.log_index += 1;
        state.deliver(from, to, text);
        self.node.changed.send_replace(());
    }

    /// A notice that passes.
    pub(crate) fn pass(&self, to: &str, event: chat::chat_push::Event) {
        self.node.passing.send((to.to_owned(), chat::ChatPush { event: Some(event) })).unwrap();
    }

    /// Deletes an account, as another session of it would.
    pub(crate) fn delete_account(&self, account: &str) {
        self.node.state().deleted.insert(account.to_owned());
        self.node.changed.send_replace(());
    }

    /// How many of an account's messages are unread.
    pub(crate) fn unread(&self, account: &str) -> u64 {
        self.node.state().unread(account)
    }

    /// Who was told that somebody types.
    pub(crate) fn typed_to(&self) -> Vec<String> {
        self.node.state().typed_to.clone()
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
            Action::Send(send) if send.text.starts_with("full") => {
                refuse(chat::ChatErrorCode::MailboxFull, "the recipient's mailbox is full")
            }
            Action::Send(_) if account.is_none() => {
                refuse(chat::ChatErrorCode::NotLoggedIn, "the session is not logged in")
            }
            Action::Send(send) => {
                let message_id = self.deliver(&account.unwrap(), &send.to, &send.text);
                Reply::Sent(chat::Sent { message_id, pushed_to: 1 })
            }
            Action::DeleteMessages(delete) => {
                let before = self.messages.len();
                self.messages.retain(|m| Some(&m.0) != account.as_ref() || !delete.message_ids.contains(&m.1.id));
                Reply::Deleted(chat::Deleted { count: (before - self.messages.len()) as u32 })
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
            Action::React(_) | Action::Edit(_) if self.is_old => {
                refuse(chat::ChatErrorCode::UnknownAction, "the running version doesn't know this")
            }
            Action::React(react) => {
                let from = account.unwrap();
                let Some((_, message, _)) =
                    self.messages.iter_mut().find(|m| m.0 == from && m.1.id == react.message_id)
                else {
                    return refuse(chat::ChatErrorCode::NoSuchMessage, "there is no such message");
                };
                message.reaction = react.reaction.clone();
                let (to, reaction) = (message.from.clone(), react.reaction);
                let notice = chat::ReactionNotice { message_id: react.message_id, from, reaction };
                self.events.push((to, chat::chat_push::Event::Reaction(notice), self.log_index));
                Reply::Reacted(chat::Reacted { pushed_to: 1 })
            }
            Action::Edit(edit) => {
                let mine = |m: &&mut (String, chat::Message, u64)| m.0 == edit.to && m.1.id == edit.message_id;
                let Some((to, message, _)) = self.messages.iter_mut().find(mine) else {
                    return refuse(chat::ChatErrorCode::NoSuchMessage, "there is no such message of yours");
                };
                (message.text, message.edited_us) = (edit.text, 1);
                let event = chat::chat_push::Event::Edited(message.clone());
                self.events.push((to.clone(), event, self.log_index));
                Reply::Edited(chat::Edited { pushed_to: 1 })
            }
            other => panic!("the stand-in doesn't know {other:?}"),
        }
    }

    fn deliver(&mut self, from: &str, to: &str, text: &str) -> u64 {
        let id = self.messages.len() as u64 + 1;
        let (from, text) = (from.to_owned(), text.to_owned());
        let message = chat::Message { id, from, text, unread: true, ..Default::default() };
        self.messages.push((to.to_owned(), message, self.log_index));
        id
    }

    fn list(&self, account: &str, list: &chat::ListMessages) -> chat::Messages {
        let mine = self.messages.iter().filter(|m| m.0 == account && m.1.id > list.after_id);
        let mut messages: Vec<_> = mine.map(|m| m.1.clone()).filter(|m| m.unread || !list.unread_only).collect();
        let size = list.page_size as usize;
        let more = messages.len() > size;
        if list.last {
            messages.drain(..messages.len().saturating_sub(size));
        }
        messages.truncate(size);
        chat::Messages { messages, unread: self.unread(account), more }
    }

    fn unread(&self, account: &str) -> u64 {
        self.messages.iter().filter(|m| m.0 == account && m.1.unread).count() as u64
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn name(&self) -> String {
        format!("n{}", self.number + 1)
    }

    fn lies(&self) -> bool {
        self.state().liars.contains(&self.number)
    }

    /// Executes, or follows the script: a status means a broken connection.
    fn execute_or_fail(&self, request: &pb::ExecuteRequest) -> Result<Result<pb::ExecuteResponse, pb::Error>, Status> {
        let mut state = self.state();
        let fault = state.faults.pop_front();
        if matches!(fault, None | Some(Fault::ExecutesThenBroken)) {
            let outcome = state.execute(request);
            self.changed.send_replace(());
            drop(state);
            if fault.is_none() {
                return Ok(outcome.map(|mut response| {
                    response.node_id = self.name();
                    response.state_digest += self.lies() as u64 * (self.number as u64 + 1);
                    response
                }));
            }
        }
        Err(Status::unavailable("connection reset"))
    }
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl service::ReplicatorService for Node {
    type ExecuteStreamStream = Outgoing<pb::ExecuteStreamResponse>;
    type QueryStreamStream = Outgoing<pb::QueryStreamResponse>;
    type SubscribeStream = Outgoing<pb::SubscribeResponse>;

    async fn query_stream(
        &self,
        _: Request<Streaming<pb::QueryStreamRequest>>,
    ) -> Result<Response<Self::QueryStreamStream>, Status> {
        Err(Status::unimplemented("chat asks one by one"))
    }

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
            request_bytes_max: 1 << 20,
        }))
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        self.state().sessions.remove(&request.into_inner().session_id[..]);
        Ok(Response::new(pb::CloseSessionResponse::default()))
    }

    async fn keep_alive(
        &self,
        request: Request<pb::KeepAliveRequest>,
    ) -> Result<Response<pb::KeepAliveResponse>, Status> {
        if !self.state().sessions.contains_key(&request.get_ref().session_id[..]) {
            return Err(status(&error(Code::NotFound, pb::ErrorReason::SessionExpired, 0)));
        }
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
        let lies = self.lies();
        let mut state = self.state();
        let asking = state.sessions.get(&request.session_id[..]).map(|session| session.account.clone());
        if asking.is_none() && !request.session_id.is_empty() {
            return Err(status(&error(Code::NotFound, pb::ErrorReason::SessionExpired, 0)));
        }
        let asking = asking.flatten();
        let result = match chat::ChatQuery::decode(&request.request[..]).unwrap().action.unwrap() {
            chat_query::Action::ListAccounts(list) => {
                // Pages of one, so that pages are followed.
                let mut rest = state.keys.keys().filter(|name| **name > list.page_token);
                let accounts: Vec<String> = rest.next().cloned().into_iter().collect();
                let next_page_token = rest.next().and(accounts.last()).cloned().unwrap_or_default();
                Reply::Accounts(chat::Accounts { accounts, next_page_token })
            }
            chat_query::Action::WhoAmI(_) => match asking {
                Some(account) => {
                    let unread = state.unread(&account) + lies as u64 * (self.number as u64 + 1);
                    Reply::LoggedIn(chat::LoggedIn { unread, account })
                }
                None => refuse(chat::ChatErrorCode::NotLoggedIn, "the session is not logged in"),
            },
            chat_query::Action::ListMessages(list) => Reply::Messages(state.list(&asking.unwrap(), &list)),
            chat_query::Action::Typing(typing) => {
                let notice = chat::TypingNotice { from: asking.unwrap() };
                let push = chat::ChatPush { event: Some(chat::chat_push::Event::Typing(notice)) };
                let sessions = self.passing.send((typing.to.clone(), push)).unwrap_or(0) as u32;
                state.typed_to.push(typing.to);
                Reply::Notified(chat::Notified { sessions })
            }
            chat_query::Action::Announce(announce) => {
                let (account, presence, asks) = (asking.unwrap(), announce.presence, announce.asks);
                let notice = chat::PresenceNotice { account, presence, asks };
                for to in announce.to {
                    let event = chat::chat_push::Event::Presence(notice.clone());
                    let _ = self.passing.send((to, chat::ChatPush { event: Some(event) })); // nobody listens
                }
                Reply::Notified(chat::Notified::default())
            }
        };
        let response = chat::ChatResponse { result: Some(result) }.encode_to_vec().into();
        Ok(Response::new(pb::QueryResponse { response, log_index: state.log_index, node_id: self.name() }))
    }

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        let (mut changed, mut passing, node) = (self.changed.subscribe(), self.passing.subscribe(), self.clone());
        let now = self.state().log_index;
        let mut place = request.after.map_or(now, |after| after.log_index);
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let cursor = |log_index| pb::Cursor { lineage: 5, log_index, ordinal: 0 };
            let say = async |item| sender.send(Ok(pb::SubscribeResponse { item: Some(item) })).await.is_ok();
            say(Item::Progress(cursor(place))).await;
            loop {
                let (account, pushes) = {
                    let state = node.state();
                    let Some(session) = state.sessions.get(&request.session_id[..]) else { break };
                    let message = |(to, message, index): &(String, chat::Message, u64)| {
                        (to.clone(), chat::chat_push::Event::Message(message.clone()), *index)
                    };
                    let pushes = state.messages.iter().map(message).chain(state.events.iter().cloned());
                    let mut pushes: Vec<_> =
                        pushes.filter(|p| Some(&p.0) == session.account.as_ref() && p.2 > place).collect();
                    pushes.sort_by_key(|push| push.2);
                    (session.account.clone(), pushes)
                };
                for (_, event, log_index) in pushes {
                    place = log_index;
                    let push = chat::ChatPush { event: Some(event) };
                    let payload = push.encode_to_vec().into();
                    say(Item::Push(pb::Push { cursor: Some(cursor(place)), topic: String::new(), payload })).await;
                }
                if account.as_ref().is_some_and(|account| node.state().deleted.contains(account)) {
                    let event = Some(chat::chat_push::Event::AccountDeleted(chat::AccountDeleted::default()));
                    let payload = chat::ChatPush { event }.encode_to_vec().into();
                    let cursor = Some(cursor(place + 1));
                    say(Item::Push(pb::Push { cursor, topic: String::new(), payload })).await;
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    Ok((to, push)) = passing.recv() => if Some(to) == account {
                        let payload = push.encode_to_vec().into();
                        say(Item::Ephemeral(pb::EphemeralPush { topic: String::new(), payload })).await;
                    },
                    () = sender.closed() => return,
                }
            }
            let _ = sender.send(Err(status(&error(Code::NotFound, pb::ErrorReason::SessionExpired, 0)))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
