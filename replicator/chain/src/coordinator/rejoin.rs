//! Who may be let in again, and when: a node that comes and goes must not stop the chain each time (safety rule 9).

use std::collections::{BTreeMap, BTreeSet};

use replicator_types::DiskId;

use crate::{Life, Timing};

#[derive(Debug)]
struct Rejoin {
    /// Who was left out last. In a later life it waits for the shortest time only: that it died says nothing of its link or its disk, and who starts
    /// it again sees to it that this isn't done for ever.
    life: Life,
    /// When.
    since: u64,
    /// The last wait, in ticks.
    wait: u64,
    /// Since when it is in the chain.
    joined: Option<u64>,
}

/// The disks that were left out lately. Kept by every coordinator, but in memory only: a new one begins with what it has seen.
#[derive(Debug, Default)]
pub(super) struct Rejoins {
    disks: BTreeMap<DiskId, Rejoin>,
    /// By an operator; until they have left the voters.
    removed: BTreeSet<DiskId>,
}

impl Rejoins {
    pub(super) fn may_join(&self, life: Life, now: u64, timing: &Timing) -> bool {
        let waited = |rejoin: &Rejoin| {
            let wait = if rejoin.life == life { rejoin.wait } else { u64::from(timing.patience_min_ticks) };
            rejoin.since + wait <= now
        };
        !self.is_removed(life.disk) && self.disks.get(&life.disk).is_none_or(waited)
    }

    pub(super) fn is_removed(&self, disk: DiskId) -> bool {
        self.removed.contains(&disk)
    }

    pub(super) fn remove(&mut self, disk: DiskId) {
        self.removed.insert(disk);
    }

    pub(super) fn pardon(&mut self, disk: DiskId) {
        self.removed.remove(&disk);
    }

    /// It was left out of the chain, or didn't get in.
    pub(super) fn left_out(&mut self, life: Life, now: u64, timing: &Timing) {
        let (least, most) = (u64::from(timing.patience_min_ticks), u64::from(timing.patience_max_ticks));
        let before = self.disks.get(&life.disk).filter(|before| before.life == life);
        let wait = before.map_or(least, |before| (2 * before.wait).min(most));
        self.disks.insert(life.disk, Rejoin { life, since: now, wait, joined: None });
    }

    pub(super) fn entered(&mut self, before: &[Life], chain: &[Life], now: u64, timing: &Timing) {
        for life in before {
            if !chain.iter().any(|member| member.disk == life.disk) {
                self.left_out(*life, now, timing);
            }
        }
        for life in chain {
            if let Some(rejoin) = self.disks.get_mut(&life.disk) {
                rejoin.joined.get_or_insert(now);
            }
        }
    }

    pub(super) fn pass(&mut self, now: u64, timing: &Timing) {
        let enough = u64::from(timing.patience_max_ticks);
        self.disks.retain(|_, rejoin| rejoin.joined.is_none_or(|joined| now - joined < enough));
    }

    pub(super) fn keep(&mut self, voters: &BTreeSet<DiskId>) {
        self.removed.retain(|disk| voters.contains(disk));
        self.disks.retain(|disk, rejoin| voters.contains(disk) || rejoin.joined.is_some());
    }
}

#[cfg(test)]
mod tests {
    use replicator_types::Incarnation;

    use super::*;

    #[test]
    fn each_time_left_out_doubles_the_wait_until_long_enough_in_the_chain() {
        let (disk, timing) = (DiskId(1), Timing::default());
        let life = Life { disk, incarnation: Incarnation(1) };
        let mut rejoins = Rejoins::default();
        assert!(rejoins.may_join(life, 0, &timing), "never left out");
        let mut now = 0;
        for wait in [20, 40, 80, 160, 320, 640, 1_200, 1_200] {
            rejoins.entered(&[life], &[], now, &timing);
            assert!(!rejoins.may_join(life, now + wait - 1, &timing), "too early after {wait}");
            assert!(rejoins.may_join(life, now + wait, &timing), "too late after {wait}");
            let restarted = Life { incarnation: Incarnation(2), ..life };
            assert!(rejoins.may_join(restarted, now + 20, &timing), "a later life pays for an earlier one");
            now += wait;
            rejoins.entered(&[], &[life], now, &timing);
        }
        rejoins.pass(now + 1_200, &timing);
        rejoins.entered(&[life], &[], now + 1_200, &timing);
        assert!(
            rejoins.may_join(life, now + 1_220, &timing),
            "so long in the chain, and it still pays for earlier times"
        );
    }

    #[test]
    fn a_removed_disk_stays_out_until_it_has_left_the_voters() {
        let (disk, timing) = (DiskId(1), Timing::default());
        let life = Life { disk, incarnation: Incarnation(1) };
        let mut rejoins = Rejoins::default();
        rejoins.remove(disk);
        rejoins.keep(&BTreeSet::from([disk]));
        assert!(!rejoins.may_join(life, 9_999, &timing));
        rejoins.keep(&BTreeSet::new());
        assert!(rejoins.may_join(life, 9_999, &timing));
    }
}
