//! Whose state is right: what the replicas came to at one index, counted.

use replicator_types::{Digest, DiskId};

use crate::transport::DigestAt;

/// What a comparison at one index says of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nobody else has told anything.
    Alone,
    /// Nobody differs, or more have what this node has than anything else.
    Agreed {
        /// Others with the same answers.
        answers: usize,
        /// Others with the same state.
        states: usize,
    },
    /// At least two others have the same, and more than have what this node has.
    Outvoted(Difference),
    /// There is no telling.
    Tied(Difference),
}

/// What is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// Whether it is the answers; if not, the states behind equal ones.
    pub(super) answers: bool,
    /// The disks that have the other one.
    pub(super) against: Vec<DiskId>,
}

/// Counts this node's vote and the others'. Answers first: states are compared among those alone whose answers are equal.
pub(super) fn judge(own: DigestAt, others: &[(DiskId, DigestAt)]) -> Judgement {
    let answers: Vec<_> = others.iter().map(|(disk, at)| (*disk, at.digest)).collect();
    let equal = match count(own.digest, &answers) {
        Count { against: None, equal: 0 } => return Judgement::Alone,
        Count { against: None, equal } => equal,
        Count { against: Some((against, outvoted)), .. } => return differs(true, against, outvoted),
    };
    let Some(state) = own.state else { return Judgement::Agreed { answers: equal, states: 0 } };
    let same = others.iter().filter(|(_, at)| at.digest == own.digest);
    let states: Vec<_> = same.filter_map(|(disk, at)| Some((*disk, at.state?))).collect();
    match count(state, &states) {
        Count { against: None, equal: states } => Judgement::Agreed { answers: equal, states },
        Count { against: Some((against, outvoted)), .. } => differs(false, against, outvoted),
    }
}

fn differs(answers: bool, against: Vec<DiskId>, outvoted: bool) -> Judgement {
    let difference = Difference { answers, against };
    if outvoted { Judgement::Outvoted(difference) } else { Judgement::Tied(difference) }
}

struct Count {
    /// Others with the same.
    equal: usize,
    /// Those that have what most of the others have, if that are as many as have this node's, and whether they outvote it.
    against: Option<(Vec<DiskId>, bool)>,
}

fn count(own: Digest, others: &[(DiskId, Digest)]) -> Count {
    let with = |digest: Digest| others.iter().filter(move |(_, other)| *other == digest).map(|(disk, _)| *disk);
    let equal = with(own).count();
    let different = others.iter().map(|(_, digest)| *digest).filter(|digest| *digest != own);
    let most = different.max_by_key(|digest| with(*digest).count());
    let against: Vec<DiskId> = most.map(|digest| with(digest).collect()).unwrap_or_default();
    let ours = equal + 1;
    let outvoted = against.len() >= 2 && against.len() > ours;
    Count { equal, against: (!against.is_empty() && against.len() >= ours).then_some((against, outvoted)) }
}

#[cfg(test)]
mod tests {
    use replicator_types::LogIndex;

    use super::*;

    const fn at(digest: u64, state: u64) -> DigestAt {
        let state = if state == 0 { None } else { Some(Digest(state)) };
        DigestAt { index: LogIndex(1), digest: Digest(digest), state }
    }

    fn judged(own: DigestAt, others: &[DigestAt]) -> Judgement {
        let others: Vec<_> = (1..).map(DiskId).zip(others.iter().copied()).collect();
        judge(own, &others)
    }

    fn against(answers: bool, disks: &[u64]) -> Difference {
        Difference { answers, against: disks.iter().copied().map(DiskId).collect() }
    }

    #[test]
    fn equal_ones_agree_and_nobody_is_alone_with_one() {
        assert_eq!(judged(at(1, 5), &[]), Judgement::Alone);
        assert_eq!(judged(at(1, 5), &[at(1, 5)]), Judgement::Agreed { answers: 1, states: 1 });
        assert_eq!(judged(at(1, 0), &[at(1, 5), at(1, 5)]), Judgement::Agreed { answers: 2, states: 0 });
        assert_eq!(judged(at(1, 5), &[at(1, 0), at(1, 5)]), Judgement::Agreed { answers: 2, states: 1 });
    }

    #[test]
    fn two_that_agree_outvote_one() {
        assert_eq!(judged(at(1, 5), &[at(2, 5), at(2, 6)]), Judgement::Outvoted(against(true, &[1, 2])));
        assert_eq!(judged(at(1, 5), &[at(1, 6), at(1, 6)]), Judgement::Outvoted(against(false, &[1, 2])));
        // And are not troubled by it.
        assert_eq!(judged(at(2, 6), &[at(1, 5), at(2, 6)]), Judgement::Agreed { answers: 1, states: 1 });
        assert_eq!(judged(at(1, 6), &[at(1, 5), at(1, 6)]), Judgement::Agreed { answers: 2, states: 1 });
    }

    #[test]
    fn as_many_against_as_many_are_tied() {
        assert_eq!(judged(at(1, 5), &[at(2, 5)]), Judgement::Tied(against(true, &[1])));
        assert_eq!(judged(at(1, 5), &[at(1, 6)]), Judgement::Tied(against(false, &[1])));
        assert!(matches!(judged(at(1, 5), &[at(2, 5), at(3, 5)]), Judgement::Tied(_)), "three of three minds");
        let four = [at(1, 5), at(2, 5), at(2, 5)];
        assert_eq!(judged(at(1, 5), &four), Judgement::Tied(against(true, &[2, 3])));
    }

    #[test]
    fn of_five_the_greatest_number_counts() {
        let three = [at(2, 5), at(2, 5), at(2, 5), at(1, 5)];
        assert_eq!(judged(at(1, 5), &three), Judgement::Outvoted(against(true, &[1, 2, 3])));
        assert_eq!(
            judged(at(2, 5), &[at(2, 5), at(2, 5), at(1, 5), at(1, 5)]),
            Judgement::Agreed { answers: 2, states: 2 }
        );
        assert_eq!(
            judged(at(4, 5), &[at(2, 5), at(2, 5), at(1, 5), at(3, 5)]),
            Judgement::Outvoted(against(true, &[1, 2]))
        );
    }
}
