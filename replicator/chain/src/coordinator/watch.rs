//! What is known of each disk, and why the chain can't stay as it is.

use std::collections::BTreeMap;

use replicator_types::{DiskId, Epoch, Position};

use super::{Coordinator, CoordinatorEffect, Reason};
use crate::{Configuration, Life, Link, Message, Promise};

/// How many entries a log that ends at `position` has.
pub(super) fn entries(position: Option<Position>) -> u64 {
    position.map_or(0, |position| position.index.0 + 1)
}

/// What a disk's last beat said.
#[derive(Debug)]
pub(super) struct Beat {
    epoch: Epoch,
    promise: Promise,
    pub(super) last: Option<Position>,
    commit: Option<Position>,
    link: Option<Link>,
    /// When `last` was another, in ticks.
    pub(super) moved: u64,
    /// When `commit` was another, or everything was committed.
    flowed: u64,
}

#[derive(Debug)]
pub(super) struct Disk {
    /// The newest that was heard of.
    pub(super) life: Life,
    /// When, in ticks.
    heard: u64,
    pub(super) beat: Option<Beat>,
    /// Its log ends where no member's can: see [`Configuration::explains`].
    pub(super) regressed: bool,
}

/// Who was heard of since this coordinator leads.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: u64,
    pub(super) disks: BTreeMap<DiskId, Disk>,
}

impl Watch {
    pub(super) fn new(now: u64) -> Self {
        Self { since: now, disks: BTreeMap::new() }
    }

    /// Takes note of a sign of life; false if it is of an earlier life.
    pub(super) fn heard(&mut self, life: Life, now: u64) -> bool {
        let disk = self.disks.entry(life.disk).or_insert(Disk { life, heard: now, beat: None, regressed: false });
        if life.incarnation > disk.life.incarnation {
            *disk = Disk { life, heard: now, beat: None, regressed: false };
        }
        let current = life == disk.life;
        if current {
            disk.heard = now;
        }
        current
    }
}

impl Coordinator {
    pub(super) fn beat(&mut self, message: &Message, effects: &mut Vec<CoordinatorEffect>) {
        let &Message::Beat { life, epoch, promise, last, commit, link } = message else { return };
        let now = self.now;
        if !self.watch.heard(life, now) {
            return;
        }
        let disk = self.watch.disks.get_mut(&life.disk).expect("just heard of");
        let mut beat = Beat { epoch, promise, last, commit, link, moved: now, flowed: now };
        if let Some(before) = disk.beat.take().filter(|before| before.epoch == epoch) {
            if before.last == last {
                beat.moved = before.moved;
            }
            let ahead = last.map(|last| last.index).max(link.map(|link| link.sent)) > commit.map(|commit| commit.index);
            if before.commit == commit && ahead {
                beat.flowed = before.flowed;
            }
        }
        disk.beat = Some(beat);
        let Some(configuration) = self.record.configuration.clone() else { return };
        if epoch < configuration.epoch {
            effects.push(CoordinatorEffect::Send { to: life.disk, message: Message::Configured { configuration } });
        } else if epoch == configuration.epoch {
            self.check(&configuration, life, last, effects);
            if let Some(link) =
                link.filter(|link| link.silent_ticks >= self.timing.suspect_ticks && self.beats(link.to))
            {
                self.bad_links.complain(life.disk, link.to, now, &self.timing);
            }
        }
    }

    /// A member's log had ended at the start, nothing cuts it below, and only this epoch's entries can follow.
    pub(super) fn check(
        &mut self,
        configuration: &Configuration,
        life: Life,
        last: Option<Position>,
        effects: &mut Vec<CoordinatorEffect>,
    ) {
        let Some(disk) = self.watch.disks.get_mut(&life.disk) else { return };
        if disk.regressed || configuration.explains(last) || configuration.life_of(life.disk).is_none() {
            return;
        }
        disk.regressed = true;
        effects.push(CoordinatorEffect::Regressed { disk: life.disk, last, start: configuration.start });
    }

