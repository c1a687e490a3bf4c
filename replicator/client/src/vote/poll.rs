//! Asks every replica, over connections of the votes' own, so that other calls go on where they were.

use std::{future::Future, sync::Mutex, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use replicator_proto::replicator::v1 as pb;
use replicator_types::Sequence;
use tokio::time::Instant;
use tonic::{Response, Status, transport::Channel};

use super::{Ballot, Comparable, count, is_same};
use crate::{
    call::{Attempts, Exhausted, Limits},
    client::{Client, administration},
    error::Error,
    pool::{NodeRef, Pool},
};

/// How long replicas without an answer are tried again once a majority agrees. An attempt under way ends by itself.
const GRACE: Duration = Duration::from_secs(1);

/// A replica to ask.
struct Replica {
    name: String,
    address: String,
}

/// What came of asking.
pub(super) struct Polled<T> {
    pub(super) ballots: Vec<Ballot<T>>,
    /// Whether any replica that did not answer may have got the request.
    pub(super) unknown: bool,
}

/// Runs `operation` at every replica, and again at those that can't serve, until the deadline. No attempt begins later
/// than a second after a majority agrees; one that is under way then goes on for as long as any attempt may take.
/// `sequence` is for error messages; 0: none.
pub(super) async fn ask_all<T, F, Fut>(client: &Client, limits: Limits, sequence: u64, operation: F) -> Polled<T>
where
    T: Comparable,
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let replicas = replicas(client, limits).await;
    let addresses: Vec<String> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let valid: Vec<String> = addresses.iter().filter(|address| Pool::takes(address)).cloned().collect();
    let pool = client.voters(&valid);
    // A replica that fails isn't tried again after this.
    let patience = Mutex::new(limits.deadline);

    let ask = async |at: usize| {
        let address = &addresses[at];
        let node = pool.as_ref().ok().and_then(|pool| Some((pool, pool.learn(address).ok()??)));
        let answered = match node {
            Some((pool, node)) => ask(pool, node, limits, &patience, sequence, &operation).await,
            None => Err(Unanswered::Refused(Error::InvalidEndpoint { endpoint: address.clone() })),
        };
        (at, answered)
    };
    let mut asked: FuturesUnordered<_> = (0..replicas.len()).map(ask).collect();

    let waiting = || Error::InvalidEndpoint { endpoint: String::new() };
    let mut unknown = false;
    let mut ballots: Vec<Ballot<T>> = replicas
        .into_iter()
        .map(|Replica { name, address }| Ballot { node_id: name, endpoint: address, answer: Err(waiting()) })
        .collect();
    // Which replica each ballot is of.
    let mut voters: Vec<usize> = (0..ballots.len()).collect();
    while let Some((replica, answered)) = asked.next().await {
        let at =
            voters.iter().position(|&one| one == replica).expect("a ballot isn't dropped before it has its answer");
        ballots[at].answer = answered.map_err(|unanswered| match unanswered {
            Unanswered::Refused(error) => error,
            Unanswered::Exhausted(exhausted) if exhausted.unknown && sequence > 0 => {
                let Exhausted { waited, cause, .. } = exhausted;
                Error::OutcomeUnknown { sequence: Sequence(sequence), waited, cause }
            }
            Unanswered::Exhausted(exhausted) => exhausted.into(),
        });
        if let (true, Ok(answer)) = (ballots[at].node_id.is_empty(), &ballots[at].answer) {
            ballots[at].node_id = answer.node_id().to_owned();
        }
        let ballot = &ballots[at];
        unknown |= !ballot.is_answered() && ballot.answer.as_ref().is_err_and(Error::is_outcome_unknown);
        if (0..ballots.len()).any(|other| other != at && is_doubled(&ballots[other], ballot)) {
            ballots.remove(at);
            voters.remove(at);
        }
        if count(&ballots).is_some_and(|(verdict, _)| verdict.is_majority()) {
            let mut patience = patience.lock().expect("no code panics while it holds this");
            *patience = (*patience).min(Instant::now() + GRACE);
        }
    }
    drop(asked);
    Polled { ballots, unknown }
}

/// Whether two addresses lead to one node, which has then but one vote. Two that use one name and don't say the same both
/// count: else a liar could take the vote of another.
fn is_doubled<T: Comparable>(one: &Ballot<T>, other: &Ballot<T>) -> bool {
    !one.node_id.is_empty() && one.node_id == other.node_id && is_same(one, other)
}

enum Unanswered {
    Refused(Error),
    Exhausted(Exhausted),
}

/// Asks one replica.
async fn ask<T, F, Fut>(
    pool: &Pool,
    node: NodeRef,
    limits: Limits,
    patience: &Mutex<Instant>,
    sequence: u64,
    operation: &F,
) -> Result<T, Unanswered>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let mut attempts = Attempts::only(pool, node, limits.attempt);
    loop {
        match attempts.attempt(limits.deadline, sequence, operation).await {
            Ok(Some((_, answer))) => return Ok(answer),
            Ok(None) => {}
            Err(error) => return Err(Unanswered::Refused(error)),
        }
        let until = *patience.lock().expect("no code panics while it holds this");
        if !attempts.pause(until).await {
            return Err(Unanswered::Exhausted(attempts.exhausted()));
        }
    }
}

/// The voters, as the first of the configured nodes that knows them says; if none does, the configured nodes.
async fn replicas(client: &Client, limits: Limits) -> Vec<Replica> {
    let pool = client.pool();
    let ask = async |node: NodeRef| {
        let status = async |channel| administration(channel).status(pb::StatusRequest { state_hash: false }).await;
        let attempted = Attempts::only(pool, node, limits.attempt).attempt(limits.deadline, 0, status).await;
        let (_, status) = attempted.ok().flatten()?;
        let voters = Response::into_inner(status).members.into_iter().filter(|member| member.voter && !member.witness);
        let voters: Vec<_> =
            voters.map(|member| Replica { name: member.node_id, address: member.client_address }).collect();
        (!voters.is_empty()).then_some(voters)
    };
    let mut asked: FuturesUnordered<_> = pool.configured().map(ask).collect();
    while let Some(answered) = asked.next().await {
        if let Some(voters) = answered {
            return voters;
        }
    }
    pool.addresses().into_iter().map(|address| Replica { name: String::new(), address }).collect()
}
