//! What the configuration group keeps: who is in the chain, and which attempt may change that.

use std::fmt;

use replicator_types::{DiskId, Epoch, Incarnation, Position};
use serde::{Deserialize, Serialize};

/// A process on a disk, from its start to its end. A disk is eligible in any life; it acknowledges in the one that the configuration names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life {
    /// The disk.
    pub disk: DiskId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.disk, self.incarnation.0)
    }
}

/// Who replicates in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// Its number, from 1.
    pub epoch: Epoch,
    /// The members from primary to tail. Never empty, and no disk twice.
    pub chain: Vec<Life>,
    /// Where every member's log ended when it entered the epoch; None: empty.
    pub start: Option<Position>,
}

impl Configuration {
    /// Who orders, commits and answers: the first.
    ///
    /// # Panics
    /// If the chain is empty, which no configuration of a [`Record`] is.
    #[must_use]
    pub fn primary(&self) -> Life {
        *self.chain.first().expect("a recorded chain has a member")
    }

    /// The last; the primary, if it is alone.
    ///
    /// # Panics
    /// If the chain is empty, which no configuration of a [`Record`] is.
    #[must_use]
    pub fn tail(&self) -> Life {
        *self.chain.last().expect("a recorded chain has a member")
    }

    /// Whether this very life is a member.
    #[must_use]
    pub fn contains(&self, life: Life) -> bool {
        self.chain.contains(&life)
    }

    /// The life in which the disk is a member; a later one of it is eligible, but acknowledges nothing.
    #[must_use]
    pub fn life_of(&self, disk: DiskId) -> Option<Life> {
        self.chain.iter().copied().find(|life| life.disk == disk)
    }

    /// Who comes after `life`. None: it is the tail, or no member.
    #[must_use]
    pub fn successor(&self, life: Life) -> Option<Life> {
        let at = self.chain.iter().position(|member| *member == life)?;
        self.chain.get(at + 1).copied()
    }

    /// Who comes before `life`. None: it is the primary, or no member.
    #[must_use]
    pub fn predecessor(&self, life: Life) -> Option<Life> {
        let at = self.chain.iter().position(|member| *member == life)?;
        self.chain.get(at.checked_sub(1)?).copied()
    }

    /// Whether a member's log can end there, in whatever life: at the start, as it had confirmed, or with what was appended in this epoch. Any
    /// other end is an old copy's; also one above the start, with entries that were cut off before the epoch began. (An epoch above this one
    /// says that the configuration is old, not the disk.)
    pub(crate) fn explains(&self, last: Option<Position>) -> bool {
        last == self.start || last >= self.start && last.is_some_and(|last| last.epoch >= self.epoch)
    }

    /// Whether the chain is one: not empty, and no disk twice.
    pub(crate) fn is_chain(chain: &[Life]) -> bool {
        let twice = |(at, life): (usize, &Life)| chain[..at].iter().any(|before| before.disk == life.disk);
        !chain.is_empty() && !chain.iter().enumerate().any(twice)
    }
}

/// What a disk has promised: it acknowledges nothing in this epoch or below, and obeys no lesser (epoch, attempt).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Promise {
    /// The sealed epoch; 0: none.
    pub epoch: Epoch,
    /// The number of the attempt within it.
    pub attempt: u64,
}

/// The last granted attempt to leave the configuration's epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Attempt {
    /// Counts the grants in this epoch; 0: none yet.
    pub number: u64,
    /// Who asked, and a number that tells its grants apart.
    pub by: (DiskId, u64),
}

/// The group's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Record {
    /// The current configuration; None before the chain is founded.
    pub configuration: Option<Configuration>,
    /// The last grant in its epoch.
    pub attempt: Attempt,
    /// A chain shorter than this takes no writes; 1: any takes them.
    pub least_chain: u32,
}

