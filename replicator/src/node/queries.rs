//! Reads: what they must see, and the answers of groups of them.

use std::time::Instant;

use bytes::Bytes;
use replicator_machine::{QueryOutcome, Refusal, RequestResult};
use replicator_types::{LogIndex, SessionId};
use tokio::sync::oneshot;

use super::{
    Node, NodeError,
    applier::{QueryGroup, Work},
};

/// One read.
#[derive(Debug, Clone)]
pub struct Read {
    /// On whose behalf, if anybody's.
    pub session: Option<SessionId>,
    /// What the module gets.
    pub request: Bytes,
}

/// What a read must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MustSee {
    /// Every write that was acknowledged before.
    Acknowledged,
    /// Everything up to here.
    Index(LogIndex),
    /// Whatever this replica has applied.
    Anything,
}

/// What the module replied, and the log index that the reply reflects.
pub type Answered = Result<(Bytes, LogIndex), NodeError>;

impl Node {
    /// Answers reads, all from one state that holds what they must see.
    ///
    /// # Errors
    /// If this replica can't answer any of them in time. Each has its own answer otherwise.
    pub async fn query(
        &self,
        reads: &[Read],
        must_see: MustSee,
        deadline: Instant,
    ) -> Result<Vec<Answered>, NodeError> {
        let index = match must_see {
            MustSee::Acknowledged => Some(self.read_index(deadline).await?),
            MustSee::Index(index) => Some(index),
            MustSee::Anything => None,
        };
        if let Some(index) = index {
            self.wait_applied(index, deadline).await?;
        }
        let mut answers = self.answer(reads.to_vec(), deadline).await?;
        if must_see == MustSee::Acknowledged {
            return Ok(answers);
        }
        // This replica may not have heard of a session yet. The other answers stand.
        let is_unknown = |answer: &Answered| matches!(answer, Err(NodeError::Refused(Refusal::SessionExpired)));
        let unknown: Vec<usize> = (0..answers.len()).filter(|&read| is_unknown(&answers[read])).collect();
        if !unknown.is_empty() {
            let again = unknown.iter().map(|&read| reads[read].clone()).collect();
            let answered = async {
                self.wait_applied(self.read_index(deadline).await?, deadline).await?;
                self.answer(again, deadline).await
            };
            let answered = answered.await.unwrap_or_else(|error| vec![Err(error); unknown.len()]);
            for (read, answer) in unknown.into_iter().zip(answered) {
                answers[read] = answer;
            }
        }
        Ok(answers)
    }

    async fn answer(&self, reads: Vec<Read>, deadline: Instant) -> Result<Vec<Answered>, NodeError> {
        self.running()?;
        self.check_halted()?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let given = self.applier.give(Work::Query(QueryGroup { reads, answer })).await;
            if given { answered.await.ok() } else { None }
        };
        let late = || NodeError::NotReady("the state machine is busy; try again, or another node".into());
        let answered = tokio::time::timeout_at(deadline.into(), asked).await.map_err(|_| late())?;
        let Some((outcomes, index)) = answered else {
            self.check_halted()?;
            return Err(late());
        };
        let answers = outcomes.into_iter().map(|outcome| match outcome {
            QueryOutcome::Answered { result: RequestResult::Reply(reply), .. } => Ok((reply, index)),
            QueryOutcome::Answered { result: RequestResult::Trap(trap), .. } => Err(NodeError::QueryTrapped(trap)),
            QueryOutcome::Refused(refusal) => Err(refusal.into()),
        });
        Ok(answers.collect())
    }

    /// The index that a linearizable read which begins now must see.
    ///
    /// # Errors
    /// If no primary confirms itself before `deadline`.
    pub async fn read_index(&self, deadline: Instant) -> Result<LogIndex, NodeError> {
        let running = self.running()?;
        let (reader, index) = oneshot::channel();
        let asked = async {
            running.reads.send(reader).await.ok()?;
            index.await.ok()
        };
        let index = tokio::time::timeout_at(deadline.into(), asked).await;
        index.ok().flatten().ok_or_else(|| NodeError::NotReady(self.why_no_primary()))
    }

    /// Waits until this replica has applied everything up to `index`.
    ///
    /// # Errors
    /// If it hasn't by `deadline`, or has halted.
    pub async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), NodeError> {
        let mut state = self.applied();
        let reached = state.wait_for(|state| state.halted.is_some() || state.index() >= Some(index));
        // Nothing of the answer is kept: it holds a lock, which the apply loop may be waiting for when the next line takes it again.
        let in_time = tokio::time::timeout_at(deadline.into(), reached).await.is_ok();
        self.check_halted()?;
        if in_time {
            return Ok(());
        }
        let applied = self.applier.state.borrow().index().unwrap_or_default();
        Err(NodeError::NotReady(format!("this replica is behind: it has applied {applied}, not {index}")))
    }
}
