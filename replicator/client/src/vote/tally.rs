//! Counts ballots. No I/O.

use super::{Ballot, Verdict};
use crate::{
    client::Answer,
    error::{Error, Result},
    session::Executed,
};

/// Answers that can be told to be the same.
pub(super) trait Comparable {
    /// Whether two replicas say the same with these.
    fn is_same(&self, other: &Self) -> bool;

    /// The name of the replica.
    fn node_id(&self) -> &str;
}

/// Every copy of a request returns what its first execution left.
impl Comparable for Executed {
    fn is_same(&self, other: &Self) -> bool {
        self.response == other.response
            && (self.log_index, self.epoch, self.state_digest) == (other.log_index, other.epoch, other.state_digest)
    }

    fn node_id(&self) -> &str {
        &self.node_id
    }
}

/// Each replica answers at its own log index.
impl Comparable for Answer {
    fn is_same(&self, other: &Self) -> bool {
        self.response == other.response
    }

    fn node_id(&self) -> &str {
        &self.node_id
    }
}

/// Whether two ballots have the same answer. One without an answer is like no other.
pub(super) fn is_same<T: Comparable>(one: &Ballot<T>, other: &Ballot<T>) -> bool {
    match (&one.answer, &other.answer) {
        (Ok(one), Ok(other)) => one.is_same(other),
        (
            Err(Error::ModuleTrapped { message: m1, log_index: l1, state_digest: d1 }),
            Err(Error::ModuleTrapped { message: m2, log_index: l2, state_digest: d2 }),
        ) => (m1, l1, d1) == (m2, l2, d2),
        (Err(e1), Err(e2)) => one.is_answered() && other.is_answered() && e1.reason() == e2.reason(),
        _ => false,
    }
}

/// Whether the answer is an outcome: a reply or a trap, and not a refusal.
pub(super) fn is_outcome<T>(answer: &Result<T>) -> bool {
    matches!(answer, Ok(_) | Err(Error::ModuleTrapped { .. }))
}

/// The verdict, and which ballot has the answer. `None`: nobody answered.
pub(super) fn count<T: Comparable>(ballots: &[Ballot<T>]) -> Option<(Verdict, usize)> {
    let asked = ballots.len();
    let answered: Vec<usize> = (0..asked).filter(|&at| ballots[at].is_answered()).collect();
    let alike = |at: usize| answered.iter().filter(|&&other| is_same(&ballots[at], &ballots[other])).count();
    let &first = answered.first()?;
    let majority = answered.iter().copied().map(|at| (at, alike(at))).find(|&(_, alike)| alike > asked / 2);
    Some(match majority {
        Some((at, all)) if all == asked => (Verdict::Agreed { asked }, at),
        Some((at, agreeing)) => (Verdict::Majority { agreeing, asked }, at),
        None if alike(first) == answered.len() => (Verdict::Unconfirmed { answered: answered.len(), asked }, first),
        None => {
            let outcome = answered.iter().copied().find(|&at| is_outcome(&ballots[at].answer));
            (Verdict::Disagree, outcome.unwrap_or(first))
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use replicator_types::{Digest, Epoch, LogIndex, Sequence};
    use tonic::Status;

    use super::*;

    fn ballot(answer: Result<Executed>) -> Ballot<Executed> {
        Ballot { node_id: String::new(), endpoint: String::new(), answer }
    }

    fn executed(response: &'static str) -> Executed {
        Executed {
            sequence: Sequence(1),
            response: Bytes::from_static(response.as_bytes()),
            log_index: LogIndex(7),
            epoch: Epoch(1),
            node_id: "n1".into(),
            state_digest: Digest(3),
        }
    }

    /// A letter is a response, `!` a trap, `x` a refusal, `-` no answer.
    fn verdict(answers: &str) -> (String, usize) {
        let ballots: Vec<_> = answers
            .chars()
            .map(|letter| match letter {
                '-' => Err(Error::Rpc(Box::new(Status::internal("down")))),
                'x' => Err(Error::SessionExpired { message: String::new() }),
                '!' => Err(Error::ModuleTrapped {
                    message: "out of fuel".into(),
                    log_index: LogIndex(7),
                    state_digest: Digest(3),
                }),
                'a' => Ok(executed("a")),
                _ => Ok(executed("b")),
            })
            .map(ballot)
            .collect();
        count(&ballots).map_or(("NOBODY".into(), 0), |(verdict, at)| (verdict.to_string(), at))
    }

    #[test]
    fn the_majority_of_those_asked_wins() {
        for (answers, expected, winner) in [
            ("aaa", "AGREED 3/3", 0),
            ("a", "AGREED 1/1", 0),
            ("!!!", "AGREED 3/3", 0),
            ("baa", "MAJORITY 2/3", 1),
            ("-aa", "MAJORITY 2/3", 1),
            ("x!!", "MAJORITY 2/3", 1),
            ("baaa-", "MAJORITY 3/5", 1),
            ("ab!", "DISAGREE", 0),
            ("aabb", "DISAGREE", 0),
            ("-ba", "DISAGREE", 1),
            ("xab", "DISAGREE", 1),
            ("-a-", "UNCONFIRMED 1/3", 1),
            ("aa--", "UNCONFIRMED 2/4", 0),
            ("---", "NOBODY", 0),
        ] {
            assert_eq!(verdict(answers), (expected.to_owned(), winner), "{answers}");
        }
    }

    #[test]
    fn an_execution_is_compared_by_place_and_digest_too() {
        let first = executed("a");
        for other in [
            Executed { log_index: LogIndex(8), ..first.clone() },
            Executed { epoch: Epoch(2), ..first.clone() },
            Executed { state_digest: Digest(4), ..first.clone() },
        ] {
            assert!(!first.is_same(&other), "{other:?}");
        }
        assert!(first.is_same(&Executed { node_id: "n2".into(), ..first.clone() }));
    }

    #[test]
    fn a_query_is_compared_by_its_response_alone() {
        let answer = |log_index, response| Answer { response, log_index: LogIndex(log_index), node_id: "n1".into() };
        assert!(answer(1, Bytes::new()).is_same(&answer(2, Bytes::new())));
        assert!(!answer(1, Bytes::new()).is_same(&answer(1, Bytes::from_static(b"x"))));
    }
}
