//! Brings the chain from one epoch to the next: notices that a member is missing, anew or wanted elsewhere, has an attempt granted, seals,
//! makes equal, and asks for the compare-and-set.
//!
//! It runs on every node and acts where the configuration group's leader is. It is no authority: any number of coordinators, with any
//! delay, can only do what grants and compare-and-sets allow (safety rules 6 and 7), so what it believes about who lives needs no proof.
//! docs/chain.md, "The coordinator", has its phases, reasons, orders and bounds.

use std::collections::BTreeSet;

use replicator_types::{DiskId, Epoch};

use crate::{Command, Configuration, Message, Record, Timing};

mod account;
mod interface;
mod order;
mod rejoin;
mod round;
#[cfg(test)]
mod tests;
mod watch;

pub use account::{Phase, Progress};
pub use interface::{CoordinatorEffect, CoordinatorEvent, Wish};
use order::BadLinks;
use rejoin::Rejoins;
use round::Round;
use watch::Watch;

/// Why the chain can't stay as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Silent(DiskId),
    Anew(DiskId),
    Sealed(DiskId),
    Stuck(DiskId, DiskId),
    Stalled(DiskId),
    Learner(DiskId),
    HeldBack(DiskId),
    Wished,
}

#[derive(Debug)]
enum Stage {
    Watching,
    /// `Attempt` is proposed under this nonce.
    Granting(u64),
    Sealing(Round),
    /// The target is chosen.
    Equalising(Round),
    /// The compare-and-set is proposed.
    Configuring(Command),
}

/// The coordinator of one node.
#[derive(Debug)]
pub struct Coordinator {
    own: DiskId,
    /// Of the last grant asked for. Invariant: no other grant by this disk, in any life, has the next one.
    nonce: u64,
    timing: Timing,
    /// Ticks since construction.
    now: u64,
    leading: bool,
    record: Record,
    voters: BTreeSet<DiskId>,
    watch: Watch,
    rejoins: Rejoins,
    bad_links: BadLinks,
    stage: Stage,
    /// When the stage began, in ticks.
    since: u64,
    reason: Option<Reason>,
    /// Until then nothing is granted: another coordinator has been.
    yields_until: u64,
    /// Since when no member has been heard of in the life that the configuration names.
    cold_since: Option<u64>,
    wish: Option<(Wish, u64)>,
}

impl Coordinator {
    /// The coordinator of the node with disk `own`. Grants are asked for with numbers above `nonce`, which must be above all that an
    /// earlier life of this disk used: its incarnation times 2^32 does.
    #[must_use]
    pub fn new(own: DiskId, nonce: u64, timing: Timing) -> Self {
        Self {
            own,
            nonce,
            timing,
            now: 0,
            leading: false,
            record: Record::default(),
            voters: BTreeSet::new(),
            watch: Watch::default(),
            rejoins: Rejoins::default(),
            bad_links: BadLinks::default(),
            stage: Stage::Watching,
            since: 0,
            reason: None,
            yields_until: 0,
            cold_since: None,
            wish: None,
        }
    }

    /// Takes one event, and adds what is to be done to `effects`, in order.
    pub fn step(&mut self, event: CoordinatorEvent, effects: &mut Vec<CoordinatorEffect>) {
        match event {
            CoordinatorEvent::Leading(leading) => self.lead(leading),
            CoordinatorEvent::Recorded(record) => self.recorded(record, effects),
            CoordinatorEvent::Tick => self.tick(effects),
            CoordinatorEvent::Received { from, message } => self.received(from, message, effects),
            CoordinatorEvent::Wished(wish) => self.wished(wish, effects),
            CoordinatorEvent::Voters(voters) => {
                self.voters = voters.into_iter().collect();
                self.rejoins.keep(&self.voters);
                self.forget();
            }
        }
        if self.leading {
            self.advance(effects);
        }
    }

    fn lead(&mut self, leading: bool) {
        if leading == self.leading {
            return;
        }
        self.leading = leading;
        self.watch = Watch::new(self.now);
        self.yields_until = self.now;
        self.cold_since = None;
        self.watching();
        self.drop_wish();
    }

    fn recorded(&mut self, record: Record, effects: &mut Vec<CoordinatorEffect>) {
        let place = |record: &Record| (record.configuration.as_ref().map(|c| c.epoch), record.attempt.number);
        let (old, new) = (place(&self.record), place(&record));
        if new < old {
            return;
        }
        let before = std::mem::replace(&mut self.record, record);
        if new.0 > old.0 {
            self.entered(before.configuration, effects);
        } else if new.1 > old.1 && self.leading {
            self.granted(effects);
        }
    }