    /// For how many ticks nothing was heard from `disk`; since this coordinator leads, if it never was.
    pub(super) fn silence(&self, disk: DiskId) -> u64 {
        self.now - self.watch.disks.get(&disk).map_or(self.watch.since, |disk| disk.heard)
    }

    pub(super) fn is_silent(&self, disk: DiskId) -> bool {
        self.silence(disk) >= u64::from(self.timing.suspect_ticks)
    }

    /// Whether it was heard of lately. A disk that has died is silent on its link just before it counts as silent here: that says nothing of the link.
    pub(super) fn beats(&self, disk: DiskId) -> bool {
        self.watch.disks.contains_key(&disk) && self.silence(disk) <= u64::from(self.timing.suspect_ticks / 2)
    }

    pub(super) fn is_there(&self, disk: DiskId) -> bool {
        self.watch.disks.contains_key(&disk) && !self.is_silent(disk)
    }

    pub(super) fn is_regressed(&self, disk: DiskId) -> bool {
        self.watch.disks.get(&disk).is_some_and(|disk| disk.regressed)
    }

    /// The members that may go on: the others have lost what they confirmed.
    pub(super) fn eligible(&self) -> impl Iterator<Item = Life> {
        self.configuration().into_iter().flat_map(|c| &c.chain).copied().filter(|life| !self.is_regressed(life.disk))
    }

    /// What `disk` said last as a member of the epoch, in the life that the configuration names.
    fn active(&self, life: Life) -> Option<&Beat> {
        let disk = self.watch.disks.get(&life.disk).filter(|disk| disk.life == life)?;
        disk.beat.as_ref().filter(|beat| beat.epoch == self.epoch() && beat.promise.epoch < beat.epoch)
    }

    pub(super) fn find_reason(&self) -> Option<Reason> {
        let configuration = self.configuration()?;
        if !self.eligible().any(|life| self.is_there(life.disk)) {
            return None;
        }
        if let Some(loss) = self.loss(configuration) {
            return Some(loss).filter(|_| !self.waits_for_all());
        }
        let stuck = self.stuck(configuration).filter(|(from, to)| self.bad_links.may_try(*from, *to, self.now));
        let trouble = stuck.map(|(from, to)| Reason::Stuck(from, to)).or_else(|| self.stalled(configuration));
        if trouble.is_some() || configuration.chain.iter().any(|life| self.is_silent(life.disk)) {
            return trouble; // An attempt would leave out who is silent to this coordinator only.
        }
        let wished = self.wish.map(|_| Reason::Wished);
        wished
            .or_else(|| self.joiners().first().copied().map(Reason::Learner))
            .or_else(|| self.held_back().map(Reason::HeldBack))
    }

    /// A member that doesn't acknowledge any more.
    fn loss(&self, configuration: &Configuration) -> Option<Reason> {
        let chain = &configuration.chain;
        chain.iter().enumerate().find_map(|(i, life)| {
            let disk = self.watch.disks.get(&life.disk);
            if disk.is_some_and(|disk| disk.life.incarnation > life.incarnation) {
                return Some(Reason::Anew(life.disk));
            }
            if disk.and_then(|disk| disk.beat.as_ref()).is_some_and(|beat| beat.promise.epoch >= configuration.epoch) {
                return Some(Reason::Sealed(life.disk));
            }
            let silent = self.is_silent(life.disk) && !(i > 0 && self.vouches(chain[i - 1], life.disk));
            silent.then_some(Reason::Silent(life.disk))
        })
    }

    /// Its predecessor hears it: only the way to this coordinator is bad.
    fn vouches(&self, predecessor: Life, disk: DiskId) -> bool {
        let link = self.active(predecessor).and_then(|beat| beat.link).filter(|link| link.to == disk);
        link.is_some_and(|link| {
            u64::from(link.silent_ticks) + self.silence(predecessor.disk) < u64::from(self.timing.suspect_ticks)
        })
    }

