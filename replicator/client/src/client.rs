//! The client: nodes, limits, and the calls that need no session.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use replicator_proto::replicator::v1::{
    self as pb, admin_service_client::AdminServiceClient, replicator_service_client::ReplicatorServiceClient,
};
use replicator_types::{Lineage, LogIndex, SessionId};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::{
    call::{Limits, after, call, call_shared},
    error::{Error, Result},
    lane::Queries,
    pool::{Connector, Pool},
    session::{SavedSession, Session},
    subscription::{Cursor, Subscription},
};

pub use pb::Consistency;

/// The largest message that the client takes from a node.
pub const RECEIVED_BYTES_MAX: usize = 64 << 20;
/// The largest message that the client sends. The cluster's own limit on requests is lower.
pub const SENT_BYTES_MAX: usize = 64 << 20;

/// How long a call is tried unless the caller says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
const DEFAULT_ATTEMPT: Duration = Duration::from_secs(2);
const DEFAULT_CONNECT: Duration = Duration::from_secs(1);

/// A client of one cluster. Cheap to clone; clones share connections.
///
/// Connects when first used, stays with the node that answers, and moves to another one when it doesn't.
///
/// ```no_run
/// # async fn example() -> replicator_client::Result<()> {
/// use replicator_client::{Client, Consistency};
///
/// let client = Client::builder().endpoints(["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"]).build()?;
/// let session = client.open_session(None).await?;
/// let done = session.execute("increment").await?;
/// println!("{:?} at log index {}", done.response, done.log_index);
/// let read = client.query("read", Consistency::Linearizable, None).await?;
/// println!("{:?}", read.response);
/// session.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Duration,
}

#[derive(Debug)]
struct Shared {
    pool: Pool,
    attempt: Duration,
    streams: bool,
    seen: Mutex<Seen>,
    /// The connections of the last vote.
    voters: Mutex<Option<Arc<Pool>>>,
}

/// The newest state that the client has seen.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    lineage: Lineage,
    log_index: LogIndex,
}

/// Makes a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    deadline: Duration,
    attempt: Duration,
    connect: Duration,
    streams: bool,
    connector: Connector,
}

impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            deadline: DEFAULT_DEADLINE,
            attempt: DEFAULT_ATTEMPT,
            connect: DEFAULT_CONNECT,
            streams: false,
            connector: Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await })),
        }
    }
}

impl ClientBuilder {
    /// Adds nodes' client addresses, as `host:port`. One that works is enough; more survive more failures.
    #[must_use]
    pub fn endpoints<I>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How long each call is tried in all; 10 s by default.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long a node may take to answer before another one is asked; 2 s by default. Doubles after each such attempt.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt = timeout;
        self
    }

    /// How long a connection may take to be made; 1 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect = timeout;
        self
    }

    /// Whether all sessions of the client share one `ExecuteStream`, and all queries one `QueryStream`, for each node that
    /// it uses; `false` by default. [`Session::execute`] and [`Client::query`] mean the same either way.
    ///
    /// Turn it on where many sessions or queries are under way at once, as in a server that acts for its own users:
    /// requests that are ready at the same moment share a message, which costs a tenth of as many unary calls. Leave it off
    /// for a call now and then, or where something between here and the nodes cuts or buffers long streams.
    ///
    /// ```no_run
    /// # async fn example() -> replicator_client::Result<()> {
    /// use futures::future::try_join_all;
    /// use replicator_client::Client;
    ///
    /// let client = Client::builder().endpoints(["127.0.0.1:7001"]).streams(true).build()?;
    /// let sessions = try_join_all((0..100).map(|_| client.open_session(None))).await?;
    /// let done = try_join_all(sessions.iter().map(|session| session.execute("increment"))).await?;
    /// assert_eq!(done.len(), 100);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn streams(mut self, streams: bool) -> Self {
        self.streams = streams;
        self
    }

    /// Replaces the way in which connections are made, for simulated networks.
    #[must_use]
    pub fn connect_with<F, Fut>(mut self, connect: F) -> Self
    where
        F: Fn(Endpoint) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Channel, tonic::transport::Error>> + Send + 'static,
    {
        self.connector = Arc::new(move |endpoint| Box::pin(connect(endpoint)));
        self
    }

    /// Makes the client. Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::NoEndpoints`] and [`Error::InvalidEndpoint`].
    pub fn build(self) -> Result<Client> {
        let pool = Pool::new(&self.endpoints, self.connect, self.connector)?;
        let (attempt, streams) = (self.attempt, self.streams);
        let shared = Arc::new(Shared { pool, attempt, streams, seen: Mutex::default(), voters: Mutex::default() });
        Ok(Client { shared, deadline: self.deadline })
    }
}

