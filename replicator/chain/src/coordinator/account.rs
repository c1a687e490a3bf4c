//! What a status shows of the coordinator, in words where it can't go on; and the answers to operators' wishes.

use replicator_types::DiskId;

use super::{Coordinator, CoordinatorEffect, Reason, Stage, Wish};
use crate::Configuration;

/// What a coordinator is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// This node doesn't lead the configuration group.
    Following,
    /// There is no configuration yet.
    Unfounded,
    /// The chain may stay as it is, or nothing can be done.
    Watching,
    /// An attempt is asked for.
    Granting,
    /// Members promise to acknowledge nothing more in this epoch.
    Sealing,
    /// Their logs are made to end at one position.
    Equalising,
    /// The next configuration is asked for.
    Configuring,
}

/// Where a coordinator stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// For how many ticks.
    pub ticks: u64,
    /// Why the chain can't stay as it is, if an attempt is under way.
    pub reason: Option<String>,
    /// The disks whose answer is missing.
    pub waiting_for: Vec<DiskId>,
    /// What is wrong and what would help; None: nothing is.
    pub trouble: Option<String>,
}

fn list(disks: impl IntoIterator<Item = DiskId>) -> String {
    disks.into_iter().map(|disk| disk.to_string()).collect::<Vec<_>>().join(", ")
}

impl Coordinator {
    /// Where this coordinator stands. Disks are named by their ids.
    #[must_use]
    pub fn phase(&self) -> Progress {
        let phase = match (&self.stage, self.configuration()) {
            _ if !self.leading => Phase::Following,
            (_, None) => Phase::Unfounded,
            (Stage::Watching, _) => Phase::Watching,
            (Stage::Granting(_), _) => Phase::Granting,
            (Stage::Sealing(_), _) => Phase::Sealing,
            (Stage::Equalising(_), _) => Phase::Equalising,
            (Stage::Configuring(..), _) => Phase::Configuring,
        };
        let reason = self.reason.map(|reason| match reason {
            Reason::Silent(disk) => format!("{disk} is silent"),
            Reason::Anew(disk) => format!("{disk} has started again"),
            Reason::Sealed(disk) => format!("{disk} is sealed by an earlier attempt"),
            Reason::Stuck(from, to) => format!("{from} doesn't hear {to}"),
            Reason::Stalled(disk) => format!("nothing that {disk} sends is committed"),
            Reason::Learner(disk) => format!("{disk} can be let in"),
            Reason::HeldBack(disk) => format!("{disk} is held back by its promise"),
            Reason::Wished => "an operator wished it".into(),
        });
        let trouble = self.configuration().filter(|_| self.leading).and_then(|c| self.trouble(c));
        Progress { phase, ticks: self.now - self.since, reason, waiting_for: self.missing(), trouble }
    }

    fn missing(&self) -> Vec<DiskId> {
        let mut missing = self.owing();
        if self.leading && matches!(self.stage, Stage::Watching) {
            missing.extend(self.eligible().map(|life| life.disk).filter(|disk| !self.is_there(*disk)));
        }
        missing
    }

    fn trouble(&self, configuration: &Configuration) -> Option<String> {
        let epoch = configuration.epoch;
        let chain = configuration.chain.iter().map(|life| life.disk);
        let regressed: Vec<_> = chain.clone().filter(|disk| self.is_regressed(*disk)).collect();
        if self.eligible().all(|life| self.is_silent(life.disk)) {
            let lost = match list(regressed.iter().copied()) {
                lost if lost.is_empty() => lost,
                lost => format!(", and {lost} lost what it had confirmed"),
            };
            let start = match list(self.eligible().map(|life| life.disk)) {
                missing if missing.is_empty() => missing,
                missing => format!("start one of {missing}; "),
            };
            return Some(format!(
                "no disk of epoch {epoch} is there{lost}; others hold less than was acknowledged: {start}if all are lost for ever: `replicator recover`"
            ));
        }
        if self.waits_for_all() {
            let missing = list(self.missing());
            let left = self.cold_since.map_or(0, |since| u64::from(self.timing.cold_ticks) - (self.now - since));
            return Some(format!("all members have stopped; waiting {left} heartbeats more for {missing}"));
        }
        let there: Vec<_> = chain.filter(|disk| self.is_there(*disk)).collect();
        if let Some((from, to)) = self.stuck(configuration).filter(|_| !self.bad_links.avoidable(&there)) {
            return Some(format!(
                "{from} doesn't hear {to}, and no order of the chain avoids it: look at the network between them, or remove one"
            ));
        }
        if !regressed.is_empty() {
            return Some(format!("{} lost what it had confirmed: give it a new folder", list(regressed)));
        }
        let length = configuration.chain.len();
        (length < self.record.least_chain as usize).then(|| {
            let least = self.record.least_chain;
            format!("the chain has {length} members and takes writes from {least} on: start or add a replica")
        })
    }

