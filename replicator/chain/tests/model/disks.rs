//! What happens to disks and their processes.

use crate::{
    rules::Rule,
    state::{Disk, Life, Log, State},
    steps::{COMMITTED_TRUNCATED, Protocol},
};

impl Protocol {
    pub(crate) fn restart(&self, s: &mut State, slot: usize, kept: bool) -> Option<()> {
        let disk = &mut s.disks[slot];
        if kept && disk.durable == disk.log.len() {
            return None;
        }
        s.restarts += 1;
        disk.life.life += 1;
        if !kept {
            disk.log = disk.log.cut(disk.durable);
        }
        disk.durable = disk.log.len();
        if self.holds(Rule::NobodyResumes) {
            disk.known = 0;
        }
        if !self.holds(Rule::PromiseIsDurable) {
            disk.promise = (0, 0);
        }
        Some(())
    }

    pub(crate) fn wipe(&self, s: &mut State, slot: usize) -> Option<()> {
        s.wipes += 1;
        s.disks[slot] = blank(s.disks[slot].life);
        Some(())
    }

    pub(crate) fn copy(&self, s: &mut State, slot: usize) -> Option<()> {
        s.copies += 1;
        s.copy = Some((slot, s.disks[slot]));
        Some(())
    }

    /// The copy starts as an incarnation that is one above its own. If the disk has lived more lives since, that is seen, and it counts as wiped.
    /// If not, its place in the log may show it. One that ends at the start or in the epoch nobody can tell from the disk itself.
    pub(crate) fn put_back(&self, s: &mut State) -> Option<()> {
        let (slot, copy) = s.copy.take()?;
        let disk = s.disks[slot];
        let log = copy.log.cut(copy.durable);
        if copy.life.disk != disk.life.disk || log == disk.log {
            return None;
        }
        if copy.life.life < disk.life.life && self.holds(Rule::OldLivesDontCount) {
            s.disks[slot] = blank(disk.life);
            return Some(());
        }
        let seen = copy.life.life < disk.life.life || !s.explains(s.epoch, log);
        let life = Life { life: disk.life.life + 1, ..disk.life };
        s.disks[slot] = Disk { life, log, durable: log.len(), promise: copy.promise, known: 0, lost: true };
        (seen || self.bounds.unnoticed).then_some(())
    }

    pub(crate) fn truncate(&self, s: &mut State, slot: usize, len: u8) {
        let disk = s.disks[slot];
        if len >= disk.log.len() {
            return;
        }
        // The most that this process can have been told.
        let told = if disk.known == 0 { Log::default() } else { s.at(disk.known).committed };
        if len < told.common(disk.log.cut(disk.durable)) {
            s.broken |= 1 << COMMITTED_TRUNCATED;
        }
        let disk = &mut s.disks[slot];
        disk.log = disk.log.cut(len);
        disk.durable = disk.durable.min(len);
    }
}

/// A folder without files in the place of a disk: a new disk, with a new id.
fn blank(before: Life) -> Disk {
    let life = before.life + 1;
    Disk { life: Life { disk: life, life }, lost: true, ..Disk::default() }
}
