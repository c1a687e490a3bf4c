//! Learners and returning members, and what operators wish.

use super::*;

#[test]
fn a_member_that_lives_anew_stands_behind_the_survivors_at_once() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.restart(1);
    bench.beat(1);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["2.1".into(), "3.1".into(), "1.2".into()]));
}

#[test]
fn a_near_learner_is_let_in_and_a_far_or_foreign_one_is_not() {
    let mut bench = Bench::new(&[1, 2]);
    bench.coordinator.timing.join_lag_max = 3;
    bench.add(3);
    bench.member(3).commit = Some(Position::new(1, 0));
    bench.ticks(50);
    assert_eq!(bench.epoch(), 1, "four entries behind");
    bench.member(3).commit = Some(Position::new(1, 1));
    bench.ticks(1);
    assert_eq!((bench.epoch(), bench.chain().len()), (2, 3));
    let mut bench = Bench::new(&[1, 2]);
    bench.add(3);
    bench.give(CoordinatorEvent::Voters(vec![DiskId(1), DiskId(2)]));
    bench.ticks(50);
    assert_eq!(bench.epoch(), 1, "not a voter");
}

#[test]
fn a_learner_that_does_not_answer_costs_its_bound_and_then_waits_longer_each_time() {
    let mut bench = Bench::new(&[1, 2]);
    bench.add(3);
    bench.member(3).answers = false;
    assert_eq!(bench.ticks_to(2, 50), 4);
    assert_eq!(bench.chain(), ["1.1", "2.1"]);
    assert_eq!(bench.ticks_to(3, 50), 20 + 4);
    assert_eq!(bench.ticks_to(4, 90), 40 + 4);
}

#[test]
fn a_wished_primary_comes_without_a_tick() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.give(CoordinatorEvent::Wished(Wish::Primary(DiskId(3))));
    assert_eq!(bench.chain(), ["3.1", "1.1", "2.1"]);
    assert_eq!(bench.done, [CoordinatorEffect::WishDone(Wish::Primary(DiskId(3)))]);
}

#[test]
fn a_removed_member_goes_without_a_tick_and_stays_out() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.give(CoordinatorEvent::Wished(Wish::Remove(DiskId(1))));
    assert_eq!(bench.chain(), ["2.1", "3.1"]);
    assert_eq!(bench.done, [CoordinatorEffect::WishDone(Wish::Remove(DiskId(1)))]);
    bench.ticks(2_000);
    assert_eq!(bench.chain(), ["2.1", "3.1"]);
}

#[test]
fn a_removal_down_to_one_needs_no_silence() {
    let mut bench = Bench::new(&[1, 2]);
    bench.give(CoordinatorEvent::Wished(Wish::Remove(DiskId(1))));
    assert_eq!(bench.chain(), ["2.1"]);
}

#[test]
fn wishes_that_can_not_be_are_refused_with_what_to_do() {
    let refused = |bench: &mut Bench, wish: Wish, says: &str| {
        bench.done.clear();
        bench.give(CoordinatorEvent::Wished(wish));
        let [CoordinatorEffect::WishRefused(refused, why)] = &bench.done[..] else { panic!("{:?}", bench.done) };
        assert_eq!(*refused, wish);
        assert!(why.contains(says), "{why}");
    };
    let mut bench = Bench::new(&[1]);
    refused(&mut bench, Wish::Remove(DiskId(1)), "add a replica first");
    refused(&mut bench, Wish::Primary(DiskId(2)), "wait until it has joined");
    let mut bench = Bench::new(&[1, 2]);
    bench.coordinator.record.least_chain = 2;
    refused(&mut bench, Wish::Remove(DiskId(1)), "takes writes from 2");
    bench.grants = false;
    bench.done.clear();
    bench.give(CoordinatorEvent::Wished(Wish::Primary(DiskId(2))));
    // Neither it again nor another one is answered while it is under way.
    for disk in [2, 1] {
        bench.give(CoordinatorEvent::Wished(Wish::Primary(DiskId(disk))));
    }
    assert_eq!(bench.done, []);
    bench.ticks(100);
    assert!(
        matches!(&bench.done[..], [CoordinatorEffect::WishRefused(Wish::Primary(DiskId(2)), why)] if why.contains("100 heartbeats"))
    );
    bench.done.clear();
    bench.give(CoordinatorEvent::Wished(Wish::Primary(DiskId(2))));
    bench.give(CoordinatorEvent::Leading(false));
    bench.give(CoordinatorEvent::Wished(Wish::Primary(DiskId(2))));
    bench.ticks(100);
    assert_eq!(bench.done, [], "who doesn't lead knows of no wish");
}

#[test]
fn a_wished_removal_goes_on_after_the_disk_has_left_the_voters() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.grants = false;
    bench.give(CoordinatorEvent::Wished(Wish::Remove(DiskId(3))));
    bench.give(CoordinatorEvent::Voters(Vec::new()));
    bench.give(CoordinatorEvent::Voters([1, 2, 3].map(DiskId).to_vec()));
    bench.grants = true;
    bench.ticks(4);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["1.1".into(), "2.1".into()]));
}

#[test]
fn a_removed_disk_stands_if_nobody_else_is_left() {
    let mut bench = Bench::new(&[1]);
    bench.coordinator.rejoins.remove(DiskId(1));
    bench.restart(1);
    bench.beat(1);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["1.2".to_owned()]));
}

#[test]
fn a_learner_that_its_promise_holds_back_is_freed_by_one_epoch() {
    let mut bench = Bench::new(&[1, 2]);
    bench.coordinator.timing.join_lag_max = 0;
    bench.add(3);
    bench.member(3).commit = None;
    bench.ticks(50);
    assert_eq!(bench.epoch(), 1, "far behind, but nothing holds it back");
    bench.member(3).promise = Promise { epoch: Epoch(1), attempt: 5 };
    bench.ticks(50);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["1.1".into(), "2.1".into()]));
}
