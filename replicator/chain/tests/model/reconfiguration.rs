//! From one epoch to the next: grants, seals, targets, equal logs, the compare-and-set, and hearing of it.

use crate::{
    rules::Rule,
    state::{ATTEMPTS, Answer, DISKS, State},
    steps::{ENTERED_ELSEWHERE, LOST_DISK_COUNTED, Protocol, UNCONFIRMED},
};

impl Protocol {
    pub(crate) fn grant(&self, s: &mut State) -> Option<()> {
        let more = s.epoch < self.bounds.epochs && s.at(s.epoch).granted < self.bounds.attempts;
        more.then(|| {
            let epoch = s.epoch;
            s.at_mut(epoch).granted += 1;
        })
    }

    pub(crate) fn seal(&self, s: &mut State, slot: usize, promise: (u8, u8)) -> Option<()> {
        let (epoch, attempt) = promise;
        if epoch > s.disks[slot].known {
            self.learn(s, slot, epoch)?;
        }
        let disk = &mut s.disks[slot];
        if epoch < disk.known || (promise < disk.promise && self.holds(Rule::OrderedAttempts)) {
            return None;
        }
        disk.promise = promise.max(disk.promise);
        disk.durable = disk.log.len();
        if epoch == s.epoch {
            let answer = Answer { life: disk.life, log: disk.log, lost: disk.lost };
            s.sealed[usize::from(attempt) - 1][slot].get_or_insert(answer);
        }
        Some(())
    }

    pub(crate) fn choose_target(&self, s: &mut State, attempt: u8) -> Option<()> {
        let n = usize::from(attempt) - 1;
        let current = *s.at(s.epoch);
        if current.targets[n].is_some() && self.holds(Rule::OneTarget) {
            return None;
        }
        let eligible = |slot: usize, answer: &Answer| {
            let in_chain = match current.chain[slot] {
                Some(named) => named.disk == answer.life.disk || !self.holds(Rule::WipedDisksDontCount),
                None => !self.holds(Rule::LearnersDontCount),
            };
            let explained = s.explains(s.epoch, answer.log);
            in_chain && (explained || !self.holds(Rule::ElsewhereDoesntCount))
        };
        let counted = || s.sealed[n].iter().enumerate().filter_map(|(i, a)| a.filter(|a| eligible(i, a)));
        if self.bounds.unnoticed && counted().all(|answer| answer.lost) {
            return None;
        }
        let target = match self.holds(Rule::TargetIsGreatest) {
            true => counted().max_by_key(|answer| answer.log.last()),
            false => counted().min_by_key(|answer| answer.log.last()),
        };
        if counted().any(|answer| answer.lost) {
            s.broken |= 1 << LOST_DISK_COUNTED;
        }
        let epoch = s.epoch;
        s.at_mut(epoch).targets[n] = Some(target?.log);
        Some(())
    }

    pub(crate) fn equalise(&self, s: &mut State, slot: usize, attempt: (u8, u8)) -> Option<()> {
        let (epoch, n) = (attempt.0, usize::from(attempt.1) - 1);
        let disk = s.disks[slot];
        let target = s.at(epoch).targets[n]?;
        let promised = disk.promise == attempt || (disk.promise > attempt && !self.holds(Rule::OrderedAttempts));
        let in_epoch = disk.known == epoch || !self.holds(Rule::EqualiseInItsEpoch);
        if !promised || !in_epoch {
            return None;
        }
        if disk.log.starts_with(target) {
            if self.holds(Rule::DropsTheRest) {
                self.truncate(s, slot, target.len());
            }
        } else if self.holds(Rule::HoldsTheTarget) {
            let common = disk.log.common(target);
            self.truncate(s, slot, common);
            if common == disk.log.len() {
                s.disks[slot].log.push(target.get(common + 1).expect("the target is longer than what is common"));
            }
        }
        let disk = &mut s.disks[slot];
        if self.holds(Rule::EqualIsDurable) {
            disk.durable = disk.log.len();
        }
        let equal = disk.log == target || !self.holds(Rule::DropsTheRest) || !self.holds(Rule::HoldsTheTarget);
        if equal && epoch == s.epoch {
            disk.lost = false;
            s.equal[n][slot] = Some(disk.life);
        }
        Some(())
    }

    pub(crate) fn configure(&self, s: &mut State, attempt: u8) -> Option<()> {
        let n = usize::from(attempt) - 1;
        let current = *s.at(s.epoch);
        if attempt != current.granted && self.holds(Rule::LastGrantOnly) {
            return None;
        }
        let chain = match self.holds(Rule::ConfirmedOnly) {
            true => s.equal[n],
            false => s.sealed[n].map(|answer| answer.map(|answer| answer.life)),
        };
        let start = current.targets[n]?;
        if chain.iter().all(Option::is_none) {
            return None;
        }
        if attempt != current.granted || (0..DISKS).any(|slot| chain[slot].is_some() && chain[slot] != s.equal[n][slot])
        {
            s.broken |= 1 << UNCONFIRMED;
        }
        s.epoch += 1;
        let epoch = s.epoch;
        let next = s.at_mut(epoch);
        (next.chain, next.start, next.committed, next.by) = (chain, start, start, attempt);
        (s.sealed, s.equal) = ([[None; DISKS]; ATTEMPTS], [[None; DISKS]; ATTEMPTS]);
        Some(())
    }

    /// Hears of a configuration that is newer than what it knows; enters, if it is named.
    pub(crate) fn learn(&self, s: &mut State, slot: usize, epoch: u8) -> Option<()> {
        let disk = &mut s.disks[slot];
        let old = epoch <= disk.known || (epoch < disk.log.last().0 && self.holds(Rule::LogKnowsItsEpoch));
        if old {
            return None;
        }
        disk.known = epoch;
        if self.active(s, slot) && s.disks[slot].log != s.at(epoch).start {
            s.broken |= 1 << ENTERED_ELSEWHERE;
        }
        Some(())
    }
}
