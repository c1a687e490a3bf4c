//! Promises, attempts, and what begins the next epoch.

use super::*;
use crate::Role;

fn sealed(attempt: u64, last: Option<Position>) -> Effect {
    send(9, Message::Sealed { promise: promise(1, attempt), life: life(2), last })
}

fn equal(attempt: u64, last: Option<Position>) -> Effect {
    send(9, Message::Equal { promise: promise(1, attempt), life: life(2), last })
}

fn equalise(attempt: u64, target: Option<Position>) -> Message {
    Message::Equalise { promise: promise(1, attempt), target, source: DiskId(3) }
}

/// Disk 2 in epoch 1 with two durable entries, the first one committed, sealed for attempt 1.
fn sealed_bench() -> Bench {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    bench.receive(1, append(1, None, &[(1, 0), (1, 1)], None));
    bench.durable(at(1, 1));
    bench.receive(1, append(1, at(1, 1), &[], at(1, 0)));
    bench.receive(9, seal(1));
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 1))), vec![sealed(1, at(1, 1))]);
    bench
}

#[test]
fn a_seal_is_answered_once_the_promise_and_the_log_are_durable() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    bench.receive(1, append(1, None, &[(1, 0)], None));
    assert_eq!(bench.receive(9, seal(1)), vec![Effect::StorePromise(promise(1, 1))]);
    assert_eq!(bench.replica.standing().role, Role::Sealed);
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 1))), vec![], "its log is not durable");
    assert_eq!(bench.durable(at(1, 0)), vec![sealed(1, at(1, 0))]);
    assert_eq!(bench.receive(9, seal(1)), vec![sealed(1, at(1, 0))], "asked again, it answers again");
}

#[test]
fn a_sealed_member_appends_and_acknowledges_nothing() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    bench.receive(1, append(1, None, &[(1, 0)], None));
    bench.receive(9, seal(1));
    assert_eq!(bench.receive(1, append(1, at(1, 0), &[(1, 1)], None)), vec![]);
    assert_eq!(bench.receive(3, acknowledged(1, at(1, 0), at(1, 0))), vec![]);
    assert_eq!(bench.durable(at(1, 0)), vec![]);
    assert_eq!(bench.give(Event::Connected(DiskId(1))), vec![]);
    assert_eq!(bench.give(Event::Tick), vec![]);
}

#[test]
fn a_sealed_primary_drops_what_it_held_and_refuses_the_reads() {
    let mut bench = Bench::member(1, PersistOrder::BackupsFirst, Timing::default());
    bench.propose(1, &["0@1"]);
    bench.receive(2, acknowledged(1, at(1, 0), at(1, 0)));
    bench.durable(at(1, 0));
    bench.propose(2, &["1@1"]);
    bench.give(Event::ReadAsked { number: 5 });
    bench.give(Event::ReadAsked { number: 6 });
    let refused = |number| Effect::ReadRefused { number };
    assert_eq!(bench.receive(9, seal(1)), vec![Effect::StorePromise(promise(1, 1)), refused(5), refused(6)]);
    let answer = Message::Sealed { promise: promise(1, 1), life: life(1), last: at(1, 0) };
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 1))), vec![send(9, answer)]);
    assert_eq!(bench.replica.standing().held, 0);
}

#[test]
fn a_lesser_attempt_is_not_obeyed_and_a_greater_one_is() {
    let mut bench = sealed_bench();
    assert_eq!(bench.receive(9, seal(3)), vec![Effect::StorePromise(promise(1, 3))]);
    assert_eq!(bench.receive(8, seal(2)), vec![]);
    assert_eq!(bench.receive(9, equalise(1, at(1, 0))), vec![], "of the attempt before");
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 1))), vec![], "an earlier promise");
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 3))), vec![sealed(3, at(1, 1))]);
}

#[test]
fn a_seal_of_an_earlier_epoch_is_answered_with_the_configuration() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), Vec::new());
    let newest = configuration(2, &[life(2)], None);
    bench.configure(newest.clone());
    assert_eq!(bench.receive(9, seal(4)), vec![send(9, Message::Configured { configuration: newest })]);
    assert_eq!(bench.replica.standing().role, Role::Primary);
}

#[test]
fn a_seal_brings_its_configuration_and_is_entered_sealed() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), Vec::new());
    let effects = bench.receive(9, seal(1));
    assert_eq!(effects, vec![Effect::Entered(founders()), Effect::StorePromise(promise(1, 1))]);
    assert_eq!(bench.replica.standing().role, Role::Sealed);
}