    pub(super) fn wished(&mut self, wish: Wish, effects: &mut Vec<CoordinatorEffect>) {
        if !self.leading || self.wish.is_some() {
            return; // Whoever wants it asks again.
        }
        if let Err(why) = self.admit(wish) {
            effects.push(CoordinatorEffect::WishRefused(wish, why));
            return;
        }
        if let Wish::Remove(disk) = wish {
            self.rejoins.remove(disk);
        }
        self.wish = Some((wish, self.now));
        if let Some(configuration) = self.configuration().cloned()
            && self.is_done(wish, &configuration)
        {
            self.judge(wish, &configuration, effects);
        }
    }

    fn admit(&self, wish: Wish) -> Result<(), String> {
        let configuration = self.configuration().ok_or("there is no chain yet: found one first")?;
        let members = configuration.chain.len();
        match wish {
            Wish::Primary(disk) if configuration.life_of(disk).is_none() => {
                Err(format!("{disk} is not in the chain: see to its node, and wait until it has joined"))
            }
            Wish::Primary(disk) if !self.is_there(disk) => {
                Err(format!("{disk} is silent: wait until it is heard of, or choose another"))
            }
            Wish::Remove(disk) if configuration.life_of(disk).is_none() => Ok(()),
            Wish::Remove(disk) if !self.eligible().any(|life| life.disk != disk && self.is_there(life.disk)) => {
                Err(format!("without {disk} nobody holds what was acknowledged: add a replica first"))
            }
            Wish::Remove(_) if members <= self.record.least_chain as usize && members > 1 => Err(format!(
                "the chain has {members} members, and takes writes from {} on: add a replica first",
                self.record.least_chain
            )),
            Wish::Primary(_) | Wish::Remove(_) => Ok(()),
        }
    }

    /// It will not be waited for any longer.
    pub(super) fn give_up_wish(&mut self, why: String, effects: &mut Vec<CoordinatorEffect>) {
        effects.extend(self.drop_wish().map(|wish| CoordinatorEffect::WishRefused(wish, why)));
    }

    pub(super) fn drop_wish(&mut self) -> Option<Wish> {
        let (wish, _) = self.wish.take()?;
        if let Wish::Remove(disk) = wish {
            self.rejoins.pardon(disk);
        }
        Some(wish)
    }

    fn is_done(&self, wish: Wish, configuration: &Configuration) -> bool {
        match wish {
            Wish::Primary(disk) => configuration.chain.first().is_some_and(|life| life.disk == disk),
            Wish::Remove(disk) => configuration.life_of(disk).is_none(),
        }
    }

    /// Answers a wish if `configuration` settles it.
    pub(super) fn judge(&mut self, wish: Wish, configuration: &Configuration, effects: &mut Vec<CoordinatorEffect>) {
        let epoch = configuration.epoch;
        if self.is_done(wish, configuration) {
            self.wish = None;
            effects.push(CoordinatorEffect::WishDone(wish));
        } else if let Wish::Primary(disk) = wish
            && configuration.life_of(disk).is_none()
        {
            self.give_up_wish(format!("{disk} did not get into epoch {epoch}"), effects);
        } else if self.reason == Some(Reason::Wished) {
            // The attempt was made for it, and another would end alike.
            self.give_up_wish(format!("no order of epoch {epoch} with it avoids the links that are stuck"), effects);
        }
    }
}