    /// After a cold start, all eligible disks are waited for, so that none has to be a learner.
    pub(super) fn waits_for_all(&self) -> bool {
        let bound = u64::from(self.timing.cold_ticks);
        self.cold_since.is_some_and(|since| self.now - since < bound)
            && self.eligible().any(|life| !self.is_there(life.disk))
    }

    pub(super) fn note_cold(&mut self) {
        let lives = |life: &Life| {
            self.is_there(life.disk) && self.watch.disks.get(&life.disk).is_some_and(|disk| disk.life == *life)
        };
        let cold = !self.configuration().into_iter().flat_map(|c| &c.chain).any(lives);
        self.cold_since = cold.then_some(self.cold_since.unwrap_or(self.now));
    }

    /// A member that its predecessor doesn't hear, while both are there.
    pub(super) fn stuck(&self, configuration: &Configuration) -> Option<(DiskId, DiskId)> {
        configuration.chain.windows(2).find_map(|pair| {
            let (from, to) = (pair[0], pair[1].disk);
            let link = self.active(from)?.link.filter(|link| link.to == to)?;
            (link.silent_ticks >= self.timing.suspect_ticks && self.is_there(from.disk) && self.beats(to))
                .then_some((from.disk, to))
        })
    }

    /// Entries wait, and nothing is committed: a disk hangs behind a process that lives. An attempt finds out which, as it won't answer.
    fn stalled(&self, configuration: &Configuration) -> Option<Reason> {
        let primary = *configuration.chain.first().filter(|_| configuration.chain.len() > 1)?;
        let flowed = self.active(primary).filter(|_| self.is_there(primary.disk))?.flowed;
        (self.now - flowed >= u64::from(self.timing.stall_ticks)).then_some(Reason::Stalled(primary.disk))
    }

    /// Entries that are committed, as far as members have told.
    fn committed(&self, configuration: &Configuration) -> u64 {
        let beats = configuration.chain.iter().filter_map(|life| self.active(*life));
        beats.map(|beat| entries(beat.commit)).max().unwrap_or(0).max(entries(configuration.start))
    }

    /// The last beat of a disk that could be let in, if that knows the epoch.
    fn outside(&self, configuration: &Configuration, id: DiskId) -> Option<&Beat> {
        let disk = self.watch.disks.get(&id).filter(|disk| !disk.regressed && self.is_there(id))?;
        let wanted = self.voters.contains(&id) && self.rejoins.may_join(disk.life, self.now, &self.timing);
        let outside = configuration.life_of(id).is_none();
        disk.beat.as_ref().filter(|beat| wanted && outside && beat.epoch == configuration.epoch)
    }

    /// A learner that has promised this epoch in an attempt that came to nothing may not drop what the chain doesn't have, and comes no
    /// nearer: the next epoch frees it.
    fn held_back(&self) -> Option<DiskId> {
        let configuration = self.configuration()?;
        let committed = self.committed(configuration);
        self.watch.disks.keys().copied().find(|id| {
            self.outside(configuration, *id).is_some_and(|beat| {
                beat.promise.epoch >= configuration.epoch
                    && committed.saturating_sub(entries(beat.commit)) > self.timing.join_lag_max
                    && self.now - beat.moved >= u64::from(self.timing.suspect_ticks)
            })
        })
    }

    /// The learners that are near enough to be let in by a short seal, by disk id.
    pub(super) fn joiners(&self) -> Vec<DiskId> {
        let Some(configuration) = self.configuration() else { return Vec::new() };
        let committed = self.committed(configuration);
        let mut chain: Vec<DiskId> = configuration.chain.iter().map(|life| life.disk).collect();
        let mut joiners = Vec::new();
        for &id in self.watch.disks.keys() {
            let near = |beat: &Beat| committed.saturating_sub(entries(beat.commit)) <= self.timing.join_lag_max;
            if !self.outside(configuration, id).is_some_and(near) {
                continue;
            }
            chain.push(id);
            if self.bad_links.avoidable(&chain) {
                joiners.push(id);
            } else {
                chain.pop();
            }
        }
        joiners
    }
}
