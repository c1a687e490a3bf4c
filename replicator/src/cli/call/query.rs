//! `replicator query`: reads.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use replicator_client::{
    Answer, Client, Consistency, Error, Lineage, LogIndex, SavedSession, Sequence, Session, SessionId,
};
use replicator_proto::replicator::v1::{self as pb, replicator_service_client::ReplicatorServiceClient};
use tokio::sync::mpsc;
use tonic::{Code, Request, transport::Channel};

use super::{
    caller::stopped,
    input::{Input, Line, RequestArgs},
    print::{self, Printer},
    session_file, vote,
};
use crate::cli::{Endpoints, Failure, Output, output, status::survey};

#[derive(Debug, Args)]
pub(in crate::cli) struct QueryArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// What the answer may miss. Default: nothing that was acknowledged; with --min-log-index or --session: nothing up to there
    #[arg(long, value_enum)]
    consistency: Option<May>,
    /// Wait until the replica has applied this log index, such as that of one's own write
    #[arg(long, value_name = "INDEX")]
    min_log_index: Option<u64>,
    /// Ask as the session in this file, which `replicator call --session` keeps, and see at least what it has written
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    /// Ask this node and no other: its name or its client address
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Ask every replica, and compare what they answer: the majority of those asked wins. Exit code 3 if none agree
    #[arg(long, conflicts_with_all = ["stdin", "node"])]
    vote: bool,
    /// How long to try
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds, default_value = "10")]
    deadline: Duration,
    /// Print the response's bytes as they are
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

/// What an answer may miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum May {
    /// Nothing that was acknowledged before
    Linearizable,
    /// What is behind a log index: that of one's own writes
    Session,
    /// Whatever the node hasn't applied yet
    Local,
}

impl From<May> for Consistency {
    fn from(may: May) -> Self {
        match may {
            May::Linearizable => Self::Linearizable,
            May::Session => Self::Session,
            May::Local => Self::Local,
        }
    }
}

impl QueryArgs {
    /// The consistency that the flags come to.
    fn consistency(&self) -> Result<Consistency, Failure> {
        let consistency = match (self.consistency, self.min_log_index) {
            (None | Some(May::Session), Some(_)) => May::Session,
            (Some(_), Some(_)) => {
                return Err(Failure::Usage("--min-log-index is for --consistency session".into()));
            }
            (Some(May::Session), None) if self.session.is_none() => {
                return Err(Failure::Usage(
                    "--consistency session needs to know what you have seen: give --min-log-index, or --session".into(),
                ));
            }
            (Some(chosen), None) => chosen,
            (None, None) if self.session.is_some() => May::Session,
            (None, None) => May::Linearizable,
        };
        Ok(consistency.into())
    }
}

pub(in crate::cli) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let consistency = args.consistency()?;
    let QueryArgs { request, min_log_index, session, node, vote, deadline, raw, endpoints, output, .. } = args;
    let format = output.output;
    print::check_raw(raw, request.stdin, format)?;
    let client = Client::builder().endpoints(endpoints.endpoints.iter().cloned()).deadline(deadline).build()?;
    let kept = match &session {
        None => None,
        Some(path) => Some(session_file::read(path)?.with_context(|| format!("{} holds no session", path.display()))?),
    };
    let saved = kept.map(|kept| kept.session);
    let seen = LogIndex(min_log_index.unwrap_or_default());
    let reader = match node {
        Some(node) => {
            let address = address(&client, &endpoints.endpoints, node).await?;
            let least = saved.as_ref().map_or(seen, |saved| seen.max(saved.log_index));
            let query = pb::QueryRequest {
                request: Bytes::new(),
                consistency: consistency.into(),
                min_log_index: if consistency == Consistency::Session { least.0 } else { 0 },
                session_id: saved.as_ref().map(|saved| Bytes::copy_from_slice(&saved.id.0)).unwrap_or_default(),
                lineage: saved.as_ref().map_or(0, |saved| saved.lineage.0),
            };
            Reader::Node { service: client.node(&address).await?, address, query, deadline }
        }
        None => Reader::Cluster { session: seen_up_to(&client, saved, seen), client, consistency },
    };
    let printer = Printer { format, raw, lines: request.stdin };
    match request.open()? {
        Input::One(request) if vote => {
            let Reader::Cluster { client, session, consistency } = reader else { unreachable!("clap takes no --node") };
            let vote = client.query_vote(request, consistency, session.as_ref()).await?;
            let json = vote.answer.as_ref().map_or_else(|_| serde_json::json!({}), print::answered);
            vote::tell(&printer, &vote, json)
        }
        Input::One(request) => {
            let answer = reader.ask(request).await?;
            Ok(printer.answer(None, &answer.response, print::answered(&answer))?)
        }
        Input::Lines(input) => lines(&reader, input, request.window as usize, printer).await,
    }
}

