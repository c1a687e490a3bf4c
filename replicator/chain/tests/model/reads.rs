//! A linearizable read, and its barrier.

use crate::{
    rules::Rule,
    state::{DISKS, Read, State},
    steps::{Protocol, STALE_READ},
};

impl Protocol {
    pub(crate) fn ask(&self, s: &mut State, epoch: u8) -> Option<()> {
        let primary = self.primary(s, epoch)?;
        let committed = s.at(epoch).committed;
        let in_epoch = committed != s.at(epoch).start;
        let index = if in_epoch || self.holds(Rule::ReadsFromTheStart) { committed.len() } else { 0 };
        let mut passed = [false; DISKS];
        passed[primary] = true;
        s.read = Some(Read { epoch, index, least: Self::acknowledged_to_anybody(s), passed, answered: false });
        Some(())
    }

    pub(crate) fn share(&self, s: &mut State) -> Option<()> {
        let least = Self::acknowledged_to_anybody(s);
        let read = s.read.as_mut()?;
        (!self.holds(Rule::BarrierAfterTheRead)).then(|| read.least = least)
    }

    pub(crate) fn pass(&self, s: &mut State, slot: usize) -> Option<()> {
        let mut read = s.read?;
        let sealed = !self.active(s, slot);
        let in_epoch = s.disks[slot].known == read.epoch && self.named(s, slot);
        if !in_epoch || (sealed && self.holds(Rule::SealedPassesNoBarrier)) {
            return None;
        }
        read.passed[slot] = true;
        s.read = Some(read);
        Some(())
    }

    pub(crate) fn answer(&self, s: &mut State) -> Option<()> {
        let read = s.read?;
        self.primary(s, read.epoch)?;
        let all = s.at(read.epoch).members().all(|(slot, _)| read.passed[slot]);
        if !all && self.holds(Rule::BarrierAsksAll) {
            return None;
        }
        if read.index < read.least {
            s.broken |= 1 << STALE_READ;
        }
        s.read = Some(Read { answered: true, ..read });
        Some(())
    }

    pub(crate) fn acknowledged_to_anybody(s: &State) -> u8 {
        s.epochs.iter().map(|epoch| epoch.committed.len()).max().unwrap_or(0)
    }
}
