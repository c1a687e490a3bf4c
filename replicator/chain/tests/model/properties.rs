//! What always holds, and what must be able to happen.

use std::sync::atomic::Ordering;

use stateright::Property;

use crate::{
    state::{Log, State},
    steps::{
        COMMITTED_TRUNCATED, ENTERED_ELSEWHERE, LOST_DISK_COUNTED, PROMISE_DECREASED, Protocol, SEALED_ACKNOWLEDGED,
        STALE_READ, UNCONFIRMED,
    },
};

pub(crate) const ONE_RECORD: &str = "1 an epoch is made by its last attempt, of members that confirmed equality for it";
pub(crate) const COMMITTED_EVERYWHERE: &str = "2 committed: every member holds it durably";
pub(crate) const SILENT: &str = "3 after promising no acknowledgement and no barrier";
pub(crate) const PROMISES_GROW: &str = "4 a promise never decreases";
pub(crate) const EQUAL_BEGINNINGS: &str = "5 equal positions: equal beginnings";
pub(crate) const KEPT: &str = "6 committed: in every later epoch";
pub(crate) const NO_TRUNCATION: &str = "7 no truncation at or below commit";
pub(crate) const ENTERS_AT_START: &str = "8 on entry the log ends at the start";
pub(crate) const FRESH_READS: &str = "9 a read sees what was acknowledged before it";
pub(crate) const LOST_DISKS_OUT: &str = "11 a wiped or regressed disk isn't eligible";
pub(crate) const TRUE_DISKS_COUNT: &str = "11 no true disk of the chain counts as regressed";

fn step_broke(state: &State, invariant: u16) -> bool {
    state.broken >> invariant & 1 == 1
}

/// Every member of an epoch that is not lost, by its disk, still holds what was committed there.
fn committed_everywhere(state: &State) -> bool {
    (1..=state.epoch).all(|epoch| {
        let epoch = state.at(epoch);
        epoch.members().all(|(slot, named)| {
            let disk = &state.disks[slot];
            let there = named.disk == disk.life.disk && !disk.lost;
            !there || disk.log.cut(disk.durable).starts_with(epoch.committed)
        })
    })
}

/// What tells an old copy of a member's disk takes no true one for it.
fn true_disks_count(state: &State) -> bool {
    state.at(state.epoch).members().all(|(slot, named)| {
        let disk = &state.disks[slot];
        let there = named.disk == disk.life.disk && !disk.lost;
        let durable = disk.log.cut(disk.durable);
        !there || state.explains(state.epoch, disk.log) && state.explains(state.epoch, durable)
    })
}

fn kept(state: &State) -> bool {
    (2..=state.epoch).all(|later| (1..later).all(|e| state.at(later).start.starts_with(state.at(e).committed)))
}

fn equal_beginnings(state: &State) -> bool {
    let disks = state.disks.iter().map(|disk| disk.log);
    let logs: Vec<Log> = disks.chain(state.epochs.iter().map(|epoch| epoch.committed)).collect();
    logs.iter().enumerate().all(|(i, log)| logs[..i].iter().all(|other| log.agrees(*other)))
}

/// Records the first violation only: the checker would overwrite it with a longer one.
fn first(protocol: &Protocol, invariant: u32, holds: bool) -> bool {
    holds || protocol.found.fetch_or(1 << invariant, Ordering::Relaxed) >> invariant & 1 == 1
}

pub(crate) fn invariants() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONE_RECORD, |p, s| first(p, 1, !step_broke(s, UNCONFIRMED))),
        Property::always(COMMITTED_EVERYWHERE, |p, s| first(p, 2, committed_everywhere(s))),
        Property::always(SILENT, |p, s| first(p, 3, !step_broke(s, SEALED_ACKNOWLEDGED))),
        Property::always(PROMISES_GROW, |p, s| first(p, 4, !step_broke(s, PROMISE_DECREASED))),
        Property::always(EQUAL_BEGINNINGS, |p, s| first(p, 5, equal_beginnings(s))),
        Property::always(KEPT, |p, s| first(p, 6, kept(s))),
        Property::always(NO_TRUNCATION, |p, s| first(p, 7, !step_broke(s, COMMITTED_TRUNCATED))),
        Property::always(ENTERS_AT_START, |p, s| first(p, 8, !step_broke(s, ENTERED_ELSEWHERE))),
        Property::always(FRESH_READS, |p, s| first(p, 9, !step_broke(s, STALE_READ))),
        Property::always(LOST_DISKS_OUT, |p, s| first(p, 11, !step_broke(s, LOST_DISK_COUNTED))),
        Property::always(TRUE_DISKS_COUNT, |p, s| first(p, 12, true_disks_count(s))),
    ]
}

pub(crate) const ONE_COMMITS: &str = "a chain of one commits";
pub(crate) const RETURNS: &str = "a member that was left out is in a chain again";
pub(crate) const LOSES: &str = "an attempt with a target loses to a later one";
pub(crate) const SURVIVES: &str = "an entry that was never committed survives a seal";
pub(crate) const JOINS: &str = "a learner is in a chain";
pub(crate) const WIPED_RETURNS: &str = "a wiped disk is in a chain again";
pub(crate) const COLD: &str = "all have restarted, and a chain goes on";
pub(crate) const READ: &str = "a read is answered";
pub(crate) const TWO_PRIMARIES: &str = "two primaries are active at once";

pub(crate) fn examples() -> Vec<Property<Protocol>> {
    vec![
        Property::sometimes(ONE_COMMITS, |_, s: &State| {
            s.epochs.iter().any(|epoch| epoch.members().count() == 1 && epoch.committed.len() > epoch.start.len())
        }),
        Property::sometimes(RETURNS, |_, s: &State| {
            let [first, second, third] = &s.epochs;
            third.members().any(|(slot, _)| first.chain[slot].is_some() && second.chain[slot].is_none())
        }),
        Property::sometimes(LOSES, |_, s: &State| {
            (2..=s.epoch).any(|epoch| s.at(epoch).by == 2 && s.at(epoch - 1).targets[0].is_some())
        }),
        Property::sometimes(SURVIVES, |_, s: &State| {
            (2..=s.epoch).any(|epoch| s.at(epoch).start.len() > s.at(epoch - 1).committed.len())
        }),
        Property::sometimes(JOINS, |_, s: &State| {
            (2..=s.epoch).any(|epoch| s.at(epoch).members().any(|(slot, _)| s.at(1).chain[slot].is_none()))
        }),
        Property::sometimes(WIPED_RETURNS, |_, s: &State| {
            (2..=s.epoch).any(|epoch| s.at(epoch).members().any(|(_, named)| named.disk > 0))
        }),
        Property::sometimes(COLD, |_, s: &State| {
            (2..=s.epoch).any(|epoch| {
                s.at(epoch - 1).members().all(|(slot, named)| s.disks[slot].life.life > named.life)
                    && s.at(epoch).members().all(|(slot, named)| named == s.disks[slot].life)
            })
        }),
        Property::sometimes(READ, |_, s: &State| s.read.is_some_and(|read| read.answered)),
        Property::sometimes(TWO_PRIMARIES, |p: &Protocol, s: &State| {
            (1..=s.epoch).filter(|&e| p.primary(s, e).is_some()).count() > 1
        }),
    ]
}
