//! Members that are silent, and what is left of the chain.

use super::*;

#[test]
fn a_whole_chain_is_left_alone() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.ticks(500);
    assert_eq!(bench.epoch(), 1);
    assert_eq!(bench.coordinator.phase().trouble, None);
}

#[test]
fn a_silent_member_is_left_out_after_the_suspect_bound() {
    for (dead, chain) in [(1, ["2.1", "3.1"]), (2, ["1.1", "3.1"]), (3, ["1.1", "2.1"])] {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.member(dead).beats = false;
        assert_eq!(bench.ticks_to(2, 50), 5, "killing {dead}, whose last beat was a tick ago");
        assert_eq!(bench.chain(), chain);
    }
}

#[test]
fn a_chain_of_one_waits_for_the_longer_bound() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(1).beats = false;
    bench.member(2).beats = false;
    assert_eq!(bench.ticks_to(2, 50), 11);
    assert_eq!(bench.chain(), ["3.1"]);
}

#[test]
fn a_beating_member_that_answers_nothing_is_left_out_after_the_answer_bound() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(1).beats = false;
    bench.member(2).answers = false;
    assert_eq!(bench.ticks_to(2, 50), 5 + 12, "3 would be alone, so 2 is waited for until the longer bound");
    let mut bench = Bench::new(&[1, 2, 3, 4]);
    bench.member(1).beats = false;
    bench.member(2).answers = false;
    assert_eq!(bench.ticks_to(2, 50), 5 + 4);
    assert_eq!(bench.chain(), ["3.1", "4.1"]);
}

#[test]
fn the_target_is_the_greatest_position_not_the_longest_log() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(1).beats = false;
    bench.member(2).last = Some(Position::new(1, 90));
    bench.member(3).last = Some(Position::new(2, 5));
    bench.ticks_to(2, 50);
    assert_eq!(bench.record.configuration.unwrap().start, Some(Position::new(2, 5)));
}

#[test]
fn all_eligible_disks_are_waited_for_after_a_cold_start() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.give(CoordinatorEvent::Leading(false));
    bench.members.values_mut().for_each(|member| member.beats = false);
    bench.give(CoordinatorEvent::Leading(true));
    bench.restart(2);
    bench.ticks(30);
    bench.restart(3);
    bench.ticks(20);
    assert_eq!(bench.epoch(), 1);
    let trouble = bench.coordinator.phase().trouble.unwrap();
    assert!(trouble.contains("all members have stopped") && trouble.contains("0000000000000001"), "{trouble}");
    bench.restart(1);
    bench.beat(1);
    assert_eq!((bench.epoch(), bench.chain()), (2, vec!["1.2".into(), "2.2".into(), "3.2".into()]));
}

#[test]
fn after_the_cold_bound_those_that_returned_go_on() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.members.values_mut().for_each(|member| member.beats = false);
    bench.ticks(50);
    assert_eq!(bench.coordinator.phase().phase, Phase::Watching);
    bench.restart(3);
    bench.restart(2);
    let ticks = bench.ticks_to(2, 200);
    assert!((40..=60).contains(&ticks), "{ticks} ticks after 50 of silence, with a bound of 100");
    assert_eq!(bench.chain(), ["2.2", "3.2"]);
}

#[test]
fn without_a_disk_of_the_last_epoch_nothing_is_taken_and_the_status_says_what_would_help() {
    let mut bench = Bench::new(&[1, 2]);
    bench.add(3); // A learner that has everything, as far as it knows.
    bench.members.get_mut(&3).unwrap().commit = None;
    bench.coordinator.timing.join_lag_max = 0;
    bench.member(1).beats = false;
    bench.member(2).beats = false;
    bench.ticks(500);
    assert_eq!(bench.epoch(), 1);
    let trouble = bench.coordinator.phase().trouble.unwrap();
    assert!(trouble.contains("start one of 0000000000000001, 0000000000000002"), "{trouble}");
}

#[test]
fn a_member_below_the_start_is_told_and_counts_for_nothing() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(3).beats = false;
    bench.ticks_to(2, 50);
    bench.restart(1);
    bench.member(1).last = Some(Position::new(1, 3));
    bench.ticks(30);
    let expected = CoordinatorEffect::Regressed {
        disk: DiskId(1),
        last: Some(Position::new(1, 3)),
        start: Some(Position::new(1, 4)),
    };
    assert_eq!(bench.done, [expected], "once");
    assert_eq!(bench.chain(), ["2.1"]);
    bench.member(2).beats = false;
    bench.ticks(200);
    assert_eq!(bench.epoch(), 3, "a regressed disk went on alone");
}
