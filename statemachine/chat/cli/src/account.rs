//! The cluster, seen as one account: the login's lock, its session, and what is saved after each answer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use prost::Message as _;
use replicator_client::{Client, Consistency, Error, Executed, Session};
use replicator_proto::chat::v1::{
    ChatQuery, ChatRequest, ChatResponse, chat_query, chat_request, chat_response::Result as Answer,
};

use crate::{
    args::Global,
    failure::{explain, not_logged_in, refused, usage},
    state::{Lock, Login, Store},
    vote::Vote,
};

/// What a request or a query is answered with, unless it is refused.
pub(crate) type Reply = Answer;

/// Makes a client of `endpoints`.
pub(crate) fn client(global: &Global, endpoints: &[String]) -> Result<Client> {
    if endpoints.is_empty() {
        return Err(usage("no server is known; give --endpoints HOST:PORT,… or set CHAT_ENDPOINTS"));
    }
    let endpoints = endpoints.iter().filter(|endpoint| !endpoint.trim().is_empty()).cloned();
    Client::builder().endpoints(endpoints).deadline(global.deadline).build().map_err(|error| usage(error.to_string()))
}

/// A client of the command line's endpoints, or those of an earlier login.
pub(crate) fn client_of_last(global: &Global, store: &Store) -> Result<Client> {
    if !global.endpoints.is_empty() {
        return client(global, &global.endpoints);
    }
    let last = global.user.clone().or_else(|| store.current());
    let login = last.and_then(|account| store.load(&account).ok().flatten());
    client(global, &login.map(|login| login.endpoints).unwrap_or_default())
}

/// The account that a command is about: --user, or the last login.
pub(crate) fn account(global: &Global, store: &Store) -> Result<String> {
    let known = global.user.clone().or_else(|| store.current());
    known.ok_or_else(|| not_logged_in("nobody is logged in; run `chat login NAME`, or `chat register NAME` before it"))
}

/// A login in use.
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) session: Session,
    pub(crate) login: Login,
    pub(crate) store: Store,
    /// While it is held, no other command can use the session's numbers.
    lock: Option<Lock>,
    /// Whether the session has executed nothing since it was resumed.
    fresh: bool,
    /// How long a request is tried before its outcome counts as unknown.
    pub(crate) patience: Duration,
    global: Global,
}

impl Account {
    /// Opens the login that the command line names, and locks it.
    pub(crate) async fn open(global: &Global) -> Result<Self> {
        let store = Store::open(global.state_dir.as_deref())?;
        let name = account(global, &store)?;
        let lock = store.lock(&name).await?;
        let login = load(&store, &name)?;
        let client = client(global, if global.endpoints.is_empty() { &login.endpoints } else { &global.endpoints })?;
        let session = Session::resume(&client, login.session()?);
        let (patience, global) = (global.deadline, global.clone());
        Ok(Self { name, client, session, login, store, lock: Some(lock), fresh: true, patience, global })
    }

    /// A login just made.
    pub(crate) fn logged_in(global: &Global, store: Store, lock: Lock, login: Login, session: Session) -> Self {
        let (name, client) = (login.account.clone(), session.client().clone());
        let (patience, global) = (global.deadline, global.clone());
        Self { name, client, session, login, store, lock: Some(lock), fresh: false, patience, global }
    }

    /// Lets other commands use the login until [`Account::lock`].
    pub(crate) fn unlock(&mut self) {
        self.lock = None;
    }

    /// Gives the lock away, to log in under it.
    pub(crate) fn give_lock(&mut self) -> Option<Lock> {
        self.lock.take()
    }

