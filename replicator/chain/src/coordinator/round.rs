//! One granted attempt: who has sealed, who is equal, and when that is enough.

use std::collections::{BTreeMap, BTreeSet};

use replicator_types::{DiskId, Position};

use super::{Coordinator, CoordinatorEffect, Reason, Stage, Wish};
use crate::{Command, Life, Message, Promise};

#[derive(Debug)]
struct Answer {
    life: Life,
    /// Where its log ended when it sealed.
    last: Option<Position>,
    /// It has confirmed that its log ends at the target.
    equal: bool,
}

/// An attempt. Invariant: for one promise there is one target, ever, so a confirmation can't be of another.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) promise: Promise,
    /// When it was granted, in ticks.
    begun: u64,
    /// Those that are let in with it, if they answer.
    learners: BTreeSet<DiskId>,
    /// Those that have promised.
    answers: BTreeMap<DiskId, Answer>,
    /// Where all logs shall end, from the stage of equalising on.
    target: Option<Position>,
}

impl Round {
    pub(super) fn equal(&mut self, promise: Promise, life: Life, last: Option<Position>) {
        if promise != self.promise || last != self.target {
            return;
        }
        if let Some(answer) = self.answers.get_mut(&life.disk).filter(|answer| answer.life == life) {
            answer.equal = true;
        }
    }

    /// The nearest in the chain of those that hold the target, that are heard of and to whom the way isn't bad.
    fn source(&self, chain: &[Life], is_bad: impl Fn(DiskId) -> bool) -> Option<DiskId> {
        let holds =
            |disk: &DiskId| self.answers.get(disk).is_some_and(|answer| answer.equal || answer.last == self.target);
        let holders: Vec<DiskId> = chain.iter().map(|life| life.disk).filter(holds).collect();
        holders.iter().copied().find(|disk| !is_bad(*disk)).or(holders.first().copied())
    }
}

impl Coordinator {
    /// The attempt that the record shows is this coordinator's.
    pub(super) fn begin(&mut self) -> Round {
        if let Some(Reason::Stuck(a, b)) = self.reason {
            self.bad_links.tried(a, b, self.now, &self.timing);
        }
        Round {
            promise: Promise { epoch: self.epoch(), attempt: self.record.attempt.number },
            begun: self.now,
            learners: self.joiners().into_iter().collect(),
            answers: BTreeMap::new(),
            target: None,
        }
    }

    fn round(&self) -> Option<&Round> {
        match &self.stage {
            Stage::Sealing(round) | Stage::Equalising(round) => Some(round),
            Stage::Watching | Stage::Granting(_) | Stage::Configuring(..) => None,
        }
    }

    /// Members and learners that have not promised yet.
    fn unsealed<'a>(&'a self, round: &'a Round) -> impl Iterator<Item = DiskId> + 'a {
        let all = self.eligible().map(|life| life.disk).chain(round.learners.iter().copied());
        all.filter(|disk| !round.answers.contains_key(disk))
    }

    pub(super) fn send_seals(&self, effects: &mut Vec<CoordinatorEffect>) {
        let (Some(round), Some(configuration)) = (self.round(), self.configuration()) else { return };
        for to in self.unsealed(round) {
            let message = Message::Seal { configuration: configuration.clone(), attempt: round.promise.attempt };
            effects.push(CoordinatorEffect::Send { to, message });
        }
    }

    pub(super) fn send_equalises(&self, effects: &mut Vec<CoordinatorEffect>) {
        let (Stage::Equalising(round), Some(configuration)) = (&self.stage, self.configuration()) else { return };
        for (&to, _) in round.answers.iter().filter(|(_, answer)| !answer.equal) {
            let source = round.source(&configuration.chain, |disk| {
                disk == to || !self.beats(disk) || self.bad_links.is_bad(disk, to)
            });
            let Some(source) = source else { continue };
            let message = Message::Equalise { promise: round.promise, target: round.target, source };
            effects.push(CoordinatorEffect::Send { to, message });
        }
        self.send_seals(effects); // Who was late may still stand in the next chain.
    }

    pub(super) fn sealed(
        &mut self,
        promise: Promise,
        life: Life,
        last: Option<Position>,
        effects: &mut Vec<CoordinatorEffect>,
    ) {
        let Some(configuration) = self.configuration().cloned() else { return };
        let member = configuration.life_of(life.disk).is_some();
        let newest = self.watch.disks.get(&life.disk).is_some_and(|disk| disk.life == life);
        let round = match &mut self.stage {
            Stage::Sealing(round) | Stage::Equalising(round) if round.promise == promise && newest => round,
            _ => return,
        };
        if !member && !round.learners.contains(&life.disk) {
            return;
        }
        if round.answers.get(&life.disk).is_some_and(|answer| answer.life == life) {
            return; // A repeated answer; what was confirmed since stays.
        }
        round.answers.insert(life.disk, Answer { life, last, equal: false });
        self.check(&configuration, life, last, effects);
        if matches!(self.stage, Stage::Equalising(_)) {
            self.send_equalises(effects);
        }
    }

    /// Whoever has started again since it answered has to answer anew; who has regressed counts for nothing.
    fn drop_void_answers(&mut self) {
        let watch = &self.watch;
        if let Stage::Sealing(round) | Stage::Equalising(round) = &mut self.stage {
            round.answers.retain(|disk, answer| {
                watch.disks.get(disk).is_some_and(|disk| disk.life == answer.life && !disk.regressed)
            });
        }
    }

