//! What each rule is for: without it, an invariant breaks, and the shortest way there is printed (`--nocapture`).

use std::{collections::BTreeSet, sync::atomic::AtomicU32, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{Bounds, SMALL, lines, properties::*, rules::Rule, steps::Protocol};

/// The shortest way to break `invariant` without `rule`.
fn breaks(rule: Rule, bounds: Bounds, invariant: &'static str) {
    let protocol = Protocol { bounds, without: Some(rule), found: AtomicU32::new(0) };
    let began = Instant::now();
    let until = HasDiscoveries::AnyOf(BTreeSet::from([invariant]));
    let checked = protocol.checker().finish_when(until).spawn_bfs().join();
    let (states, seconds) = (checked.unique_state_count(), began.elapsed().as_secs_f32());
    let path = checked.discovery(invariant);
    let path =
        path.unwrap_or_else(|| panic!("{rule:?} is of no use: {invariant:?} holds in {states} states of {bounds:?}"));
    println!("without {rule:?}: {invariant} ({states} states, {seconds:.1} s)\n{}", lines(path));
}

#[test]
fn without_ordered_attempts() {
    breaks(Rule::OrderedAttempts, Bounds { attempts: 2, ..SMALL }, ENTERS_AT_START);
}

#[test]
fn without_durable_promises() {
    breaks(Rule::PromiseIsDurable, Bounds { restarts: 1, ..SMALL }, PROMISES_GROW);
}

#[test]
fn without_silence_after_a_seal() {
    breaks(Rule::SealedIsSilent, SMALL, KEPT);
}

#[test]
fn without_refusing_barriers_after_a_seal() {
    breaks(Rule::SealedPassesNoBarrier, Bounds { reads: true, ..SMALL }, FRESH_READS);
}

#[test]
fn without_the_greatest_target() {
    let bounds = Bounds { disks: 2, chain: 2, epochs: 3, copies: 1, unnoticed: true, ..SMALL };
    breaks(Rule::TargetIsGreatest, bounds, KEPT);
    // With it, an old copy that nothing shows to be one does no harm, as long as a true disk answers too.
    let protocol = Protocol { bounds, without: None, found: AtomicU32::new(0) };
    let checked = protocol.checker().spawn_bfs().join();
    let found = checked.discoveries();
    assert!(!found.contains_key(KEPT), "{}", lines(found[KEPT].clone()));
    println!("with it: all is kept in {} states\n", checked.unique_state_count());
}

#[test]
fn without_one_target_for_an_attempt() {
    breaks(Rule::OneTarget, SMALL, ENTERS_AT_START);
}

#[test]
fn without_the_last_grant() {
    breaks(Rule::LastGrantOnly, Bounds { attempts: 2, ..SMALL }, ENTERS_AT_START);
}

#[test]
fn without_confirmations() {
    breaks(Rule::ConfirmedOnly, SMALL, ENTERS_AT_START);
}

#[test]
fn without_dropping_the_rest() {
    breaks(Rule::DropsTheRest, SMALL, ENTERS_AT_START);
}

#[test]
fn without_holding_the_target() {
    breaks(Rule::HoldsTheTarget, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_durable_equality() {
    breaks(Rule::EqualIsDurable, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_equalising_in_the_epoch_only() {
    breaks(Rule::EqualiseInItsEpoch, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_a_log_that_knows_its_epoch() {
    breaks(Rule::LogKnowsItsEpoch, Bounds { restarts: 1, ..SMALL }, COMMITTED_EVERYWHERE);
}

#[test]
fn without_the_primarys_own_fsync() {
    breaks(Rule::PrimaryPersists, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_all_acknowledgements() {
    breaks(Rule::AllAcknowledge, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_the_epoch_in_appends() {
    breaks(Rule::AppendsOfTheEpoch, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_the_epoch_in_acknowledgements() {
    breaks(Rule::AcknowledgementsOfTheEpoch, SMALL, COMMITTED_EVERYWHERE);
}

#[test]
fn without_the_order_of_appends() {
    breaks(Rule::AppendsFollow, Bounds { entries: 2, ..SMALL }, EQUAL_BEGINNINGS);
}

#[test]
fn without_sealing_at_a_start() {
    breaks(Rule::NobodyResumes, Bounds { restarts: 1, ..SMALL }, EQUAL_BEGINNINGS);
}

#[test]
fn without_keeping_what_an_earlier_life_acknowledged() {
    breaks(Rule::NamedDropsNothing, Bounds { restarts: 1, ..SMALL }, COMMITTED_EVERYWHERE);
}

#[test]
fn without_keeping_what_was_promised() {
    breaks(Rule::PromisedDropsNothing, Bounds { chain: 2, restarts: 1, ..SMALL }, COMMITTED_EVERYWHERE);
}

#[test]
fn without_leaving_learners_out() {
    breaks(Rule::LearnersDontCount, Bounds { disks: 4, ..SMALL }, KEPT);
}

#[test]
fn without_new_ids_for_wiped_disks() {
    breaks(Rule::WipedDisksDontCount, Bounds { wipes: 1, ..SMALL }, KEPT);
}

#[test]
fn without_finding_old_lives() {
    breaks(Rule::OldLivesDontCount, Bounds { disks: 2, chain: 2, restarts: 1, copies: 1, ..SMALL }, KEPT);
}

#[test]
fn without_a_floor_at_the_start() {
    breaks(Rule::ElsewhereDoesntCount, Bounds { disks: 2, chain: 2, epochs: 3, copies: 1, ..SMALL }, KEPT);
}

#[test]
fn without_asking_all_for_a_read() {
    breaks(Rule::BarrierAsksAll, Bounds { reads: true, ..SMALL }, FRESH_READS);
}

#[test]
fn without_a_barrier_after_the_read() {
    breaks(Rule::BarrierAfterTheRead, Bounds { reads: true, ..SMALL }, FRESH_READS);
}

#[test]
fn without_reading_from_the_start() {
    breaks(Rule::ReadsFromTheStart, Bounds { reads: true, ..SMALL }, FRESH_READS);
}
