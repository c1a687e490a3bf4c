//! What comes late, twice, or from somebody who doesn't obey the protocol, and changes nothing.

use super::*;
use crate::Role;

fn founders() -> Configuration {
    configuration(1, &[life(1), life(2), life(3)], None)
}

fn seal(attempt: u64) -> Message {
    Message::Seal { configuration: founders(), attempt }
}

fn promise(epoch: u64, attempt: u64) -> Promise {
    Promise { epoch: Epoch(epoch), attempt }
}

fn equalise(promise: Promise, target: Option<Position>, source: u64) -> Message {
    Message::Equalise { promise, target, source: DiskId(source) }
}

fn fetched(epoch: u64, number: u64, previous: Option<Position>, positions: &[(u64, u64)]) -> Message {
    let commit = at(epoch, 99);
    Message::Fetched { epoch: Epoch(epoch), number, previous, entries: entries(positions), commit }
}

/// The number of a replica's first question.
const FIRST: u64 = (1 << 32) + 1;

/// Disk 2 in epoch 1 with two durable entries of it, sealed for `attempt`.
fn sealed_for(attempt: u64) -> Bench {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    bench.receive(1, append(1, None, &[(1, 0), (1, 1)], None));
    bench.durable(at(1, 1));
    bench.receive(9, seal(attempt));
    bench.give(Event::PromiseStored(promise(1, attempt)));
    bench
}

/// The primary, with entries 0 and 1 sent to 2 and its own fsync done.
fn primary() -> Bench {
    let mut bench = Bench::member(1, PersistOrder::Parallel, Timing::default());
    bench.propose(1, &["0@1", "1@1"]);
    bench.durable(at(1, 1));
    bench
}

/// Disk 4, a learner of epoch 3, whose log ends with entries that nobody else has; sealed, and told to end at 7@2.
fn astray() -> Bench {
    let log = entries(&[(1, 0), (2, 1), (3, 2), (3, 3)]);
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), log);
    let now = configuration(3, &[life(1), life(2), life(3)], at(2, 7));
    bench.configure(now.clone());
    bench.receive(9, Message::Seal { configuration: now, attempt: 1 });
    bench.give(Event::PromiseStored(promise(3, 1)));
    bench
}

#[test]
fn equalise_of_an_attempt_that_was_not_promised_is_ignored() {
    let mut bench = sealed_for(2);
    for attempt in [1, 3] {
        assert_eq!(bench.receive(9, equalise(promise(1, attempt), at(1, 0), 3)), vec![], "attempt {attempt}");
    }
    assert_eq!(bench.log.last(), at(1, 1));
}

#[test]
fn seal_that_comes_again_does_not_open_the_attempt_to_another_target() {
    let mut bench = sealed_for(1);
    let confirmed = send(9, Message::Equal { promise: promise(1, 1), life: life(2), last: at(1, 1) });
    assert_eq!(bench.receive(9, equalise(promise(1, 1), at(1, 1), 3)), vec![confirmed]);
    assert_eq!(bench.receive(9, seal(1)), vec![], "it has confirmed");
    assert_eq!(bench.receive(9, equalise(promise(1, 1), at(1, 0), 3)), vec![], "an attempt has one target");
    assert_eq!(bench.log.last(), at(1, 1));
}

#[test]
fn end_above_the_target_in_another_log_is_neither_confirmed_nor_cut_there() {
    let mut bench = astray();
    let question = |last, number| send(1, Message::Fetch { epoch: Epoch(3), attempt: Some(1), last, number });
    let number = FIRST + 1;
    assert_eq!(bench.receive(9, equalise(promise(3, 1), at(2, 7), 1)), vec![question(at(3, 3), number)]);
    let named = bench.receive(1, fetched(3, number, at(2, 3), &[]));
    assert_eq!(named, vec![question(at(2, 1), number + 1)], "2@3 and 3@3 are nobody else's");
    let effects = bench.receive(1, fetched(3, number + 1, at(2, 1), &[(2, 2), (2, 3)]));
    assert_eq!(effects, vec![Effect::TruncateLog(at(2, 1))]);
}

#[test]
fn another_entry_at_the_targets_index_is_not_appended() {
    let log = entries(&[(1, 0), (2, 1)]);
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), log);
    let now = configuration(3, &[life(1), life(2), life(3)], at(2, 1));
    bench.configure(now.clone());
    bench.receive(9, Message::Seal { configuration: now, attempt: 1 });
    bench.give(Event::PromiseStored(promise(3, 1)));
    bench.receive(9, equalise(promise(3, 1), at(3, 3), 1));
    assert_eq!(bench.receive(1, fetched(3, FIRST + 1, at(2, 1), &[(2, 2), (2, 3)])), vec![]);
    assert_eq!(bench.log.last(), at(2, 1));
}

#[test]
fn source_that_is_the_asker_itself_is_not_asked() {
    let mut bench = sealed_for(1);
    assert_eq!(bench.receive(9, equalise(promise(1, 1), at(1, 4), 2)), vec![]);
}