    /// Takes the login again, with what other commands have done meanwhile.
    pub(crate) async fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            let lock = self.store.lock(&self.name).await?;
            self.take(lock)?;
        }
        Ok(())
    }

    /// Goes on under a lock that was just taken.
    pub(crate) fn take(&mut self, lock: Lock) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(lock);
            self.login = load(&self.store, &self.name)?;
            self.session = Session::resume(&self.client, self.login.session()?);
            self.fresh = true;
        }
        Ok(())
    }

    /// Executes `action` and saves how far the session has come.
    pub(crate) async fn execute(&mut self, action: chat_request::Action) -> Result<(Reply, Executed)> {
        let done = self.execute_unsaved(action).await?;
        self.save(false)?;
        Ok(done)
    }

    /// [`Account::execute`] for an answer that must reach the user before it counts as received: a command that is
    /// killed in between and run again gets the stored answer once more.
    ///
    /// At the first request after a resumption, `SequenceReused` means that an earlier command took effect and was
    /// killed before it could save (with `--window`, several requests of it): the request is sent again under the next
    /// number. `SequenceGap` and `SequenceStale` name the session's last number, and the request follows it.
    pub(crate) async fn execute_unsaved(&mut self, action: chat_request::Action) -> Result<(Reply, Executed)> {
        assert!(self.lock.is_some(), "a session's numbers are given out under the login's lock");
        let request = ChatRequest { action: Some(action) }.encode_to_vec();
        let mut resends = if self.fresh { self.session.window().max(1) } else { 0 };
        let executed = loop {
            match self.ask(request.clone()).await {
                Ok(executed) => break executed,
                Err(error) if error.is_resynchronised() && resends > 0 => {
                    // A gap or a stale number is mended at once or never; a reused one after at most a window.
                    resends = if matches!(error, Error::SequenceReused { .. }) { resends - 1 } else { 0 };
                }
                Err(error) => {
                    // A trap has a number too.
                    self.save(false)?;
                    return Err(explain(error, &self.name));
                }
            }
        };
        self.fresh = false;
        match answer(&executed.response, &self.name) {
            Ok(reply) => Ok((reply, executed)),
            Err(refused) => {
                // A refusal has its number too: kept unsaved, it would be the answer of the same command for ever.
                self.save(false)?;
                Err(refused)
            }
        }
    }

    async fn ask(&self, request: Vec<u8>) -> Result<Executed, Error> {
        ask_execute(&self.global, &self.session, request, self.patience).await
    }

    /// Asks `action`, of the state as it is now, on behalf of the session.
    pub(crate) async fn query(&self, action: chat_query::Action) -> Result<Reply> {
        query(&self.global, &self.client, Some(&self.session), action, &self.name).await
    }

    /// Saves how far the session has come.
    pub(crate) fn save(&mut self, durable: bool) -> Result<()> {
        self.login.update(&self.session.saved());
        self.store.save(&self.login, durable)
    }
}

fn load(store: &Store, name: &str) -> Result<Login> {
    store.load(name)?.ok_or_else(|| not_logged_in(format!("{name} is not logged in here; run `chat login {name}`")))
}

/// Executes `request` in `session`, trying for `patience`; with --vote at every server.
pub(crate) async fn ask_execute(
    global: &Global,
    session: &Session,
    request: Vec<u8>,
    patience: Duration,
) -> Result<Executed, Error> {
    if !global.vote {
        return session.execute_within(request, patience).await;
    }
    let vote = session.execute_vote(request).await?;
    global.votes.record(Vote::new(&vote, |executed| {
        let Executed { response, log_index, state_digest, .. } = executed;
        format!("at log index {log_index}, digest {state_digest}: {}", in_words(response))
    }));
    vote.answer
}

/// An answer, all of it, for people who look for a difference.
fn in_words(response: &[u8]) -> String {
    match ChatResponse::decode(response) {
        Ok(ChatResponse { result: Some(result) }) => format!("{result:?}"),
        _ => format!("{} bytes that are no answer of chat", response.len()),
    }
}

/// Asks `action`, of the state as it is now, with --vote at every server.
pub(crate) async fn query(
    global: &Global,
    client: &Client,
    session: Option<&Session>,
    action: chat_query::Action,
    account: &str,
) -> Result<Reply> {
    let request = ChatQuery { action: Some(action) }.encode_to_vec();
    let answered = if global.vote {
        client.query_vote(request, Consistency::Linearizable, session).await.and_then(|vote| {
            global.votes.record(Vote::new(&vote, |answer| in_words(&answer.response)));
            vote.answer
        })
    } else {
        client.query(request, Consistency::Linearizable, session).await
    };
    answer(&answered.map_err(|error| explain(error, account))?.response, account)
}

/// Reads the module's answer.
pub(crate) fn answer(response: &[u8], account: &str) -> Result<Reply> {
    let response = ChatResponse::decode(response).context("the servers do not run the chat application")?;
    match response.result {
        Some(Answer::Error(error)) => Err(refused(error, account)),
        Some(answer) => Ok(answer),
        None => Err(unexpected()),
    }
}

/// The module answered something else than it was asked for.
pub(crate) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!("the servers run another version of the chat application; update this program")
}
