//! Writers: each appends 0, 1, 2, … to the journal under its own name, for as long as it lasts, whatever happens to the nodes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use replicator_client::{Client, Error, Executed, Pipeline, Session};
use tokio::{sync::mpsc, time::Instant};

use super::{account::Ack, copies, world::World};
use crate::cli::journal;

/// Between two requests of one writer, so that the logs stay short enough to be replayed in a moment.
const PACE: Duration = Duration::from_millis(2);
/// Requests of a pipeline in flight.
const WINDOW: usize = 32;
/// How long a node may take before another one is asked.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How long a request is tried: longer than a round may take in all, so that only a cluster that hangs gets there.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// How long a session lives: longer than any writer is silent, so that none expires.
pub(super) const SESSION_TTL: Duration = Duration::from_secs(3_600);
/// How long a request over a shared stream is tried at one node before the session goes on at the next.
const STAY: Duration = Duration::from_secs(1);
/// Between two such tries, so that refusals don't become the load.
const AGAIN: Duration = Duration::from_millis(20);
/// Writers that share streams.
const SHARING: usize = 2;

/// How a writer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Many in flight, over a stream of its own.
    Pipeline,
    /// One by one, each in a call of its own.
    Unary,
    /// One by one, over streams that it shares with other sessions.
    SharedStream,
    /// One by one, each to all nodes at once, whose answers must be equal.
    Copies,
}

impl Way {
    const ALL: [Self; 4] = [Self::Pipeline, Self::Unary, Self::SharedStream, Self::Copies];

    /// That of a writer.
    pub(super) fn of(writer: usize) -> Self {
        Self::ALL[writer % Self::ALL.len()]
    }
}

/// The name under which a writer appends.
pub(super) fn name(writer: usize) -> String {
    format!("w{writer}")
}

/// How a writer reaches the nodes.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// Knows all nodes.
    client: Client,
    /// One for each node, with streams: the same ones for all who share streams.
    shared: Arc<[Client]>,
}

/// Those of all writers.
pub(super) fn connections(world: &World, writers: usize) -> anyhow::Result<Vec<Connection>> {
    let shared = (0..world.endpoints.len())
        .map(|node| world.client_of(node).attempt_timeout(ATTEMPT).deadline(STAY).streams(true).build())
        .collect::<Result<Arc<[_]>, _>>()?;
    let connection = |_| {
        let client = world.client().attempt_timeout(ATTEMPT).deadline(DEADLINE).build()?;
        Ok(Connection { client, shared: Arc::clone(&shared) })
    };
    (0..writers).map(connection).collect()
}

/// Writes until the word to stop.
pub(super) async fn write(world: World, connection: Connection, writer: usize) -> anyhow::Result<()> {
    let way = Way::of(writer);
    let Connection { client, shared } = connection;
    let task = Writer { world, client, shared, writer };
    let done = match way {
        Way::Pipeline => task.pipelined().await,
        Way::Unary => task.one_by_one().await,
        Way::SharedStream => task.node_by_node().await,
        Way::Copies => copies::write(&task.world, writer).await,
    };
    done.with_context(|| format!("writer {writer} ({way:?})"))
}

/// The request that appends a number.
pub(super) fn request(writer: usize, number: u64) -> String {
    // Of different lengths, so that batches are.
    journal::append(&name(writer), number, 48 + usize::try_from(number % 5).unwrap_or(0) * 40)
}

/// What an answer says.
pub(super) fn ack(response: &[u8], log_index: u64, digest: u64) -> anyhow::Result<Ack> {
    let text = String::from_utf8_lossy(response);
    let execution = text.split(' ').next().and_then(|word| word.parse().ok());
    let execution = execution.with_context(|| format!("an append was answered {text:?}"))?;
    Ok(Ack { log_index, execution, digest })
}

struct Writer {
    world: World,
    client: Client,
    shared: Arc<[Client]>,
    writer: usize,
}

/// Whether a session can go on after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    NewSession,
}

impl Writer {
    async fn one_by_one(&self) -> anyhow::Result<()> {
        let mut session = self.client.open_session(Some(SESSION_TTL)).await?;
        while !self.world.is_stopped() {
            let number = self.world.account().sent(self.writer);
            let outcome = self.settle(&session, number).await?;
            if self.note(number, outcome)? == Next::NewSession {
                session = self.client.open_session(Some(SESSION_TTL)).await?;
            }
            tokio::time::sleep(PACE).await;
        }
        session.close().await?;
        Ok(())
    }