#[test]
fn a_promise_of_an_earlier_life_is_kept_and_answered_anew() {
    let again = Life { incarnation: Incarnation(2), ..life(2) };
    let log = MemoryLog::from(entries(&[(1, 0)]));
    let replica = Replica::new(again, promise(1, 2), PersistOrder::Parallel, Timing::default(), log.last());
    let mut bench = Bench { replica, log };
    bench.configure(founders());
    assert_eq!(bench.replica.standing().role, Role::Learner);
    assert_eq!(bench.receive(9, seal(1)), vec![]);
    let answer = Message::Sealed { promise: promise(1, 2), life: again, last: at(1, 0) };
    assert_eq!(bench.receive(9, seal(2)), vec![send(9, answer)]);
}

#[test]
fn equalise_at_the_target_is_confirmed_each_time() {
    let mut bench = sealed_bench();
    assert_eq!(bench.receive(9, equalise(1, at(1, 1))), vec![equal(1, at(1, 1))]);
    assert_eq!(bench.receive(9, equalise(1, at(1, 1))), vec![equal(1, at(1, 1))]);
    assert_eq!(bench.receive(9, equalise(1, at(1, 0))), vec![], "an attempt has one target");
}

#[test]
fn equalise_below_the_end_truncates_and_confirms_when_that_is_durable() {
    let mut bench = sealed_bench();
    assert_eq!(bench.receive(9, equalise(1, at(1, 0))), vec![Effect::TruncateLog(at(1, 0))]);
    assert_eq!(bench.receive(9, equalise(1, at(1, 0))), vec![], "confirmed before it is durable");
    assert_eq!(bench.durable(at(1, 0)), vec![equal(1, at(1, 0))]);
}

#[test]
#[should_panic(expected = "below the commit")]
fn equalise_below_the_commit_stops_the_node() {
    sealed_bench().receive(9, equalise(1, None));
}

#[test]
fn equalise_above_the_end_fetches_from_the_source() {
    let mut bench = sealed_bench();
    let question = |last, number| Message::Fetch { epoch: Epoch(1), attempt: Some(1), last, number };
    let number = (1 << 32) + 1;
    assert_eq!(bench.receive(9, equalise(1, at(1, 4))), vec![send(3, question(at(1, 1), number))]);
    assert_eq!(bench.give(Event::Tick), vec![send(3, question(at(1, 1), number))], "no answer");
    let answer = |previous, positions: &[(u64, u64)], number| Message::Fetched {
        epoch: Epoch(1),
        number,
        previous,
        entries: entries(positions),
        commit: at(1, 4),
    };
    let effects = bench.receive(3, answer(at(1, 1), &[(1, 2)], number));
    let expected = vec![Effect::AppendLog(entries(&[(1, 2)])), send(3, question(at(1, 2), number + 1))];
    assert_eq!(effects, expected);
    assert_eq!(bench.receive(3, answer(at(1, 1), &[(1, 2)], number)), vec![], "the first answer again");
    let effects = bench.receive(3, answer(at(1, 2), &[(1, 3), (1, 4), (1, 5)], number + 1));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(1, 3), (1, 4)]))], "no further than the target");
    assert_eq!(bench.durable(at(1, 2)), vec![]);
    assert_eq!(bench.durable(at(1, 4)), vec![equal(1, at(1, 4))]);
    assert_eq!(bench.replica.standing().commit, at(1, 0), "a sealed member commits nothing");
}

#[test]
fn a_source_without_the_target_changes_nothing() {
    let mut bench = sealed_bench();
    bench.receive(9, equalise(1, at(1, 2)));
    let answer = Message::Fetched {
        epoch: Epoch(1),
        number: (1 << 32) + 1,
        previous: at(1, 1),
        entries: Vec::new(),
        commit: at(1, 0),
    };
    assert_eq!(bench.receive(3, answer), vec![]);
    assert_eq!(bench.log.last(), at(1, 1));
}

#[test]
fn a_late_equalise_doesnt_touch_a_later_epoch() {
    let mut bench = sealed_bench();
    bench.receive(9, equalise(1, at(1, 1)));
    bench.configure(configuration(2, &[life(2)], at(1, 1)));
    bench.propose(1, &["2@2"]);
    let effects = bench.receive(9, equalise(1, at(1, 1)));
    assert!(matches!(effects[..], [Effect::Send { message: Message::Configured { .. }, .. }]));
    assert_eq!(bench.log.last(), at(2, 2));
}

