//! Links and disks that hang, and coordinators that are not alone.

use super::*;

#[test]
fn neighbours_with_a_stuck_link_are_parted() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.stick(1, 2);
    bench.ticks(1);
    assert_eq!(bench.chain(), ["1.1", "3.1", "2.1"]);
    bench.ticks(100);
    assert_eq!(bench.epoch(), 2);
}

#[test]
fn two_members_with_a_stuck_link_stay_two_as_long_as_both_answer() {
    let mut bench = Bench::new(&[1, 2]);
    for _ in 0..200 {
        bench.stick(1, 2);
        bench.ticks(1);
        assert_eq!(bench.chain().len(), 2);
    }
    assert!((3..=5).contains(&bench.epoch()), "{} attempts in 200 ticks", bench.epoch() - 1);
    bench.stick(1, 2);
    bench.beat(1);
    let trouble = bench.coordinator.phase().trouble.unwrap();
    assert!(trouble.contains("look at the network between them"), "{trouble}");
    bench.member(2).answers = false;
    while bench.chain().len() == 2 {
        bench.stick(1, 2);
        bench.ticks(1);
    }
    assert_eq!(bench.chain(), ["1.1"]);
}

#[test]
fn a_member_that_only_this_coordinator_does_not_hear_stays() {
    let mut bench = Bench::new(&[1, 2]);
    bench.member(2).beats = false;
    for _ in 0..100 {
        bench.stick(1, 2);
        bench.member(1).link.as_mut().unwrap().silent_ticks = 1;
        bench.ticks(1);
    }
    assert_eq!(bench.epoch(), 1);
    bench.stick(1, 2);
    assert!(bench.ticks_to(2, 20) <= 2);
}

#[test]
fn a_disk_that_hangs_behind_a_living_process_is_found_out() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(1).last = Some(Position::new(1, 9));
    bench.member(3).answers = false; // It can't make its log durable.
    let ticks = bench.ticks_to(2, 200);
    assert!((100..=106).contains(&ticks), "{ticks}");
    assert_eq!(bench.chain(), ["1.1", "2.1"]);
}

#[test]
fn another_grant_is_yielded_to_for_a_while() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.grants = false;
    bench.member(3).beats = false;
    bench.ticks(7);
    assert_eq!(bench.coordinator.phase().phase, Phase::Granting);
    bench.record.apply(Command::Attempt { epoch: Epoch(1), by: (DiskId(8), 1) });
    bench.give(CoordinatorEvent::Recorded(bench.record.clone()));
    assert_eq!(bench.coordinator.phase().phase, Phase::Watching);
    bench.grants = true;
    assert_eq!(bench.ticks_to(2, 20), 8);
}

#[test]
fn lost_proposals_are_made_again() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.grants = false;
    bench.member(3).beats = false;
    bench.ticks(20);
    bench.grants = true;
    assert!(bench.ticks_to(2, 20) <= 4);
}

#[test]
fn who_is_sealed_without_an_attempt_under_way_is_a_reason() {
    let mut bench = Bench::new(&[1, 2]);
    bench.member(2).promise = Promise { epoch: Epoch(1), attempt: 0 };
    bench.beat(2);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["1.1".into(), "2.1".into()]));
}

#[test]
fn a_late_grant_of_an_earlier_question_is_no_answer() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.grants = false;
    bench.member(3).beats = false;
    bench.ticks(7);
    bench.record.apply(Command::Attempt { epoch: Epoch(1), by: (DiskId(9), 0) });
    bench.give(CoordinatorEvent::Recorded(bench.record.clone()));
    assert_eq!(bench.coordinator.phase().phase, Phase::Granting);
    bench.grants = true;
    assert!(bench.ticks_to(2, 10) <= 4);
}