    /// Executes over the streams of one node, and takes the session to the next one when that is away.
    async fn node_by_node(&self) -> anyhow::Result<()> {
        let mut turn = self.writer / Way::ALL.len() / SHARING;
        let mut session = self.client.open_session(Some(SESSION_TTL)).await?;
        session = Session::resume(self.shared(turn), session.saved());
        while !self.world.is_stopped() {
            let number = self.world.account().sent(self.writer);
            let began = Instant::now();
            let mut unknown = false;
            let outcome = loop {
                match session.execute(request(self.writer, number)).await {
                    Err(error @ (Error::OutcomeUnknown { .. } | Error::Unavailable { .. })) => {
                        // Whether the same number, sent again elsewhere, is executed once is what is tested.
                        turn += 1;
                        session = Session::resume(self.shared(turn), session.saved());
                        unknown |= matches!(error, Error::OutcomeUnknown { .. });
                        if !unknown {
                            break Err(error);
                        }
                        if began.elapsed() > DEADLINE {
                            return Err(error).context("an outcome stays unknown");
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                    known => break known,
                }
            };
            if self.note(number, outcome)? == Next::NewSession {
                session = self.client.open_session(Some(SESSION_TTL)).await?;
                session = Session::resume(self.shared(turn), session.saved());
            }
            tokio::time::sleep(PACE).await;
        }
        Session::resume(&self.client, session.saved()).close().await?;
        Ok(())
    }

    fn shared(&self, turn: usize) -> &Client {
        &self.shared[turn % self.shared.len()]
    }

    /// Executes one append, and asks for its outcome as long as it isn't known.
    async fn settle(&self, session: &Session, number: u64) -> anyhow::Result<Result<Executed, Error>> {
        match session.execute(request(self.writer, number)).await {
            Err(Error::OutcomeUnknown { .. }) => {}
            known => return Ok(known),
        }
        let mut resolved = session.resolve().await.context("an outcome stays unknown")?;
        match (resolved.pop(), resolved.pop()) {
            (Some((_, outcome)), None) => Ok(outcome),
            other => bail!("one outcome was unknown, and {other:?} came of it"),
        }
    }

    async fn pipelined(&self) -> anyhow::Result<()> {
        while !self.world.is_stopped() {
            let session = self.client.open_session(Some(SESSION_TTL)).await?;
            let pipeline = session.pipeline(WINDOW).await?;
            let (outcomes, mut waiting) = mpsc::channel(WINDOW);
            let submitting = self.submit(&pipeline, outcomes);
            let noting = async {
                let mut next = Next::Go;
                while let Some((number, outcome)) = waiting.recv().await {
                    let outcome: replicator_client::Outcome = outcome;
                    if self.note(number, outcome.await)? == Next::NewSession {
                        next = Next::NewSession;
                    }
                }
                anyhow::Ok(next)
            };
            let ((), next) = tokio::try_join!(submitting, noting)?;
            match pipeline.close().await {
                Ok(()) => drop(session.close().await?),
                Err(error) if next == Next::Go => {
                    return Err(error).context("a pipeline failed without failing a request");
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Submits until the word to stop, or until the pipeline takes no more.
    async fn submit(
        &self,
        pipeline: &Pipeline,
        outcomes: mpsc::Sender<(u64, replicator_client::Outcome)>,
    ) -> anyhow::Result<()> {
        while !self.world.is_stopped() {
            let number = self.world.account().sent(self.writer);
            match pipeline.submit(request(self.writer, number)).await {
                Ok(outcome) => {
                    if outcomes.send((number, outcome)).await.is_err() {
                        return Ok(()); // The other half tells why.
                    }
                }
                Err(Error::SessionBusy { waited }) => bail!("the pipeline had no room for {waited:.0?}"),
                Err(_) => {
                    // It was not sent, and the pipeline has ended.
                    self.world.account().refused(self.writer, number);
                    return Ok(());
                }
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// Notes an outcome. An error: one that has no place here.
    fn note(&self, number: u64, outcome: Result<Executed, Error>) -> anyhow::Result<Next> {
        match outcome {
            Ok(done) => {
                let ack = ack(&done.response, done.log_index.0, done.state_digest.0)?;
                self.world.account().acknowledged(self.writer, number, ack);
                Ok(Next::Go)
            }
            // Nothing was done, and the session goes on.
            Err(Error::Unavailable { .. } | Error::SessionBusy { .. }) => {
                self.world.account().refused(self.writer, number);
                Ok(Next::Go)
            }
            Err(Error::PipelineBroken) => {
                self.world.account().refused(self.writer, number);
                Ok(Next::NewSession)
            }
            // What the session's last request came to will never be known.
            Err(Error::SessionExpired { .. }) => {
                self.world.account().expired(self.writer, number);
                Ok(Next::NewSession)
            }
            Err(error) => Err(anyhow!(error).context(format!("number {number}"))),
        }
    }
}
