//! Who stands where in the next chain.

use std::collections::{BTreeMap, BTreeSet};

use replicator_types::DiskId;

use crate::Timing;

/// Orders that are looked at before the bad links are put up with.
const ORDERS_MAX: usize = 10_000;

#[derive(Debug)]
struct BadLink {
    /// Forgotten then, unless there is a complaint again.
    until: u64,
    /// No attempt for its sake before.
    next_try: u64,
    /// The wait after the next one.
    wait: u64,
}

/// Pairs of disks between which nothing passed lately, though both were there.
#[derive(Debug, Default)]
pub(super) struct BadLinks {
    pairs: BTreeMap<(DiskId, DiskId), BadLink>,
}

fn pair(a: DiskId, b: DiskId) -> (DiskId, DiskId) {
    (a.min(b), a.max(b))
}

impl BadLinks {
    pub(super) fn complain(&mut self, from: DiskId, to: DiskId, now: u64, timing: &Timing) {
        let until = now + u64::from(timing.cold_ticks);
        let wait = u64::from(timing.patience_min_ticks);
        self.pairs.entry(pair(from, to)).or_insert(BadLink { until, next_try: now, wait }).until = until;
    }

    pub(super) fn is_bad(&self, a: DiskId, b: DiskId) -> bool {
        self.pairs.contains_key(&pair(a, b))
    }

    pub(super) fn may_try(&self, a: DiskId, b: DiskId, now: u64) -> bool {
        self.pairs.get(&pair(a, b)).is_some_and(|bad| bad.next_try <= now)
    }

    /// An attempt was made for its sake: where no order avoids the link, the next one waits twice as long.
    pub(super) fn tried(&mut self, a: DiskId, b: DiskId, now: u64, timing: &Timing) {
        if let Some(bad) = self.pairs.get_mut(&pair(a, b)) {
            bad.next_try = now + bad.wait;
            bad.wait = (2 * bad.wait).min(u64::from(timing.patience_max_ticks));
        }
    }

    pub(super) fn pass(&mut self, now: u64) {
        self.pairs.retain(|_, bad| now < bad.until);
    }

    pub(super) fn keep(&mut self, disks: &BTreeSet<DiskId>) {
        self.pairs.retain(|(a, b), _| disks.contains(a) && disks.contains(b));
    }

    /// Whether some order of `disks` has no bad link.
    pub(super) fn avoidable(&self, disks: &[DiskId]) -> bool {
        self.pairs.is_empty() || self.first_good(disks, None).is_some()
    }

    /// The order nearest to `disks` in which no neighbours have a bad link, `head` first if it is given. Where there is none and more than two
    /// stand, who has the most bad links is left out; of two, both stay: a chain of one beside a healthy replica would be worse.
    pub(super) fn order(&self, disks: &[DiskId], head: Option<DiskId>) -> Vec<DiskId> {
        let mut disks = disks.to_vec();
        if let Some(place) = disks.iter().position(|disk| Some(*disk) == head) {
            disks[..=place].rotate_right(1);
        }
        while !self.pairs.is_empty() && disks.len() > 2 {
            let head = head.filter(|head| disks.contains(head));
            if let Some(order) = self.first_good(&disks, head).or_else(|| self.first_good(&disks, None)) {
                return order;
            }
            let bad = |disk: DiskId| disks.iter().filter(|other| self.is_bad(disk, **other)).count();
            let worst = (0..disks.len()).max_by_key(|&i| (bad(disks[i]), i)).expect("more than two stand");
            disks.remove(worst);
        }
        disks
    }

    fn first_good(&self, disks: &[DiskId], head: Option<DiskId>) -> Option<Vec<DiskId>> {
        let mut order = Vec::with_capacity(disks.len());
        let mut rest = disks.to_vec();
        if let Some(place) = disks.iter().position(|disk| Some(*disk) == head) {
            order.push(rest.remove(place));
        }
        let mut looks = ORDERS_MAX;
        self.extend(&mut order, &mut rest, &mut looks).then_some(order)
    }

    fn extend(&self, order: &mut Vec<DiskId>, rest: &mut Vec<DiskId>, looks: &mut usize) -> bool {
        for i in 0..rest.len() {
            let next = rest[i];
            if *looks == 0 || order.last().is_some_and(|last| self.is_bad(*last, next)) {
                continue;
            }
            *looks -= 1;
            order.push(rest.remove(i));
            if self.extend(order, rest, looks) {
                return true;
            }
            order.pop();
            rest.insert(i, next);
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(ids: &[u64]) -> Vec<DiskId> {
        ids.iter().copied().map(DiskId).collect()
    }

    fn bad(pairs: &[(u64, u64)]) -> BadLinks {
        let mut links = BadLinks::default();
        for &(a, b) in pairs {
            links.complain(DiskId(a), DiskId(b), 0, &Timing::default());
        }
        links
    }

    #[test]
    fn without_bad_links_the_order_stays_with_the_wished_head_first() {
        assert_eq!(bad(&[]).order(&disks(&[3, 1, 2]), None), disks(&[3, 1, 2]));
        assert_eq!(bad(&[]).order(&disks(&[3, 1, 2]), Some(DiskId(2))), disks(&[2, 3, 1]));
    }

    #[test]
    fn neighbours_with_a_bad_link_are_parted_and_the_head_stays_where_it_can() {
        assert_eq!(bad(&[(1, 2)]).order(&disks(&[1, 2, 3]), None), disks(&[1, 3, 2]));
        assert_eq!(bad(&[(3, 2)]).order(&disks(&[1, 2, 3]), None), disks(&[2, 1, 3]));
        assert_eq!(bad(&[(1, 3)]).order(&disks(&[1, 2, 3]), Some(DiskId(3))), disks(&[3, 2, 1]));
        assert_eq!(bad(&[(1, 3)]).order(&disks(&[1, 2, 3]), Some(DiskId(2))), disks(&[1, 2, 3]));
    }

    #[test]
    fn who_no_neighbour_reaches_is_left_out_unless_only_two_stand() {
        assert_eq!(bad(&[(1, 2), (2, 3)]).order(&disks(&[1, 2, 3]), None), disks(&[1, 3]));
        assert_eq!(bad(&[(1, 2)]).order(&disks(&[1, 2]), None), disks(&[1, 2]));
        assert!(!bad(&[(1, 2)]).avoidable(&disks(&[1, 2])));
    }

    #[test]
    fn an_unavoidable_link_is_tried_ever_more_seldom_and_forgotten_without_complaints() {
        let (timing, mut links) = (Timing::default(), bad(&[(1, 2)]));
        assert!(links.may_try(DiskId(2), DiskId(1), 0));
        links.tried(DiskId(1), DiskId(2), 0, &timing);
        assert!(!links.may_try(DiskId(1), DiskId(2), 19) && links.may_try(DiskId(1), DiskId(2), 20));
        links.tried(DiskId(1), DiskId(2), 20, &timing);
        assert!(!links.may_try(DiskId(1), DiskId(2), 59) && links.may_try(DiskId(1), DiskId(2), 60));
        links.pass(100);
        assert!(!links.is_bad(DiskId(1), DiskId(2)));
    }

    #[test]
    fn a_hopeless_search_ends() {
        let mut pairs = Vec::new();
        for other in 2..=14 {
            pairs.push((1, other)); // 1 has no good neighbour: every order of 14 is looked for in vain.
        }
        let order = bad(&pairs).order(&disks(&(1..=14).collect::<Vec<_>>()), None);
        assert_eq!(order, disks(&(2..=14).collect::<Vec<_>>()));
    }
}
