//! Answers that don't count: of another attempt, another target, an earlier life, somebody else. Members are silent here, and tests say what comes.

use super::*;

const LAST: Option<Position> = Some(Position { epoch: Epoch(1), index: replicator_types::LogIndex(4) });

/// 1 is dead, and the attempt (1, 1) to go on with 2 and 3 is granted; neither has answered.
fn sealing() -> Bench {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.members.values_mut().for_each(|member| member.answers = false);
    bench.member(1).beats = false;
    while bench.coordinator.phase().phase != Phase::Sealing {
        bench.ticks(1);
    }
    bench.member(1).beats = false;
    assert_eq!(bench.waiting(), [1, 2, 3]);
    bench
}

/// 2 and 3 have sealed, and the target is `LAST`.
fn equalising() -> Bench {
    let mut bench = sealing();
    bench.sealed(2, life(2, 1), 1);
    bench.sealed(3, life(3, 1), 1);
    assert_eq!((bench.coordinator.phase().phase, bench.waiting()), (Phase::Equalising, vec![2, 3]));
    bench
}

fn promise(attempt: u64) -> Promise {
    Promise { epoch: Epoch(1), attempt }
}

impl Bench {
    fn waiting(&self) -> Vec<u64> {
        self.coordinator.phase().waiting_for.into_iter().map(|disk| disk.0).collect()
    }

    fn say(&mut self, from: u64, message: Message) {
        self.give(CoordinatorEvent::Received { from: DiskId(from), message });
    }

    fn sealed(&mut self, from: u64, life: Life, attempt: u64) {
        self.say(from, Message::Sealed { promise: promise(attempt), life, last: LAST });
    }

    fn equal(&mut self, from: u64, life: Life, attempt: u64, last: Option<Position>) {
        self.say(from, Message::Equal { promise: promise(attempt), life, last });
    }
}

#[test]
fn sealed_for_another_attempt_does_not_count() {
    let mut bench = sealing();
    for attempt in [0, 2] {
        bench.sealed(2, life(2, 1), attempt);
        assert_eq!(bench.waiting(), [1, 2, 3], "of attempt {attempt}, and 1 is granted");
    }
    bench.say(2, Message::Sealed { promise: Promise { epoch: Epoch(2), attempt: 1 }, life: life(2, 1), last: LAST });
    assert_eq!(bench.waiting(), [1, 2, 3], "of another epoch");
}

#[test]
fn answer_in_another_disks_name_does_not_count() {
    let mut bench = sealing();
    bench.sealed(3, life(2, 1), 1);
    assert_eq!(bench.waiting(), [1, 2, 3]);
    let mut bench = equalising();
    bench.equal(3, life(2, 1), 1, LAST);
    assert_eq!(bench.waiting(), [2, 3]);
}

#[test]
fn equal_at_another_target_does_not_count() {
    let mut bench = equalising();
    for last in [None, Some(Position::new(1, 3)), Some(Position::new(1, 5))] {
        bench.equal(2, life(2, 1), 1, last);
        assert_eq!(bench.waiting(), [2, 3], "at {last:?}");
    }
}

#[test]
fn equal_for_another_attempt_does_not_count() {
    let mut bench = equalising();
    for attempt in [0, 2] {
        bench.equal(2, life(2, 1), attempt, LAST);
        assert_eq!(bench.waiting(), [2, 3], "of attempt {attempt}, and 1 is granted");
    }
}

#[test]
fn equal_comes_before_sealed_and_does_not_count() {
    let mut bench = sealing();
    bench.equal(2, life(2, 1), 1, None);
    bench.equal(2, life(2, 1), 1, LAST);
    bench.sealed(2, life(2, 1), 1);
    bench.sealed(3, life(3, 1), 1);
    assert_eq!(bench.waiting(), [2, 3]);
}

#[test]
fn answers_of_an_earlier_life_are_forgotten_when_a_later_one_is_heard() {
    let mut bench = sealing();
    bench.sealed(2, life(2, 1), 1);
    assert_eq!(bench.waiting(), [1, 3]);
    bench.restart(2);
    bench.beat(2);
    assert_eq!(bench.waiting(), [1, 2, 3], "2 has started again, and may have lost what wasn't durable");
    bench.sealed(2, life(2, 1), 1);
    assert_eq!(bench.waiting(), [1, 2, 3], "the earlier life's answer comes late");
}