/// A change of the record: one entry of the group's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Begins a chain, where there is none: a new cluster's in epoch 1 on empty logs; after an operator's recovery in an epoch above all
    /// that the surviving disk has seen, where its log ends.
    Found {
        /// The first epoch; at least 1.
        epoch: Epoch,
        /// From primary to tail.
        chain: Vec<Life>,
        /// Where every member's log ends; None: empty.
        start: Option<Position>,
        /// See [`Record::least_chain`].
        least_chain: u32,
    },
    /// Asks for the next attempt in `epoch`.
    Attempt {
        /// The epoch to leave.
        epoch: Epoch,
        /// See [`Attempt::by`].
        by: (DiskId, u64),
    },
    /// The compare-and-set to the next epoch (safety rule 7).
    Configure {
        /// The epoch to leave.
        epoch: Epoch,
        /// The attempt in which the members confirmed that they are equal.
        attempt: u64,
        /// Those members, in order.
        chain: Vec<Life>,
        /// Where their logs end.
        start: Option<Position>,
    },
}

/// What a command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The record has changed.
    Done,
    /// It has not: the command was made for another state of it.
    Stale,
}

impl Record {
    /// Applies one entry of the group's log: the same on every voter, whatever became of who proposed it.
    pub fn apply(&mut self, command: Command) -> Verdict {
        match command {
            Command::Found { epoch, chain, start, least_chain } => {
                let in_order = epoch > Epoch(0) && start.is_none_or(|start| start.epoch <= epoch);
                if self.configuration.is_some() || !in_order || !Configuration::is_chain(&chain) {
                    return Verdict::Stale;
                }
                self.configuration = Some(Configuration { epoch, chain, start });
                self.least_chain = least_chain;
            }
            Command::Attempt { epoch, by } => {
                if self.epoch() != Some(epoch) {
                    return Verdict::Stale;
                }
                self.attempt = Attempt { number: self.attempt.number + 1, by };
            }
            Command::Configure { epoch, attempt, chain, start } => {
                // Number 0 is no grant: nobody has promised anything for it.
                let granted = attempt > 0 && attempt == self.attempt.number;
                if self.epoch() != Some(epoch) || !granted || !Configuration::is_chain(&chain) {
                    return Verdict::Stale;
                }
                self.configuration = Some(Configuration { epoch: epoch.next(), chain, start });
                self.attempt = Attempt::default();
            }
        }
        Verdict::Done
    }