    /// The record has a new epoch, whoever brought it about.
    fn entered(&mut self, before: Option<Configuration>, effects: &mut Vec<CoordinatorEffect>) {
        let now = self.configuration().expect("an epoch is there, or it could not be newer").clone();
        let before = before.map(|c| c.chain).unwrap_or_default();
        self.rejoins.entered(&before, &now.chain, self.now, &self.timing);
        if let Some((wish, _)) = self.wish {
            self.judge(wish, &now, effects);
        }
        self.watching();
        self.forget();
        if !self.leading {
            return;
        }
        let disks: BTreeSet<_> =
            before.iter().chain(&now.chain).map(|life| life.disk).chain(self.watch.disks.keys().copied()).collect();
        for to in disks {
            effects.push(CoordinatorEffect::Send { to, message: Message::Configured { configuration: now.clone() } });
        }
    }

    /// The record has a new attempt in the same epoch.
    fn granted(&mut self, effects: &mut Vec<CoordinatorEffect>) {
        let ours = self.record.attempt.by == (self.own, self.nonce);
        match &self.stage {
            // A repeated proposal may be granted twice; the later grant has made the earlier one void.
            Stage::Granting(_) | Stage::Sealing(_) | Stage::Equalising(_) | Stage::Configuring(..) if ours => {
                let round = self.begin();
                self.turn(Stage::Sealing(round));
                self.send_seals(effects);
            }
            // An earlier question of this coordinator; the answer to the last one is still to come, or it is asked again.
            Stage::Granting(_) if self.record.attempt.by.0 == self.own => {}
            _ => {
                if self.record.attempt.by.0 != self.own {
                    self.yields_until = self.now + 2 * u64::from(self.timing.answer_ticks);
                }
                self.watching();
            }
        }
    }

    fn tick(&mut self, effects: &mut Vec<CoordinatorEffect>) {
        self.now += 1;
        self.rejoins.pass(self.now, &self.timing); // Whoever leads later has counted like the one before.
        if !self.leading {
            return;
        }
        self.bad_links.pass(self.now);
        if self.wish.is_some_and(|(_, since)| self.now - since >= u64::from(self.timing.cold_ticks)) {
            let why =
                format!("not done within {} heartbeats; the status says what it waits for", self.timing.cold_ticks);
            self.give_up_wish(why, effects);
        }
        let again = (self.now - self.since).is_multiple_of(u64::from(self.timing.answer_ticks));
        match &self.stage {
            Stage::Watching => {}
            Stage::Granting(nonce) if again => effects.push(self.attempt(*nonce)),
            Stage::Configuring(command) if again => effects.push(CoordinatorEffect::Propose(command.clone())),
            Stage::Granting(_) | Stage::Configuring(..) => {}
            Stage::Sealing(_) => self.send_seals(effects),
            Stage::Equalising(_) => self.send_equalises(effects),
        }
    }

    fn received(&mut self, from: DiskId, message: Message, effects: &mut Vec<CoordinatorEffect>) {
        let known = self.voters.contains(&from) || self.configuration().is_some_and(|c| c.life_of(from).is_some());
        if !self.leading || !known {
            return;
        }
        match message {
            Message::Beat { life, .. } if life.disk == from => self.beat(&message, effects),
            Message::Sealed { promise, life, last } if life.disk == from => {
                self.watch.heard(life, self.now);
                self.sealed(promise, life, last, effects);
            }
            Message::Equal { promise, life, last } if life.disk == from => {
                self.watch.heard(life, self.now);
                if let Stage::Equalising(round) = &mut self.stage {
                    round.equal(promise, life, last);
                }
            }
            _ => {}
        }
    }

    /// Goes on as far as what is known allows.
    fn advance(&mut self, effects: &mut Vec<CoordinatorEffect>) {
        if self.configuration().is_none() {
            return;
        }
        self.note_cold();
        self.conclude_sealing(effects);
        self.conclude_equalising(effects);
        if matches!(self.stage, Stage::Watching)
            && self.now >= self.yields_until
            && let Some(reason) = self.find_reason()
        {
            self.reason = Some(reason);
            self.nonce += 1;
            effects.push(self.attempt(self.nonce));
            self.turn(Stage::Granting(self.nonce));
        }
    }

    fn attempt(&self, nonce: u64) -> CoordinatorEffect {
        CoordinatorEffect::Propose(Command::Attempt { epoch: self.epoch(), by: (self.own, nonce) })
    }

    fn turn(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = self.now;
    }

    fn watching(&mut self) {
        self.turn(Stage::Watching);
        self.reason = None;
    }

    fn configuration(&self) -> Option<&Configuration> {
        self.record.configuration.as_ref()
    }

    fn epoch(&self) -> Epoch {
        self.configuration().map_or(Epoch(0), |c| c.epoch)
    }

    /// Drops what is known of disks that are nothing to the chain any more, so that all this stays as small as the cluster.
    fn forget(&mut self) {
        let mut keep = self.voters.clone();
        keep.extend(self.configuration().iter().flat_map(|c| &c.chain).map(|life| life.disk));
        self.watch.disks.retain(|disk, _| keep.contains(disk));
        self.bad_links.keep(&keep);
    }
}