#[test]
fn the_next_epoch_commits_its_start_and_goes_on_from_it() {
    let mut bench = sealed_bench();
    bench.receive(9, equalise(1, at(1, 1)));
    let next = configuration(2, &[life(2), life(3)], at(1, 1));
    let greeting = append(2, at(1, 1), &[], at(1, 1));
    let expected = vec![Effect::Committed(Position::new(1, 1)), Effect::Entered(next.clone()), send(3, greeting)];
    assert_eq!(bench.configure(next), expected);
    let effects = bench.propose(1, &["2@2"]);
    assert_eq!(effects[1], send(3, append(2, at(1, 1), &[(2, 2)], at(1, 1))));
}

#[test]
fn a_new_configuration_refuses_the_reads_of_the_one_before() {
    let mut bench = Bench::member(1, PersistOrder::Parallel, Timing::default());
    bench.propose(1, &["0@1"]);
    bench.receive(2, acknowledged(1, at(1, 0), at(1, 0)));
    bench.durable(at(1, 0));
    bench.give(Event::ReadAsked { number: 5 });
    let next = configuration(2, &[life(2), life(3)], at(1, 0));
    let effects = bench.configure(next.clone());
    assert_eq!(effects[..2], [Effect::ReadRefused { number: 5 }, Effect::Left(next)]);
}

#[test]
fn a_life_whose_log_doesnt_end_at_the_start_is_damaged() {
    for (log, start) in [(entries(&[(1, 0)]), at(1, 1)), (entries(&[(1, 0), (1, 1)]), at(1, 0))] {
        let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), log);
        let effects = bench.configure(configuration(4, &[life(2)], start));
        assert!(matches!(&effects[..], [Effect::Damaged(account)] if account.contains("epoch 4")), "{effects:?}");
        assert_eq!(bench.give(Event::ReadAsked { number: 1 }), vec![], "a damaged disk does nothing more");
    }
    let mut founder = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), entries(&[(1, 0)]));
    assert!(matches!(founder.configure(founders())[..], [Effect::Damaged(_)]), "founded on an old log");
}

#[test]
fn a_later_life_knows_the_start_committed_unless_the_disk_lost_it() {
    let again = Life { incarnation: Incarnation(2), ..life(2) };
    let bench = |log| Bench::new(again, PersistOrder::Parallel, Timing::default(), log);
    let named = configuration(4, &[life(1), life(2)], at(3, 1));
    let mut whole = bench(entries(&[(1, 0), (3, 1), (4, 2)]));
    let effects = whole.configure(named.clone());
    assert_eq!(effects[..2], [Effect::Committed(Position::new(3, 1)), Effect::Left(named.clone())]);
    // Below the start; another entry there; above it, with what was cut off before the epoch began.
    let cut_off = entries(&[(1, 0), (3, 1), (3, 2)]);
    for lost in [entries(&[(1, 0)]), entries(&[(1, 0), (1, 1), (4, 2)]), cut_off] {
        assert!(matches!(bench(lost).configure(named.clone())[..], [Effect::Damaged(_)]));
    }
}

#[test]
fn an_earlier_life_than_the_one_named_is_an_old_copy() {
    let again = Life { incarnation: Incarnation(2), ..life(2) };
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), Vec::new());
    let effects = bench.configure(configuration(4, &[again], None));
    assert!(matches!(&effects[..], [Effect::Damaged(account)] if account.contains("old copy")), "{effects:?}");
}

#[test]
fn after_a_restart_a_late_attempt_of_an_earlier_epoch_doesnt_touch_what_a_later_one_appended() {
    // Promised (1, 1), entered epoch 2 at 0@1, acknowledged 1@2, and started again: the configuration is forgotten, the promise and the log are not.
    let restarted = Life { incarnation: Incarnation(2), ..life(2) };
    let mut bench = Bench {
        replica: Replica::new(restarted, promise(1, 1), PersistOrder::Parallel, Timing::default(), at(2, 1)),
        log: MemoryLog::from(entries(&[(1, 0), (2, 1)])),
    };
    assert_eq!(bench.receive(9, seal(1)), vec![], "the attempt that the disk had promised");
    bench.receive(9, equalise(1, at(1, 0)));
    assert_eq!(bench.receive(3, Message::Configured { configuration: founders() }), vec![]);
    assert_eq!(bench.log.last(), at(2, 1), "acknowledged, and cut off");
}