/// The session to ask as, if there is one. Either way the client has seen all up to `seen` on return.
fn seen_up_to(client: &Client, saved: Option<SavedSession>, seen: LogIndex) -> Option<Session> {
    let asked_as = saved.is_some();
    let nobody = SavedSession {
        id: SessionId([0; 16]),
        lineage: Lineage(0),
        next_sequence: Sequence(1),
        ttl: Duration::ZERO,
        window: 1,
        log_index: seen,
        request_bytes_max: 0,
    };
    let mut saved = saved.unwrap_or(nobody);
    saved.log_index = saved.log_index.max(seen);
    // To go on with a session sends nothing, but makes its log index known.
    let session = Session::resume(client, saved);
    asked_as.then_some(session)
}

/// The address of a node that is named by its name or its address.
async fn address(client: &Client, endpoints: &[String], node: String) -> Result<String, Failure> {
    if node.contains(':') {
        return Ok(node);
    }
    let known = survey(client, endpoints).await;
    let found = known.iter().find_map(|one| match &one.status {
        Ok(status) if status.node_id == node => Some(one.endpoint.clone()),
        Ok(status) => status.members.iter().find(|m| m.node_id == node).map(|m| m.client_address.clone()),
        Err(_) => None,
    });
    found.ok_or_else(|| {
        Failure::Failed(anyhow!("no node that answers knows of a node {node:?}; `replicator status` lists them"))
    })
}

/// Who is asked.
enum Reader {
    /// Any node that answers.
    Cluster { client: Client, session: Option<Session>, consistency: Consistency },
    /// One node, once.
    Node { service: ReplicatorServiceClient<Channel>, address: String, query: pb::QueryRequest, deadline: Duration },
}

impl Reader {
    async fn ask(&self, request: Bytes) -> Result<Answer, Error> {
        match self {
            Self::Cluster { client, session, consistency } => {
                client.query(request, *consistency, session.as_ref()).await
            }
            Self::Node { service, address, query, deadline } => {
                let began = Instant::now();
                let mut message = Request::new(pb::QueryRequest { request, ..query.clone() });
                message.set_timeout(*deadline);
                let answer = service.clone().query(message).await.map_err(|status| match status.code() {
                    Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Error::Unavailable {
                        waited: began.elapsed(),
                        attempts: 1,
                        endpoints: address.clone(),
                        cause: Box::new(status),
                    },
                    _ => Error::Rpc(Box::new(status)),
                })?;
                let pb::QueryResponse { response, log_index, node_id } = answer.into_inner();
                Ok(Answer { response, log_index: LogIndex(log_index), node_id })
            }
        }
    }

    /// Asks, and returns the line with the answer.
    fn ask_line(&self, line: u64, request: Bytes) -> BoxFuture<'_, (u64, Result<Answer, Error>)> {
        async move { (line, self.ask(request).await) }.boxed()
    }
}

/// Asks each line. One that the module or the cluster refuses is told, and the next ones go on.
async fn lines(
    reader: &Reader,
    mut input: mpsc::Receiver<Line>,
    window: usize,
    printer: Printer,
) -> Result<(), Failure> {
    let mut under_way: FuturesOrdered<BoxFuture<'_, (u64, Result<Answer, Error>)>> = FuturesOrdered::new();
    let (mut open, mut answered, mut without) = (true, 0, 0_usize);
    while open || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some((line, answer)) = under_way.next(), if !under_way.is_empty() => match answer {
                Ok(answer) => {
                    answered += 1;
                    printer.answer(Some(line), &answer.response, print::answered(&answer))?;
                }
                Err(error @ Error::Unavailable { .. }) => return Err(stopped(line, answered, error.into())),
                Err(error) => {
                    without += 1;
                    printer.no_answer(line, &error.into())?;
                }
            },
            line = input.recv(), if open && under_way.len() < window => match line {
                None => open = false,
                Some(Ok((line, request))) => under_way.push_back(reader.ask_line(line, request)),
                // What came before it still has its turn.
                Some(Err(error)) => {
                    output::note(printer.format, &format!("no more lines are read: {error:#}"));
                    without += 1;
                    open = false;
                }
            },
        }
    }
    if without > 0 {
        return Err(anyhow!("{} without an answer, {answered} answered", output::count(without, "line")).into());
    }
    Ok(())
}
