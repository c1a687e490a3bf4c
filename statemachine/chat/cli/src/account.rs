//! The cluster, seen as one account: the login's lock, its session, and what is saved after each answer.

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use replicator_client::{Client, Consistency, Error, Executed, Session};
use replicator_proto::chat::v1::{
    ChatQuery, ChatRequest, ChatResponse, chat_query, chat_request, chat_response::Result as Answer,
};

use crate::{
    args::Global,
    failure::{explain, refused, usage},
    state::{Lock, Login, Store},
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

/// The account that a command is about: --user, or the last login.
pub(crate) fn account(global: &Global, store: &Store) -> Result<String> {
    match global.user.clone().or_else(|| store.current()) {
        Some(account) => Ok(account),
        None => bail!("nobody is logged in; run `chat login NAME`"),
    }
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
        Ok(Self { name, client, session, login, store, lock: Some(lock), fresh: true })
    }

    /// A login just made.
    pub(crate) fn logged_in(store: Store, lock: Lock, login: Login, session: Session) -> Self {
        let (name, client) = (login.account.clone(), session.client().clone());
        Self { name, client, session, login, store, lock: Some(lock), fresh: false }
    }

    /// Lets other commands use the login until [`Account::lock`].
    pub(crate) fn unlock(&mut self) {
        self.lock = None;
    }

    /// Takes the login again, with what other commands have done meanwhile.
    pub(crate) async fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(self.store.lock(&self.name).await?);
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
            match self.session.execute(request.clone()).await {
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

    /// Asks `action`, of the state as it is now, on behalf of the session.
    pub(crate) async fn query(&self, action: chat_query::Action) -> Result<Reply> {
        query(&self.client, Some(&self.session), action, &self.name).await
    }

    /// Saves how far the session has come.
    pub(crate) fn save(&mut self, durable: bool) -> Result<()> {
        self.login.update(&self.session.saved());
        self.store.save(&self.login, durable)
    }
}

fn load(store: &Store, name: &str) -> Result<Login> {
    store.load(name)?.with_context(|| format!("{name} is not logged in here; run `chat login {name}`"))
}

/// Asks `action`, of the state as it is now.
pub(crate) async fn query(
    client: &Client,
    session: Option<&Session>,
    action: chat_query::Action,
    account: &str,
) -> Result<Reply> {
    let request = ChatQuery { action: Some(action) }.encode_to_vec();
    let answered = client.query(request, Consistency::Linearizable, session).await;
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