    pub(super) fn conclude_sealing(&mut self, effects: &mut Vec<CoordinatorEffect>) {
        self.drop_void_answers();
        let Stage::Sealing(round) = &self.stage else { return };
        let answers = self.eligible().filter_map(|life| round.answers.get(&life.disk));
        let Some(target) = answers.map(|answer| answer.last).max() else { return };
        let waits = self.now - self.since < u64::from(self.timing.answer_ticks);
        if waits && self.unsealed(round).any(|disk| !self.is_silent(disk)) {
            return;
        }
        let chain = self.next_chain(round, |_| true);
        if !self.is_enough(round, &chain) {
            return;
        }
        let Stage::Sealing(mut round) = std::mem::replace(&mut self.stage, Stage::Watching) else { return };
        round.target = target;
        self.turn(Stage::Equalising(round));
        self.send_equalises(effects);
    }

    pub(super) fn conclude_equalising(&mut self, effects: &mut Vec<CoordinatorEffect>) {
        let Stage::Equalising(round) = &self.stage else { return };
        let equal = |life: &Life| round.answers.get(&life.disk).is_some_and(|answer| answer.equal);
        let held = self.eligible().any(|life| equal(&life));
        let held_by_wanted = self.eligible().any(|life| equal(&life) && !self.is_unwanted(life.disk));
        let missing = round.answers.iter().filter(|(_, answer)| !answer.equal).map(|(disk, _)| *disk);
        let mut missing = missing.filter(|disk| !(held_by_wanted && self.is_unwanted(*disk)));
        if missing.any(|disk| self.is_waited_for(round, disk)) {
            return;
        }
        if !held {
            // Those that held the target are gone: another attempt takes what is left. No more than one in a tick.
            self.yields_until = self.now + 1;
            return self.watching();
        }
        let chain = self.next_chain(round, |answer| answer.equal);
        if !self.is_enough(round, &chain) {
            return;
        }
        let failed = round.learners.iter().copied().filter(|disk| !chain.iter().any(|life| life.disk == *disk));
        let failed = failed.filter_map(|disk| Some(self.watch.disks.get(&disk)?.life));
        for life in failed.collect::<Vec<_>>() {
            self.rejoins.left_out(life, self.now, &self.timing);
        }
        let Stage::Equalising(round) = std::mem::replace(&mut self.stage, Stage::Watching) else { return };
        let Promise { epoch, attempt } = round.promise;
        let command = Command::Configure { epoch, attempt, chain, start: round.target };
        effects.push(CoordinatorEffect::Propose(command.clone()));
        self.turn(Stage::Configuring(command));
    }

    /// It beats, and its log moves.
    fn is_waited_for(&self, round: &Round, disk: DiskId) -> bool {
        let bound = if round.learners.contains(&disk) { self.timing.alone_ticks } else { self.timing.cold_ticks };
        let moved = self.watch.disks.get(&disk).and_then(|disk| disk.beat.as_ref()).map_or(0, |beat| beat.moved);
        !self.is_silent(disk)
            && self.now - self.since < u64::from(bound)
            && self.now - moved.max(self.since) < u64::from(self.timing.answer_ticks)
    }

    /// It takes part like the others, so that what it holds is not lost, but it stands in the next chain only if nobody else does.
    fn is_unwanted(&self, disk: DiskId) -> bool {
        self.rejoins.is_removed(disk) || self.wish.is_some_and(|(wish, _)| wish == Wish::Remove(disk))
    }

    /// Survivors as they stood, then members that live anew, then learners: who has just started has its log to apply first.
    fn next_chain(&self, round: &Round, takes: impl Fn(&Answer) -> bool) -> Vec<Life> {
        let Some(configuration) = self.configuration() else { return Vec::new() };
        let taken = round.answers.iter().filter(|(_, answer)| takes(answer));
        let mut lives: BTreeMap<DiskId, Life> = taken.map(|(disk, answer)| (*disk, answer.life)).collect();
        if lives.keys().any(|disk| !self.is_unwanted(*disk)) {
            lives.retain(|disk, _| !self.is_unwanted(*disk));
        }
        let members = || configuration.chain.iter().filter_map(|old| Some((old, lives.get(&old.disk)?)));
        let mut disks: Vec<DiskId> = members().filter(|(old, new)| old == new).map(|(old, _)| old.disk).collect();
        disks.extend(members().filter(|(old, new)| old != new).map(|(old, _)| old.disk));
        disks.extend(lives.keys().filter(|disk| configuration.life_of(**disk).is_none()));
        let head = match self.wish {
            Some((Wish::Primary(disk), _)) => Some(disk),
            _ => None,
        };
        self.bad_links.order(&disks, head).iter().map(|disk| lives[disk]).collect()
    }

    /// A chain of one is made only when all others have been silent, or have owed this attempt an answer, for the longer bound.
    fn is_enough(&self, round: &Round, chain: &[Life]) -> bool {
        let bound = u64::from(self.timing.alone_ticks);
        let [one] = chain else { return !chain.is_empty() };
        let mut others = self.eligible().filter(|life| life.disk != one.disk && !self.is_unwanted(life.disk));
        others.all(|life| self.silence(life.disk) >= bound || self.now - round.begun >= bound)
    }

    /// Whom the stage waits for.
    pub(super) fn owing(&self) -> Vec<DiskId> {
        match &self.stage {
            Stage::Sealing(round) => self.unsealed(round).collect(),
            Stage::Equalising(round) => {
                round.answers.iter().filter(|(_, answer)| !answer.equal).map(|(disk, _)| *disk).collect()
            }
            Stage::Watching | Stage::Granting(_) | Stage::Configuring(..) => Vec::new(),
        }
    }
}
