//! The two calls that are votes.

use bytes::Bytes;
use replicator_proto::replicator::v1::Consistency;
use replicator_types::Lineage;

use super::{Ballot, Polled, Vote, ask_all, count, is_outcome};
use crate::{
    client::{Answer, Client, service},
    error::{Error, Result},
    session::{Executed, Session, note_log_index, settled},
};

impl Session {
    /// Executes `request` by asking every replica for it, under one number, and returns what they answer side by side. It is
    /// executed once: each replica answers with what it computed for that one execution.
    ///
    /// The replicas are the voters that the cluster's status names; the configured endpoints, if no node can say. Each is
    /// tried until the client's deadline; an attempt that fails more than a second after a majority agrees is the last. Answers are
    /// compared by response (or trap), log index, epoch and digest. The session goes on with the winner.
    ///
    /// # Errors
    /// As [`Session::execute`], if that is what the majority says. [`Error::OutcomeUnknown`] or [`Error::Unavailable`] if
    /// no replica answers. [`Error::OutcomeUnknown`] if a minority refuses, nobody has an outcome, and others may have
    /// executed the request. A trap is in [`Vote::answer`].
    pub async fn execute_vote(&self, request: impl Into<Bytes>) -> Result<Vote<Executed>> {
        let request = request.into();
        let (mut sequencer, limits) = self.lock(self.client().deadline()).await?;
        self.resolve_all(&mut sequencer, limits, |_, _| {}).await?;
        sequencer.check()?;
        let sequence = sequencer.push(request.clone(), None, None);
        let message = self.message(&sequencer, sequence, request);
        let ask = |channel| {
            let message = message.clone();
            async move { Ok(Executed::new(sequence, service(channel).execute(message).await?.into_inner())) }
        };
        let Polled { ballots, unknown } = ask_all(self.client(), limits, sequence, ask).await;
        let Some((verdict, winner)) = count(&ballots) else {
            if !unknown {
                sequencer.withdraw(sequence);
            }
            return Err(unanswered(&ballots));
        };
        // One that refuses can't say what the others did, and the number must not go to another request.
        if unknown && !verdict.is_majority() && !is_outcome(&ballots[winner].answer) {
            return Err(unanswered(&ballots));
        }
        let answer = ballots[winner].answer.clone();
        note_log_index(self.client(), self.lineage(), &answer);
        match settled(&mut sequencer, sequence, answer) {
            Err(refusal) if !matches!(refusal, Error::ModuleTrapped { .. }) => Err(refusal),
            answer => Ok(Vote { answer, verdict, ballots }),
        }
    }
}

impl Client {
    /// [`Client::query`] at every replica, each of which answers from its own state, and what they answer side by side.
    ///
    /// The replicas are the voters that the cluster's status names; the configured endpoints, if no node can say. Each is
    /// tried until the client's deadline; an attempt that fails more than a second after a majority agrees is the last. Answers are
    /// compared by their responses: where others write at the same time, honest replicas may differ.
    ///
    /// ```no_run
    /// # async fn example(client: replicator_client::Client) -> replicator_client::Result<()> {
    /// use replicator_client::Consistency;
    ///
    /// let vote = client.query_vote("read", Consistency::Linearizable, None).await?;
    /// println!("{}: {:?}", vote.verdict, vote.answer?.response); // MAJORITY 2/3: …
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::query`], if that is what the majority says, or if no replica answers. A trap is in
    /// [`Vote::answer`].
    pub async fn query_vote(
        &self,
        request: impl Into<Bytes>,
        consistency: Consistency,
        session: Option<&Session>,
    ) -> Result<Vote<Answer>> {
        let query = self.query_request(request.into(), consistency, session);
        let lineage = Lineage(query.lineage);
        let ask = |channel| {
            let query = query.clone();
            async move { Ok(Answer::from(service(channel).query(query).await?.into_inner())) }
        };
        let Polled { ballots, .. } = ask_all(self, self.limits(), 0, ask).await;
        let Some((verdict, winner)) = count(&ballots) else {
            return Err(unanswered(&ballots));
        };
        match ballots[winner].answer.clone() {
            Err(refusal) if !matches!(refusal, Error::ModuleTrapped { .. }) => Err(refusal),
            answer => {
                if let Ok(answer) = &answer {
                    self.saw(lineage, answer.log_index);
                }
                Ok(Vote { answer, verdict, ballots })
            }
        }
    }
}

/// The error of a vote without an outcome, of those that did not answer: an unknown outcome, if any may have got the
/// request.
fn unanswered<T>(ballots: &[Ballot<T>]) -> Error {
    let silent = || ballots.iter().filter(|ballot| !ballot.is_answered());
    let errors = || silent().filter_map(|ballot| ballot.answer.as_ref().err());
    let unknown = errors().find(|error| error.is_outcome_unknown());
    unknown.or_else(|| errors().next()).cloned().unwrap_or(Error::NoEndpoints)
}