    fn epoch(&self) -> Option<Epoch> {
        self.configuration.as_ref().map(|configuration| configuration.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(disk: u64) -> Life {
        Life { disk: DiskId(disk), incarnation: Incarnation(1) }
    }

    fn attempt(epoch: u64, disk: u64, nonce: u64) -> Command {
        Command::Attempt { epoch: Epoch(epoch), by: (DiskId(disk), nonce) }
    }

    fn configure(epoch: u64, attempt: u64, chain: &[Life]) -> Command {
        Command::Configure { epoch: Epoch(epoch), attempt, chain: chain.to_vec(), start: Some(Position::new(1, 7)) }
    }

    fn found(chain: &[Life], least_chain: u32) -> Command {
        Command::Found { epoch: Epoch(1), chain: chain.to_vec(), start: None, least_chain }
    }

    fn founded() -> Record {
        let mut record = Record::default();
        assert_eq!(record.apply(found(&[life(1), life(2), life(3)], 2)), Verdict::Done);
        record
    }

    #[test]
    fn founding_begins_epoch_1_on_empty_logs() {
        let record = founded();
        let configuration = record.configuration.unwrap();
        assert_eq!((configuration.epoch, configuration.start), (Epoch(1), None));
        assert_eq!((record.attempt, record.least_chain), (Attempt::default(), 2));
    }

    #[test]
    fn a_chain_is_founded_once() {
        let mut record = founded();
        let before = record.clone();
        assert_eq!(record.apply(found(&[life(9)], 1)), Verdict::Stale);
        assert_eq!(record, before);
    }

    #[test]
    fn recovered_chain_begins_in_the_epoch_and_where_its_log_ends() {
        let recovered =
            |epoch, start| Command::Found { epoch: Epoch(epoch), chain: vec![life(1)], start, least_chain: 1 };
        let mut record = Record::default();
        let start = Some(Position::new(8, 41));
        assert_eq!(record.apply(recovered(9, start)), Verdict::Done);
        let configuration = record.configuration.clone().unwrap();
        assert_eq!((configuration.epoch, configuration.start), (Epoch(9), start));
        record.apply(attempt(9, 1, 5));
        assert_eq!(record.apply(configure(9, 1, &[life(1), life(2)])), Verdict::Done);
        for (epoch, start) in [(0, None), (7, start)] {
            assert_eq!(Record::default().apply(recovered(epoch, start)), Verdict::Stale, "epoch {epoch} {start:?}");
        }
    }

    #[test]
    fn no_chain_is_empty_or_names_a_disk_twice() {
        let again = Life { incarnation: Incarnation(2), ..life(1) };
        for chain in [vec![], vec![life(1), life(2), again]] {
            assert_eq!(Record::default().apply(found(&chain, 1)), Verdict::Stale, "{chain:?} was founded");
            let mut record = founded();
            record.apply(attempt(1, 1, 1));
            assert_eq!(record.apply(configure(1, 1, &chain)), Verdict::Stale, "{chain:?} was configured");
        }
    }

    #[test]
    fn attempts_are_numbered_in_the_order_of_their_grants() {
        let mut record = founded();
        assert_eq!(record.apply(attempt(1, 1, 5)), Verdict::Done);
        assert_eq!(record.apply(attempt(1, 2, 6)), Verdict::Done);
        assert_eq!(record.attempt, Attempt { number: 2, by: (DiskId(2), 6) });
    }

    #[test]
    fn an_attempt_for_another_epoch_is_stale() {
        for epoch in [0, 2] {
            assert_eq!(founded().apply(attempt(epoch, 1, 1)), Verdict::Stale, "epoch {epoch}");
        }
        assert_eq!(Record::default().apply(attempt(0, 1, 1)), Verdict::Stale);
    }

    #[test]
    fn the_granted_attempt_configures_the_next_epoch() {
        let mut record = founded();
        record.apply(attempt(1, 1, 5));
        assert_eq!(record.apply(configure(1, 1, &[life(2), life(3)])), Verdict::Done);
        let configuration = record.configuration.clone().unwrap();
        let expected =
            Configuration { epoch: Epoch(2), chain: vec![life(2), life(3)], start: Some(Position::new(1, 7)) };
        assert_eq!(configuration, expected);
        assert_eq!((record.attempt, record.least_chain), (Attempt::default(), 2));
        assert_eq!(record.apply(configure(1, 1, &[life(3)])), Verdict::Stale, "the same attempt configured twice");
    }

    #[test]
    fn a_later_grant_makes_the_earlier_attempt_stale() {
        let mut record = founded();
        record.apply(attempt(1, 1, 5));
        record.apply(attempt(1, 2, 6));
        assert_eq!(record.apply(configure(1, 1, &[life(1)])), Verdict::Stale);
        assert_eq!(record.apply(configure(1, 2, &[life(2)])), Verdict::Done);
    }

    #[test]
    fn without_a_grant_nothing_is_configured() {
        assert_eq!(founded().apply(configure(1, 0, &[life(1)])), Verdict::Stale);
    }

    #[test]
    fn members_log_ends_at_the_start_or_above_it_in_the_epoch() {
        let at = |epoch, index| Some(Position::new(epoch, index));
        let later = Configuration { epoch: Epoch(4), chain: vec![life(1)], start: at(2, 5) };
        assert!([at(2, 5), at(4, 6), at(5, 9)].into_iter().all(|last| later.explains(last)));
        for last in [None, at(2, 4), at(2, 6), at(3, 6), at(1, 9)] {
            assert!(!later.explains(last), "{last:?} is taken for a true disk's");
        }
        let recovered = Configuration { start: at(4, 5), ..later };
        assert!(!recovered.explains(at(4, 4)) && recovered.explains(at(4, 6)));
        let founded = Configuration { epoch: Epoch(1), start: None, ..recovered };
        assert!(founded.explains(None) && founded.explains(at(1, 0)));
    }

    #[test]
    fn neighbours_are_told_by_life_and_members_by_disk() {
        let configuration = founded().configuration.unwrap();
        assert_eq!((configuration.primary(), configuration.tail()), (life(1), life(3)));
        assert_eq!((configuration.predecessor(life(1)), configuration.successor(life(1))), (None, Some(life(2))));
        assert_eq!((configuration.predecessor(life(3)), configuration.successor(life(3))), (Some(life(2)), None));
        let again = Life { incarnation: Incarnation(2), ..life(2) };
        assert!(!configuration.contains(again));
        assert_eq!((configuration.predecessor(again), configuration.successor(again)), (None, None));
        assert_eq!((configuration.life_of(DiskId(2)), configuration.life_of(DiskId(4))), (Some(life(2)), None));
    }
}