/// The answer to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the module replied.
    pub response: Bytes,
    /// The log index that the answer reflects.
    pub log_index: LogIndex,
    /// The name of the node that answered.
    pub node_id: String,
}

impl From<pb::QueryResponse> for Answer {
    fn from(answer: pb::QueryResponse) -> Self {
        let pb::QueryResponse { response, log_index, node_id } = answer;
        Self { response, log_index: LogIndex(log_index), node_id }
    }
}

impl Client {
    /// Starts to make a client.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The same client, whose calls are tried for `deadline`.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline }
    }

    /// How long a call is tried.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The configured addresses.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.pool.addresses()
    }

    /// Opens a session that outlives its last request by `ttl` of log time; `None`: by the cluster's default.
    ///
    /// # Errors
    /// [`Error::SessionsFull`]; [`Error::Unavailable`] at the deadline. A session whose answer was lost expires by itself.
    pub async fn open_session(&self, ttl: Option<Duration>) -> Result<Session> {
        let ttl_ms = ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let opened = call(self.pool(), self.limits(), 0, async |channel| {
            service(channel).open_session(pb::OpenSessionRequest { ttl_ms }).await
        })
        .await?;
        let id = SessionId::try_from(&opened.session_id[..])
            .map_err(|_| Error::Protocol { message: "a session id is not of 16 bytes".into() })?;
        let log_index = LogIndex(opened.log_index);
        let saved = SavedSession {
            id,
            lineage: Lineage(opened.lineage),
            next_sequence: replicator_types::Sequence(1),
            ttl: Duration::from_millis(opened.ttl_ms),
            window: opened.window,
            log_index,
            request_bytes_max: opened.request_bytes_max,
        };
        Ok(Session::resume(self, saved))
    }

    /// Reads the state without changing it, on behalf of `session` if there is one.
    ///
    /// [`Consistency::Session`] sees at least everything that this client has seen: its own writes and earlier reads.
    ///
    /// # Errors
    /// [`Error::ModuleTrapped`], [`Error::SessionExpired`], [`Error::LineageMismatch`], [`Error::InvalidRequest`],
    /// [`Error::RequestTooLarge`]; [`Error::Unavailable`] at the deadline.
    pub async fn query(
        &self,
        request: impl Into<Bytes>,
        consistency: Consistency,
        session: Option<&Session>,
    ) -> Result<Answer> {
        let query = self.query_request(request.into(), consistency, session);
        let lineage = Lineage(query.lineage);
        let answer = if self.has_streams() {
            call_shared::<Queries>(self.pool(), self.limits(), 0, &query).await?
        } else {
            call(self.pool(), self.limits(), 0, async |channel| service(channel).query(query.clone()).await).await?
        };
        let answer = Answer::from(answer);
        self.saw(lineage, answer.log_index);
        Ok(answer)
    }

    pub(crate) fn query_request(
        &self,
        request: Bytes,
        consistency: Consistency,
        session: Option<&Session>,
    ) -> pb::QueryRequest {
        let seen = self.seen();
        let lineage = session.map_or(seen.lineage, Session::lineage);
        pb::QueryRequest {
            request,
            consistency: consistency.into(),
            min_log_index: if consistency == Consistency::Session { seen.log_index.0 } else { 0 },
            session_id: session.map(Session::id_bytes).unwrap_or_default(),
            lineage: lineage.0,
        }
    }

    /// Subscribes to what the module pushes to `session` and to `topics`, after `after`, or from now on.
    ///
    /// Connects when first polled, and goes on at another node when its node fails.
    #[must_use]
    pub fn subscribe<I>(&self, session: Option<&Session>, topics: I, after: Option<Cursor>) -> Subscription
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let session_id = session.map(Session::id_bytes).unwrap_or_default();
        Subscription::new(self.clone(), session_id, topics.into_iter().map(Into::into).collect(), after)
    }

    /// Asks the node at `endpoint`, and no other, for its own view. `state_hash`: also hash its whole state.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`], [`Error::Unavailable`], [`Error::Rpc`].
    pub async fn status(&self, endpoint: &str, state_hash: bool) -> Result<pb::StatusResponse> {
        let began = Instant::now();
        let unavailable = |cause: tonic::Status| Error::Unavailable {
            waited: began.elapsed(),
            attempts: 1,
            endpoints: endpoint.to_owned(),
            cause: Box::new(cause),
        };
        let ask = async {
            let mut admin = self.admin(endpoint).await?;
            match admin.status(pb::StatusRequest { state_hash }).await {
                Ok(response) => Ok(response.into_inner()),
                Err(status) if status.code() == tonic::Code::Unavailable => Err(unavailable(status)),
                Err(status) => Err(Error::Rpc(Box::new(status))),
            }
        };
        tokio::time::timeout(self.deadline, ask)
            .await
            .unwrap_or_else(|_| Err(unavailable(tonic::Status::deadline_exceeded("no answer in time"))))
    }

    /// The operator's calls of the node at `endpoint`, over a connection of its own.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`], [`Error::Unavailable`].
    pub async fn admin(&self, endpoint: &str) -> Result<AdminServiceClient<Channel>> {
        let channel = self.shared.pool.channel_to(endpoint).await?;
        Ok(administration(channel))
    }

    /// The clients' calls of the node at `endpoint`, and no other: without sessions' bookkeeping or retry.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`], [`Error::Unavailable`].
    pub async fn node(&self, endpoint: &str) -> Result<ReplicatorServiceClient<Channel>> {
        Ok(service(self.shared.pool.channel_to(endpoint).await?))
    }

    /// The greatest log index seen, which a [`Consistency::Session`] query is sure to see.
    #[must_use]
    pub fn log_index_seen(&self) -> LogIndex {
        self.seen().log_index
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// The connections for votes among the nodes at `addresses`: those of the last vote, if it was among the same.
    pub(crate) fn voters(&self, addresses: &[String]) -> Result<Arc<Pool>> {
        let mut voters = self.shared.voters.lock().expect("no code panics while it holds this");
        match &*voters {
            Some(known) if known.addresses() == addresses => Ok(Arc::clone(known)),
            _ => {
                let pool = Arc::new(self.shared.pool.another(addresses)?);
                *voters = Some(Arc::clone(&pool));
                Ok(pool)
            }
        }
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.shared.attempt
    }

    /// Whether calls share streams.
    pub(crate) fn has_streams(&self) -> bool {
        self.shared.streams
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { deadline: after(self.deadline), attempt: self.shared.attempt }
    }

    fn seen(&self) -> Seen {
        *self.shared.seen.lock().expect("no code panics while it holds this")
    }

    /// Notes that the state at `log_index` of `lineage` was seen. Log indexes of two histories can't be compared.
    pub(crate) fn saw(&self, lineage: Lineage, log_index: LogIndex) {
        let mut seen = self.shared.seen.lock().expect("no code panics while it holds this");
        if seen.lineage == lineage {
            seen.log_index = seen.log_index.max(log_index);
        } else if lineage != Lineage(0) {
            *seen = Seen { lineage, log_index };
        }
    }
}

/// The generated client with our limits.
pub(crate) fn service(channel: Channel) -> ReplicatorServiceClient<Channel> {
    ReplicatorServiceClient::new(channel)
        .max_decoding_message_size(RECEIVED_BYTES_MAX)
        .max_encoding_message_size(SENT_BYTES_MAX)
}

/// The generated operators' client with our limits.
pub(crate) fn administration(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel)
        .max_decoding_message_size(RECEIVED_BYTES_MAX)
        .max_encoding_message_size(SENT_BYTES_MAX)
}