#[test]
fn confirmation_of_an_earlier_life_does_not_count_for_the_later_one() {
    let mut bench = equalising();
    bench.sealed(2, life(2, 2), 1);
    bench.equal(2, life(2, 1), 1, LAST);
    bench.equal(3, life(3, 1), 1, LAST);
    assert_eq!((bench.epoch(), bench.waiting()), (1, vec![2]));
    bench.equal(2, life(2, 2), 1, LAST);
    assert_eq!(bench.chain(), ["3.1", "2.2"]);
}

#[test]
fn who_confirmed_and_started_again_has_to_confirm_anew() {
    let mut bench = equalising();
    bench.equal(2, life(2, 1), 1, LAST);
    bench.restart(2);
    bench.beat(2);
    bench.equal(3, life(3, 1), 1, LAST);
    assert_eq!(bench.epoch(), 1, "2 confirmed in a life that is over, and 3 would be alone");
    bench.sealed(2, life(2, 2), 1);
    bench.equal(2, life(2, 2), 1, LAST);
    assert_eq!(bench.chain(), ["3.1", "2.2"]);
}

#[test]
fn seal_that_is_answered_again_keeps_the_confirmation() {
    let mut bench = equalising();
    bench.equal(2, life(2, 1), 1, LAST);
    bench.sealed(2, life(2, 1), 1);
    assert_eq!(bench.waiting(), [3]);
}

#[test]
fn beat_of_an_earlier_life_changes_nothing() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.grants = false;
    bench.restart(2);
    bench.beat(2);
    let late = Message::Beat {
        life: life(2, 1),
        epoch: Epoch(1),
        promise: Promise::default(),
        last: None,
        commit: None,
        link: None,
    };
    bench.say(2, late);
    let disk = &bench.coordinator.watch.disks[&DiskId(2)];
    assert_eq!((disk.life, disk.beat.as_ref().unwrap().last), (life(2, 2), LAST));
}

#[test]
fn who_is_neither_member_nor_learner_of_the_attempt_does_not_stand() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.coordinator.timing.join_lag_max = 0;
    bench.add(4);
    bench.member(4).commit = None;
    bench.members.values_mut().for_each(|member| member.answers = false);
    bench.ticks(1);
    bench.restart(1);
    bench.beat(1);
    for (disk, life) in [(1, life(1, 2)), (2, life(2, 1)), (3, life(3, 1)), (4, life(4, 1))] {
        bench.sealed(disk, life, 1);
    }
    for (disk, life) in [(4, life(4, 1)), (1, life(1, 2)), (2, life(2, 1)), (3, life(3, 1))] {
        bench.equal(disk, life, 1, LAST);
    }
    assert_eq!(bench.chain(), ["2.1", "3.1", "1.2"]);
}

#[test]
fn disks_of_nobody_are_not_remembered() {
    let mut bench = Bench::new(&[1, 2]);
    let beat = Message::Beat {
        life: life(77, 1),
        epoch: Epoch(1),
        promise: Promise::default(),
        last: None,
        commit: None,
        link: None,
    };
    bench.say(77, beat);
    assert!(!bench.coordinator.watch.disks.contains_key(&DiskId(77)));
}

#[test]
fn second_grant_of_one_question_makes_the_first_one_void() {
    let mut bench = sealing();
    bench.sealed(2, life(2, 1), 1);
    let by = bench.record.attempt.by;
    bench.record.apply(Command::Attempt { epoch: Epoch(1), by });
    bench.give(CoordinatorEvent::Recorded(bench.record.clone()));
    assert_eq!((bench.coordinator.phase().phase, bench.waiting()), (Phase::Sealing, vec![1, 2, 3]));
    assert_eq!(bench.record.attempt.number, 2, "it needs no third");
    for disk in [2, 3] {
        bench.sealed(disk, life(disk, 1), 2);
    }
    bench.equal(2, life(2, 1), 2, LAST);
    bench.equal(3, life(3, 1), 2, LAST);
    assert_eq!(bench.chain(), ["2.1", "3.1"]);
}

#[test]
fn record_that_is_older_than_what_is_known_is_ignored() {
    let mut bench = Bench::new(&[1, 2, 3]);
    let founded = bench.record.clone();
    bench.member(3).beats = false;
    bench.ticks_to(2, 50);
    bench.give(CoordinatorEvent::Recorded(founded));
    assert_eq!(bench.coordinator.epoch(), Epoch(2));
    let attempt = |by| Command::Attempt { epoch: Epoch(2), by: (DiskId(8), by) };
    let mut later = bench.record.clone();
    later.apply(attempt(1));
    let earlier = later.clone();
    later.apply(attempt(2));
    bench.give(CoordinatorEvent::Recorded(later));
    bench.give(CoordinatorEvent::Recorded(earlier));
    assert_eq!(bench.coordinator.record.attempt.number, 2);
}