#[test]
fn promise_that_is_reported_late_does_not_hide_a_greater_one() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    bench.receive(9, seal(1));
    bench.receive(9, seal(2));
    bench.give(Event::PromiseStored(promise(1, 2)));
    assert_eq!(bench.give(Event::PromiseStored(promise(1, 1))), vec![]);
    let answer = Message::Sealed { promise: promise(1, 2), life: life(2), last: None };
    assert_eq!(bench.receive(9, seal(2)), vec![send(9, answer)]);
}

#[test]
fn flush_that_is_reported_late_takes_nothing_back() {
    let mut bench = Bench::member(3, PersistOrder::Parallel, Timing::default());
    bench.receive(2, append(1, None, &[(1, 0), (1, 1)], None));
    bench.durable(at(1, 1));
    bench.durable(at(1, 0));
    assert_eq!(bench.replica.standing().durable, at(1, 1));
}

#[test]
fn chain_that_is_none_is_not_taken() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), Vec::new());
    let again = Life { incarnation: Incarnation(2), ..life(1) };
    for chain in [vec![], vec![life(1), life(2), again]] {
        let none = configuration(1, &chain, None);
        assert_eq!(bench.configure(none.clone()), vec![], "{chain:?}");
        assert_eq!(bench.receive(9, Message::Seal { configuration: none, attempt: 1 }), vec![], "{chain:?}");
    }
    assert_eq!(bench.replica.standing().role, Role::Idle);
    assert_eq!(bench.give(Event::Tick), vec![]);
}

#[test]
fn seal_that_shows_a_damaged_disk_is_not_promised() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), entries(&[(1, 0)]));
    let now = configuration(4, &[life(1), life(2)], at(3, 1));
    let effects = bench.receive(9, Message::Seal { configuration: now, attempt: 1 });
    assert!(matches!(effects[..], [Effect::Damaged(_)]), "{effects:?}");
}

#[test]
fn acknowledgement_of_another_than_the_successor_commits_nothing() {
    let mut bench = primary();
    assert_eq!(bench.receive(3, acknowledged(1, at(1, 1), at(1, 1))), vec![]);
    assert_eq!(bench.replica.standing().commit, None);
}

#[test]
fn acknowledgement_of_more_than_was_given_commits_nothing() {
    let mut bench = primary();
    let barrier =
        Message::Acknowledged { epoch: Epoch(1), received: at(1, 0), durable: at(1, 0), barrier: 1, gap: false };
    for claim in [acknowledged(1, at(1, 0), at(1, 1)), acknowledged(1, at(1, 2), at(1, 1)), barrier] {
        assert_eq!(bench.receive(2, claim.clone()), vec![], "{claim:?}");
    }
    assert_eq!(bench.replica.standing().commit, None);
}

#[test]
fn acknowledgement_that_comes_late_takes_nothing_back() {
    let mut bench = primary();
    bench.receive(2, acknowledged(1, at(1, 1), at(1, 1)));
    bench.give(Event::ReadAsked { number: 5 });
    let passed =
        Message::Acknowledged { epoch: Epoch(1), received: at(1, 1), durable: at(1, 1), barrier: 1, gap: false };
    bench.receive(2, passed);
    bench.receive(2, acknowledged(1, at(1, 0), at(1, 0)));
    let link = bench.replica.standing().link.unwrap();
    assert_eq!((link.sent, link.received, link.durable), (LogIndex(1), LogIndex(1), LogIndex(1)));
    bench.give(Event::ReadAsked { number: 6 });
    let passed =
        Message::Acknowledged { epoch: Epoch(1), received: at(1, 1), durable: at(1, 1), barrier: 2, gap: false };
    let effects = bench.receive(2, passed);
    assert_eq!(effects, vec![Effect::ReadConfirmed { number: 6, index: LogIndex(1) }]);
}

#[test]
fn successor_that_had_got_more_before_a_break_is_not_sent_it_again() {
    let mut bench = primary();
    bench.receive(2, acknowledged(1, None, None));
    bench.give(Event::Connected(DiskId(2))); // Sent again, from the beginning.
    bench.receive(2, acknowledged(1, at(1, 1), None));
    let gap = Message::Acknowledged { epoch: Epoch(1), received: None, durable: None, barrier: 0, gap: true };
    assert_eq!(bench.receive(2, gap), vec![], "a gap that was told before the rest came");
    let effects = bench.propose(2, &["2@1"]);
    assert_eq!(effects[1], send(2, append(1, at(1, 1), &[(1, 2)], None)));
}

