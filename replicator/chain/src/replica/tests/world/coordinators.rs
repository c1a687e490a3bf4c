//! Coordinators without any caution, and the end of all faults.

use super::*;
use crate::{Role, Verdict};

impl World {
    /// A coordinator is granted an attempt, and asks all to promise it.
    pub(in crate::replica::tests) fn attempt(&mut self, which: usize) {
        let configuration = self.record.configuration.clone().expect("the chain is founded");
        let by = (DiskId(COORDINATORS + which as u64), self.record.attempt.number);
        assert_eq!(self.record.apply(Command::Attempt { epoch: configuration.epoch, by }), Verdict::Done);
        let attempt = self.record.attempt.number;
        self.rounds[which] = Round { promise: Promise { epoch: configuration.epoch, attempt }, ..Round::default() };
        self.seal(which);
    }

    /// It asks again.
    pub(in crate::replica::tests) fn seal(&mut self, which: usize) {
        let promise = self.rounds[which].promise;
        let Some(configuration) = self.record.configuration.clone().filter(|c| c.epoch == promise.epoch) else {
            return;
        };
        for at in 0..self.nodes.len() {
            let message = Message::Seal { configuration: configuration.clone(), attempt: promise.attempt };
            self.coordinator_sends(which, self.nodes[at].life.disk, message);
        }
    }

    fn eligible(&self, life: Life, last: Option<Position>) -> bool {
        let configuration = self.record.configuration.as_ref().expect("the chain is founded");
        configuration.life_of(life.disk).is_some() && last >= configuration.start
    }

    /// It chooses the target among the answers that it has, and asks those who gave them to be equal.
    pub(in crate::replica::tests) fn equalise(&mut self, which: usize) {
        let round = &self.rounds[which];
        if round.promise.epoch != self.record.configuration.as_ref().expect("the chain is founded").epoch {
            return;
        }
        let eligible = round.sealed.iter().filter(|(life, last)| self.eligible(**life, **last));
        let greatest = eligible.max_by_key(|(_, last)| **last).map(|(life, last)| (*last, life.disk));
        let Some((target, source)) = round.target.or(greatest) else { return };
        let (promise, asked): (_, Vec<DiskId>) = (round.promise, round.sealed.keys().map(|life| life.disk).collect());
        self.rounds[which].target = Some((target, source));
        for disk in asked {
            self.coordinator_sends(which, disk, Message::Equalise { promise, target, source });
        }
    }

    /// It proposes the next configuration, of those that confirmed; the record may refuse.
    pub(in crate::replica::tests) fn propose_configuration(&mut self, which: usize) {
        let round = &self.rounds[which];
        let Some((target, _)) = round.target else { return };
        let mut chain: Vec<Life> = Vec::new();
        for life in &round.equal {
            chain.retain(|other| other.disk != life.disk);
            chain.push(*life);
        }
        let holders = chain.iter().filter(|life| self.eligible(**life, target)).count();
        if holders == 0 {
            return;
        }
        let by = self.dice.below(chain.len());
        chain.rotate_left(by);
        let Promise { epoch, attempt } = self.rounds[which].promise;
        if self.record.apply(Command::Configure { epoch, attempt, chain: chain.clone(), start: target })
            == Verdict::Stale
        {
            return;
        }
        self.epochs += 1;
        self.history.extend(self.record.configuration.clone());
        for member in chain {
            let node = &self.nodes[member.disk.0 as usize - 1];
            for (index, committed) in self.committed.iter().enumerate() {
                let held = node.disk.position(LogIndex(index as u64));
                assert_eq!(held, Some(*committed), "committed, and not at {member} in the next epoch (6)");
            }
        }
    }

    /// Everything in the queues comes, and every disk finishes, until nothing is left.
    pub(in crate::replica::tests) fn settle(&mut self) {
        for _ in 0..10_000 {
            let pairs = self.pairs();
            for (from, to) in &pairs {
                self.deliver(*from, *to);
            }
            let busy: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.nodes[*at].jobs.is_empty()).collect();
            busy.iter().for_each(|at| self.flush(*at));
            if pairs.is_empty() && busy.is_empty() {
                return;
            }
        }
        panic!("the replicas never come to rest");
    }

    /// The faults end: one attempt takes all in, and all become equal.
    pub(in crate::replica::tests) fn converge(&mut self) {
        self.late.clear();
        self.settle();
        self.attempt(0);
        for round in 0..50 {
            (0..self.nodes.len()).for_each(|at| self.tick(at));
            self.settle();
            let all = self.rounds[0].sealed.len() == self.nodes.len();
            if all && self.rounds[0].equal.len() < self.nodes.len() {
                self.equalise(0);
            } else if !all {
                self.seal(0);
            } else {
                self.propose_configuration(0);
                break;
            }
            assert!(round < 49, "an attempt without faults doesn't end");
        }
        (0..self.nodes.len()).for_each(|at| self.learn(at));
        self.settle();
        let primary = self.record.configuration.as_ref().expect("the chain is founded").primary();
        let primary = primary.disk.0 as usize - 1;
        assert_eq!(self.nodes[primary].replica.standing().role, Role::Primary);
        for _ in 0..5 {
            self.propose(primary, 3);
            self.read(primary);
            (0..self.nodes.len()).for_each(|at| self.tick(at));
            self.settle();
        }
        (0..self.nodes.len()).for_each(|at| self.tick(at));
        self.settle();
        self.check_equal();
    }

    /// The faults end: without another configuration, what was lost is sent again.
    pub(in crate::replica::tests) fn recover(&mut self) {
        self.late.clear();
        for _ in 0..5 {
            self.settle();
            (0..self.nodes.len()).for_each(|at| self.tick(at));
        }
        self.settle();
        assert_eq!(self.nodes.iter().map(|node| node.replica.standing().held).sum::<usize>(), 0, "held for good");
        self.check_equal();
    }

    fn check_equal(&self) {
        let last = self.committed.last().copied();
        for node in &self.nodes {
            let standing = node.replica.standing();
            assert_eq!((standing.last, standing.durable, standing.commit), (last, last, last), "{} lags", node.life);
            assert_eq!(node.disk.entries, self.nodes[0].disk.entries, "{} has another log", node.life);
        }
    }
}
