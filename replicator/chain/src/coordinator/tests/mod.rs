//! The coordinator alone, on members that answer at once. Whole nodes are driven by the golden scripts.

mod answers;
mod joining;
mod leaving;
mod trouble;

use std::collections::BTreeMap;

use replicator_types::{Incarnation, Position};

use super::*;
use crate::{Life, Link, Promise};

const LEAST: u32 = 1;

struct Member {
    life: Life,
    last: Option<Position>,
    commit: Option<Position>,
    epoch: u64,
    promise: Promise,
    link: Option<Link>,
    beats: bool,
    answers: bool,
}

struct Bench {
    coordinator: Coordinator,
    record: Record,
    members: BTreeMap<u64, Member>,
    effects: Vec<CoordinatorEffect>,
    done: Vec<CoordinatorEffect>,
    grants: bool,
}

fn life(disk: u64, incarnation: u64) -> Life {
    Life { disk: DiskId(disk), incarnation: Incarnation(incarnation) }
}

impl Bench {
    /// A chain of `members`, each with entries 0..5 of epoch 1, and the coordinator of a witness that leads.
    fn new(members: &[u64]) -> Self {
        let mut record = Record::default();
        let chain = members.iter().map(|disk| life(*disk, 1)).collect();
        record.apply(Command::Found { epoch: Epoch(1), chain, start: None, least_chain: LEAST });
        let mut bench = Self {
            coordinator: Coordinator::new(DiskId(9), 0, Timing::default()),
            record,
            members: BTreeMap::new(),
            effects: Vec::new(),
            done: Vec::new(),
            grants: true,
        };
        for disk in members {
            bench.add(*disk);
        }
        bench.give(CoordinatorEvent::Recorded(bench.record.clone()));
        bench.give(CoordinatorEvent::Leading(true));
        bench.ticks(1);
        bench
    }

    fn add(&mut self, disk: u64) {
        let last = Some(Position::new(1, 4));
        let member = Member {
            life: life(disk, 1),
            last,
            commit: last,
            epoch: self.record.configuration.as_ref().map_or(0, |c| c.epoch.0),
            promise: Promise::default(),
            link: None,
            beats: true,
            answers: true,
        };
        self.members.insert(disk, member);
        self.give(CoordinatorEvent::Voters(self.members.keys().copied().map(DiskId).collect()));
    }

    fn member(&mut self, disk: u64) -> &mut Member {
        self.members.get_mut(&disk).unwrap()
    }

    fn give(&mut self, event: CoordinatorEvent) {
        self.coordinator.step(event, &mut self.effects);
        while !self.effects.is_empty() {
            let effect = self.effects.remove(0);
            match effect {
                CoordinatorEffect::Propose(command) if self.grants => {
                    self.record.apply(command);
                    self.coordinator.step(CoordinatorEvent::Recorded(self.record.clone()), &mut self.effects);
                }
                CoordinatorEffect::Propose(_) => {}
                CoordinatorEffect::Send { to, message } => self.answer(to, message),
                other => self.done.push(other),
            }
        }
    }

    fn answer(&mut self, to: DiskId, message: Message) {
        let Some(member) = self.members.get_mut(&to.0).filter(|member| member.beats) else { return };
        let life = member.life;
        let answer = match message {
            Message::Configured { configuration } => {
                member.epoch = configuration.epoch.0;
                member.link = None;
                return;
            }
            Message::Seal { configuration, attempt } => {
                member.promise = member.promise.max(Promise { epoch: configuration.epoch, attempt });
                Message::Sealed { promise: member.promise, life, last: member.last }
            }
            Message::Equalise { promise, target, .. } => {
                member.last = target;
                Message::Equal { promise, life, last: target }
            }
            other => panic!("a coordinator sent {other:?}"),
        };
        if member.answers {
            self.coordinator.step(CoordinatorEvent::Received { from: to, message: answer }, &mut self.effects);
        }
    }

    fn beat(&mut self, disk: u64) {
        let Member { life, last, commit, epoch, promise, link, .. } = self.members[&disk];
        let message = Message::Beat { life, epoch: Epoch(epoch), promise, last, commit, link };
        self.give(CoordinatorEvent::Received { from: life.disk, message });
    }

    fn ticks(&mut self, ticks: u64) {
        for _ in 0..ticks {
            let beating: Vec<u64> =
                self.members.iter().filter(|(_, member)| member.beats).map(|(disk, _)| *disk).collect();
            beating.into_iter().for_each(|disk| self.beat(disk));
            self.give(CoordinatorEvent::Tick);
        }
    }

    /// Ticks until `epoch` is recorded: how many.
    fn ticks_to(&mut self, epoch: u64, ticks_max: u64) -> u64 {
        for ticks in 0..=ticks_max {
            if self.epoch() >= epoch {
                return ticks;
            }
            self.ticks(1);
        }
        panic!("epoch {epoch} not within {ticks_max} ticks: {:?}", self.coordinator.phase());
    }

    fn epoch(&self) -> u64 {
        self.record.configuration.as_ref().unwrap().epoch.0
    }

    fn chain(&self) -> Vec<String> {
        let chain = &self.record.configuration.as_ref().unwrap().chain;
        chain.iter().map(|life| format!("{}.{}", life.disk.0, life.incarnation.0)).collect()
    }

    fn restart(&mut self, disk: u64) {
        let member = self.member(disk);
        member.life.incarnation.0 += 1;
        member.promise = Promise { epoch: Epoch(member.epoch), attempt: member.promise.attempt };
        member.beats = true;
    }

    fn stick(&mut self, from: u64, to: u64) {
        let index = replicator_types::LogIndex(4);
        let link = Link { to: DiskId(to), sent: index, received: index, durable: index, silent_ticks: 6 };
        self.member(from).link = Some(link);
    }
}