#[test]
fn barrier_that_comes_late_takes_nothing_back() {
    let mut bench = Bench::member(3, PersistOrder::Parallel, Timing::default());
    let barrier =
        |barrier| Message::Append { epoch: Epoch(1), previous: None, entries: Vec::new(), commit: None, barrier };
    let passed = |barrier| {
        send(2, Message::Acknowledged { epoch: Epoch(1), received: None, durable: None, barrier, gap: false })
    };
    assert_eq!(bench.receive(2, barrier(2)), vec![passed(2)]);
    assert_eq!(bench.receive(2, barrier(1)), vec![]);
    assert_eq!(bench.give(Event::Tick), vec![passed(2)]);
}

#[test]
fn middle_tells_of_the_last_barrier_that_was_passed_behind_it() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, Timing::default());
    let asked = Message::Append { epoch: Epoch(1), previous: None, entries: Vec::new(), commit: None, barrier: 2 };
    bench.receive(1, asked);
    let passed =
        |barrier| Message::Acknowledged { epoch: Epoch(1), received: None, durable: None, barrier, gap: false };
    assert_eq!(bench.receive(3, passed(2)), vec![send(1, passed(2))]);
    assert_eq!(bench.receive(3, passed(1)), vec![], "of a connection that was cut");
    assert!(bench.give(Event::Tick).contains(&send(1, passed(2))));
}

#[test]
fn entries_of_falling_epochs_or_with_a_hole_are_dropped() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, Timing::default(), entries(&[(1, 0)]));
    bench.configure(configuration(3, &[life(1), life(2)], at(1, 0)));
    for positions in [[(3, 1), (2, 2)], [(3, 1), (3, 3)], [(3, 2), (3, 3)], [(4, 1), (4, 2)]] {
        assert_eq!(bench.receive(1, append(3, at(1, 0), &positions, None)), vec![], "{positions:?}");
    }
    let mut learner = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), Vec::new());
    learner.configure(configuration(3, &[life(1), life(2)], at(1, 0)));
    for positions in [[(2, 0), (1, 1)], [(1, 0), (1, 2)], [(1, 1), (1, 2)], [(4, 0), (4, 1)]] {
        assert_eq!(learner.receive(2, fetched(3, FIRST, None, &positions)), vec![], "{positions:?}");
    }
}

#[test]
fn answer_of_another_epoch_source_or_question_is_not_taken() {
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), Vec::new());
    bench.configure(configuration(3, &[life(1), life(2)], at(1, 0)));
    bench.receive(1, fetched(3, FIRST, None, &[(1, 0)]));
    bench.receive(2, fetched(3, FIRST + 1, None, &[(1, 0)]));
    bench.receive(2, fetched(2, FIRST, None, &[(1, 0)]));
    assert_eq!(bench.log.last(), None);
    bench.receive(2, fetched(3, FIRST, None, &[(1, 0)]));
    assert_eq!(bench.log.last(), at(1, 0));
}

#[test]
fn source_that_names_a_later_place_is_not_followed() {
    let log = entries(&[(1, 0), (1, 1), (1, 2), (1, 3)]);
    let start = configuration(3, &[life(1), life(2)], at(2, 7));
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), log);
    bench.configure(start);
    // The source has others from 2 on, and then names what is above the question.
    assert_eq!(bench.receive(2, fetched(3, FIRST, at(2, 3), &[])), vec![], "a greater epoch");
    bench.give(Event::Tick);
    assert_eq!(bench.receive(2, fetched(3, FIRST + 1, at(1, 9), &[])), vec![], "a greater index");
    assert_eq!(bench.log.last(), at(1, 3));
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), entries(&[(2, 0), (2, 1)]));
    bench.configure(configuration(3, &[life(1), life(2)], at(2, 7)));
    assert_eq!(bench.receive(2, fetched(3, FIRST, at(1, 9), &[])), vec![], "a greater index of a lesser epoch");
}

#[test]
fn primary_refuses_more_bytes_than_may_wait_for_any_disk() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let timing = Timing { message_bytes_max: 1, ..Timing::default() };
        let mut bench = Bench::member(1, order, timing);
        let refused = |effects: Vec<Effect>| matches!(effects[0], Effect::Refused { .. });
        let taken = (1..1_000).take_while(|number| !refused(bench.propose(*number, &["0123456789"]))).count();
        assert_eq!(taken, 7, "64 bytes may wait, {order:?}");
        bench.receive(2, acknowledged(1, at(1, 0), at(1, 0)));
        assert!(refused(bench.propose(2_000, &["x"])), "this disk is slow, {order:?}");
        bench.durable(at(1, 0));
        assert!(!refused(bench.propose(2_001, &["x"])), "one of them is committed, {order:?}");
    }
}

#[test]
fn primary_refuses_reads_when_too_many_wait() {
    let mut bench = primary();
    bench.receive(2, acknowledged(1, at(1, 1), at(1, 1)));
    let room = 1 << 16;
    for number in 0..room {
        let effects = bench.give(Event::ReadAsked { number });
        assert!(!effects.contains(&Effect::ReadRefused { number }), "{number} others wait");
    }
    assert_eq!(bench.give(Event::ReadAsked { number: room }), vec![Effect::ReadRefused { number: room }]);
}
