//! Within an epoch: appends, acknowledgements, commits; and learners that follow.

use crate::{
    rules::Rule,
    state::{Entry, Log, State},
    steps::Protocol,
};

impl Protocol {
    /// The entry gets the index after the last that this process has given or holds, and is sent. Its own log takes it by an `Append` like the
    /// others': at once (parallel), or after them (backups first).
    pub(crate) fn propose(&self, s: &mut State, epoch: u8) -> Option<()> {
        let slot = self.primary(s, epoch)?;
        let log = self.log_with_held(s, epoch, slot);
        (log.len() < self.bounds.entries).then(|| s.send(Entry::new(epoch, log.len() + 1, s.disks[slot].life.life)))
    }

    pub(crate) fn log_with_held(&self, s: &State, epoch: u8, slot: usize) -> Log {
        let disk = &s.disks[slot];
        let mut log = disk.log;
        while let Some(held) = s.entries_sent().find(|&entry| entry == Entry::new(epoch, log.len() + 1, disk.life.life))
        {
            log.push(held);
            if log.len() == self.bounds.entries {
                break;
            }
        }
        log
    }

    pub(crate) fn append(&self, s: &mut State, slot: usize, entry: Entry) -> Option<()> {
        let known = s.disks[slot].known;
        let serves = self.active(s, slot) || (self.named(s, slot) && !self.holds(Rule::SealedIsSilent));
        if !serves || (entry.epoch() != known && self.holds(Rule::AppendsOfTheEpoch)) {
            return None;
        }
        let start = s.at(entry.epoch()).start;
        let previous = match entry.index() - 1 {
            before if before == start.len() => start.last(),
            before => (entry.epoch(), before),
        };
        let log = &mut s.disks[slot].log;
        let follows = match self.holds(Rule::AppendsFollow) {
            true => log.last() == previous,
            false => log.len() < entry.index(),
        };
        follows.then(|| log.push(entry))
    }

    pub(crate) fn persist(&self, s: &mut State, slot: usize) -> Option<()> {
        let serves = self.active(s, slot) || (self.named(s, slot) && !self.holds(Rule::SealedIsSilent));
        let disk = &mut s.disks[slot];
        disk.durable = disk.log.len();
        if serves {
            let (known, durable) = (disk.known, disk.durable);
            let acknowledged = &mut s.at_mut(known).acknowledged[slot];
            *acknowledged = durable.max(*acknowledged);
        }
        Some(())
    }

    pub(crate) fn commit(&self, s: &mut State, epoch: u8) -> Option<()> {
        let primary = self.primary(s, epoch)?;
        let index = s.at(epoch).committed.len() + 1;
        let acknowledged = |slot: usize| match self.holds(Rule::AcknowledgementsOfTheEpoch) {
            true => s.at(epoch).acknowledged[slot] >= index,
            false => s.epochs.iter().any(|epoch| epoch.acknowledged[slot] >= index),
        };
        let current = *s.at(epoch);
        let mut asked = current.members().map(|(slot, _)| slot);
        let all = match self.without {
            Some(Rule::PrimaryPersists) => asked.all(|slot| slot == primary || acknowledged(slot)),
            Some(Rule::AllAcknowledge) => asked.any(|slot| slot != primary && acknowledged(slot)),
            _ => asked.all(acknowledged),
        };
        let log = self.log_with_held(s, epoch, primary);
        (all && log.len() >= index).then(|| s.at_mut(epoch).committed = log.cut(index))
    }

    /// Who isn't named in this life takes what the members of the newest chain that it knows have committed. What they don't have it drops first,
    /// but only if it can't count.
    pub(crate) fn fetch(&self, s: &mut State, slot: usize, source: usize) -> Option<()> {
        let disk = s.disks[slot];
        let epoch = disk.known;
        if epoch == 0 || self.named(s, slot) || s.disks[source].known != epoch || !self.active(s, source) {
            return None;
        }
        let named_earlier = s.at(epoch).chain[slot].is_some_and(|named| named.disk == disk.life.disk);
        let keeps = (named_earlier && self.holds(Rule::NamedDropsNothing))
            || (disk.promise.0 >= epoch && self.holds(Rule::PromisedDropsNothing));
        let (log, committed) = (s.disks[source].log, s.at(epoch).committed);
        let common = disk.log.common(log);
        if common == disk.log.len() {
            s.disks[slot].log.push(committed.get(common + 1)?);
        } else if !keeps {
            self.truncate(s, slot, common);
        }
        let disk = &mut s.disks[slot];
        disk.durable = disk.log.len();
        Some(())
    }
}