#[test]
fn member_that_shows_its_loss_only_when_it_seals_does_not_stand() {
    let mut bench = Bench::new(&[1, 2, 3, 4]);
    bench.member(4).beats = false;
    bench.ticks_to(2, 50); // Epoch 2 starts at `LAST`.
    bench.members.values_mut().for_each(|member| member.answers = false);
    bench.member(1).beats = false;
    while bench.coordinator.phase().phase != Phase::Sealing {
        bench.ticks(1);
    }
    let promise = Promise { epoch: Epoch(2), attempt: 1 };
    bench.say(2, Message::Sealed { promise, life: life(2, 1), last: Some(Position::new(1, 3)) });
    bench.say(3, Message::Sealed { promise, life: life(3, 1), last: LAST });
    assert!(matches!(bench.done[..], [CoordinatorEffect::Regressed { disk: DiskId(2), .. }]), "{:?}", bench.done);
    assert_eq!(bench.waiting(), [1], "who has lost something is not waited for");
    for _ in 0..20 {
        bench.ticks(1); // 3 is alone.
        bench.say(2, Message::Equal { promise, life: life(2, 1), last: LAST });
        bench.say(3, Message::Equal { promise, life: life(3, 1), last: LAST });
    }
    assert_eq!(bench.chain(), ["3.1"]);
}

#[test]
fn old_copy_with_entries_that_were_cut_off_before_the_epoch_does_not_count() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.member(3).beats = false;
    bench.ticks_to(2, 50); // Epoch 2 starts at `LAST`.
    bench.member(2).beats = false;
    bench.restart(1);
    bench.member(1).last = Some(Position::new(1, 7));
    bench.ticks(200);
    assert_eq!(bench.epoch(), 2, "what 2 and the true 1 acknowledged in epoch 2 is lost");
    assert!(matches!(bench.done[..], [CoordinatorEffect::Regressed { disk: DiskId(1), .. }]), "{:?}", bench.done);
    bench.member(2).beats = true;
    bench.ticks_to(3, 200);
    assert_eq!(bench.chain(), ["2.1"]);
}

#[test]
fn source_that_falls_silent_is_replaced_by_another_that_holds_the_target() {
    let mut bench = Bench::new(&[1, 2, 3, 4]);
    bench.members.values_mut().for_each(|member| member.answers = false);
    bench.member(4).beats = false;
    while bench.coordinator.phase().phase != Phase::Sealing {
        bench.ticks(1);
    }
    bench.sealed(1, life(1, 1), 1);
    bench.sealed(2, life(2, 1), 1);
    bench.say(3, Message::Sealed { promise: promise(1), life: life(3, 1), last: None });
    bench.member(1).beats = false;
    let mut sources = Vec::new();
    for _ in 0..6 {
        bench.beat(2);
        bench.beat(3);
        bench.coordinator.step(CoordinatorEvent::Tick, &mut bench.effects);
        for effect in bench.effects.drain(..) {
            if let CoordinatorEffect::Send { to: DiskId(3), message: Message::Equalise { source, .. } } = effect {
                sources.push(source.0);
            }
        }
    }
    assert_eq!((sources.first(), sources.last()), (Some(&1), Some(&2)), "{sources:?}");
}

#[test]
fn who_does_not_lead_forgives_like_who_leads() {
    let mut bench = Bench::new(&[1, 2, 3]);
    bench.give(CoordinatorEvent::Leading(false));
    let configure = |bench: &mut Bench, chain: Vec<Life>| {
        let configuration = bench.record.configuration.as_ref().unwrap();
        let epoch = configuration.epoch;
        bench.record.apply(Command::Attempt { epoch, by: (DiskId(8), epoch.0) });
        bench.record.apply(Command::Configure { epoch, attempt: 1, chain, start: LAST });
        bench.give(CoordinatorEvent::Recorded(bench.record.clone()));
    };
    for _ in 0..3 {
        configure(&mut bench, vec![life(1, 1), life(2, 1)]);
        configure(&mut bench, vec![life(1, 1), life(2, 1), life(3, 1)]);
        bench.ticks(1_200);
    }
    configure(&mut bench, vec![life(1, 1), life(2, 1)]);
    let (now, timing) = (bench.coordinator.now, bench.coordinator.timing);
    assert!(bench.coordinator.rejoins.may_join(life(3, 1), now + 20, &timing), "it pays for what was long ago");
    assert!(!bench.coordinator.rejoins.may_join(life(3, 1), now + 19, &timing));
}
