//! Learners, sources, and where two logs meet.

use super::*;
use crate::Role;

const FIRST: u64 = (1 << 32) + 1;

fn question(epoch: u64, last: Option<Position>, number: u64) -> Message {
    Message::Fetch { epoch: Epoch(epoch), attempt: None, last, number }
}

fn answer(number: u64, previous: Option<Position>, positions: &[(u64, u64)], commit: Option<Position>) -> Message {
    Message::Fetched { epoch: Epoch(3), number, previous, entries: entries(positions), commit }
}

/// Disk 4, which epoch 3 of the disks 1 to 3 doesn't name.
fn learner(log: Vec<LogEntry>) -> Bench {
    learner_after(at(2, 3), log)
}

fn learner_after(start: Option<Position>, log: Vec<LogEntry>) -> Bench {
    let mut bench = Bench::new(life(4), PersistOrder::Parallel, Timing::default(), log);
    let now = configuration(3, &[life(1), life(2), life(3)], start);
    let last = bench.log.last();
    assert!(bench.configure(now.clone()).ends_with(&[Effect::Left(now), send(3, question(3, last, FIRST))]));
    assert_eq!(bench.replica.standing().role, Role::Learner);
    bench
}

#[test]
fn a_learner_takes_what_is_committed_from_the_tail() {
    let mut bench = learner(Vec::new());
    let effects = bench.receive(3, answer(FIRST, None, &[(1, 0), (1, 1)], at(3, 4)));
    let expected = vec![Effect::AppendLog(entries(&[(1, 0), (1, 1)])), send(3, question(3, at(1, 1), FIRST + 1))];
    assert_eq!(effects, expected);
    assert_eq!(bench.durable(at(1, 0)), vec![Effect::Committed(Position::new(1, 0))]);
    let effects = bench.receive(3, answer(FIRST + 1, at(1, 1), &[(2, 2), (2, 3), (3, 4)], at(3, 4)));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(2, 2), (2, 3), (3, 4)]))]);
    let next = send(3, question(3, at(3, 4), FIRST + 2));
    assert_eq!(bench.durable(at(3, 4)), vec![Effect::Committed(Position::new(3, 4)), next], "at the disk's pace");
    assert_eq!(bench.receive(3, answer(FIRST + 2, at(3, 4), &[], at(3, 4))), vec![], "there is no more until the tick");
    assert_eq!(bench.give(Event::Tick), vec![send(3, question(3, at(3, 4), FIRST + 3))]);
}

#[test]
fn a_learner_that_has_more_than_is_committed_commits_no_further() {
    let mut bench = learner(entries(&[(1, 0), (1, 1), (2, 2), (2, 3), (3, 4)]));
    assert_eq!(bench.replica.standing().commit, at(2, 3), "the start is in its log");
    assert_eq!(bench.receive(3, answer(FIRST, at(3, 4), &[], at(2, 3))), vec![]);
    assert_eq!(bench.replica.standing().commit, at(2, 3));
}

#[test]
fn a_learner_truncates_what_the_chain_dropped_and_goes_on() {
    let mut bench = learner(entries(&[(1, 0), (1, 1), (1, 2)]));
    assert_eq!(bench.receive(3, answer(FIRST, at(1, 1), &[], at(3, 4))), vec![Effect::TruncateLog(at(1, 1))]);
    assert_eq!(bench.give(Event::Tick), vec![], "asked before the truncation is durable");
    assert_eq!(bench.durable(at(1, 1)), vec![send(3, question(3, at(1, 1), FIRST + 1))]);
    let effects = bench.receive(3, answer(FIRST + 1, at(1, 1), &[(2, 2), (2, 3), (3, 4)], at(3, 4)));
    let appended = Effect::AppendLog(entries(&[(2, 2), (2, 3), (3, 4)]));
    assert_eq!(effects, vec![appended, Effect::Committed(Position::new(1, 1))], "what both have is committed");
}

#[test]
fn logs_of_many_epochs_meet_in_a_few_questions() {
    // The learner: 1 1 2 2 2; the chain: 1 1 1 3 3.
    let mut bench = learner_after(at(1, 2), entries(&[(1, 0), (1, 1), (2, 2), (2, 3), (2, 4)]));
    let mut source = Bench::new(
        life(3),
        PersistOrder::Parallel,
        Timing::default(),
        entries(&[(1, 0), (1, 1), (1, 2), (3, 3), (3, 4)]),
    );
    source.configure(configuration(3, &[life(3)], at(3, 4)));
    let mut message = question(3, at(2, 4), FIRST);
    for _ in 0..6 {
        let Some(Effect::Send { message: reply, .. }) = source.receive(4, message).pop() else { panic!("no answer") };
        let mut effects = bench.receive(3, reply);
        if let [Effect::TruncateLog(last)] = effects[..] {
            effects = bench.durable(last);
        }
        match effects.pop() {
            Some(Effect::Send { message: next, .. }) => message = next,
            _ => break,
        }
    }
    assert_eq!(bench.log.entries, source.log.entries);
}

#[test]
fn a_disk_of_the_chain_in_a_later_life_truncates_nothing() {
    // Its earlier life acknowledged entry 4; the primary, which holds it for its backups first, may commit it yet.
    let again = Life { incarnation: Incarnation(2), ..life(2) };
    let log = entries(&[(1, 0), (1, 1), (2, 2), (2, 3), (3, 4)]);
    let mut bench = Bench::new(again, PersistOrder::BackupsFirst, Timing::default(), log);
    bench.configure(configuration(3, &[life(1), life(2)], at(2, 3)));
    let effects = bench.receive(1, answer((2 << 32) + 1, at(2, 3), &[], at(2, 3)));
    assert_eq!((effects, bench.log.last()), (vec![], at(3, 4)));
    bench.give(Event::Tick);
    let effects = bench.receive(1, answer((2 << 32) + 2, at(3, 4), &[(3, 5)], at(3, 5)));
    assert_eq!(effects[0], Effect::AppendLog(entries(&[(3, 5)])), "appending is safe");
}

#[test]
fn a_learner_that_promised_the_epoch_in_an_earlier_life_truncates_nothing() {
    // It may have confirmed the target of the attempt, and be a member of the next epoch already.
    let again = Life { incarnation: Incarnation(2), ..life(4) };
    let log = MemoryLog::from(entries(&[(1, 0), (1, 1), (2, 2), (2, 3), (3, 4)]));
    let promise = Promise { epoch: Epoch(3), attempt: 1 };
    let replica = Replica::new(again, promise, PersistOrder::Parallel, Timing::default(), log.last());
    let mut bench = Bench { replica, log };
    bench.configure(configuration(3, &[life(1), life(2), life(3)], at(2, 3)));
    let effects = bench.receive(3, answer((2 << 32) + 1, at(2, 3), &[], at(2, 3)));
    assert_eq!((effects, bench.log.last()), (vec![], at(3, 4)));
}

#[test]
fn a_sealed_learner_goes_on_appending_until_it_is_told_its_target() {
    let mut bench = learner(Vec::new());
    let seal = Message::Seal { configuration: configuration(3, &[life(1), life(2), life(3)], at(2, 3)), attempt: 1 };
    bench.receive(9, seal);
    let promise = Promise { epoch: Epoch(3), attempt: 1 };
    bench.give(Event::PromiseStored(promise));
    assert_eq!(bench.receive(3, answer(FIRST, None, &[(1, 0)], at(1, 0))), vec![], "asked before it was sealed");
    assert_eq!(bench.give(Event::Tick), vec![send(3, question(3, None, FIRST + 1))]);
    let effects = bench.receive(3, answer(FIRST + 1, None, &[(1, 0)], at(1, 0)));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(1, 0)]))]);
    let effects = bench.receive(9, Message::Equalise { promise, target: at(3, 1), source: DiskId(1) });
    let asked = Message::Fetch { epoch: Epoch(3), attempt: Some(1), last: at(1, 0), number: FIRST + 2 };
    assert_eq!(effects, vec![send(1, asked)]);
    assert_eq!(bench.durable(at(1, 0)), vec![], "the tail is not asked any more");
}

#[test]
fn a_source_that_doesnt_answer_is_passed_over() {
    let mut bench = learner(Vec::new());
    let asked: Vec<DiskId> = (0..18)
        .map(|_| match bench.give(Event::Tick)[..] {
            [Effect::Send { to, .. }] => to,
            ref other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((asked[0], asked[6], asked[12], asked[17]), (DiskId(3), DiskId(2), DiskId(1), DiskId(3)));
}

#[test]
fn an_active_member_serves_what_is_committed() {
    let mut bench = Bench::member(3, PersistOrder::Parallel, Timing::default());
    bench.receive(2, append(1, None, &[(1, 0), (1, 1)], None));
    bench.durable(at(1, 1));
    bench.receive(2, append(1, at(1, 1), &[], at(1, 0)));
    let fetched = |number, previous, positions: &[(u64, u64)]| {
        let entries = entries(positions);
        send(4, Message::Fetched { epoch: Epoch(1), number, previous, entries, commit: at(1, 0) })
    };
    assert_eq!(bench.receive(4, question(1, None, 1)), vec![fetched(1, None, &[(1, 0)])]);
    assert_eq!(bench.receive(4, question(1, at(1, 1), 2)), vec![fetched(2, at(1, 1), &[])]);
    assert_eq!(bench.receive(4, question(1, at(1, 7), 3)), vec![fetched(3, at(1, 1), &[])], "names its own end");
    let attempt = Message::Fetch { epoch: Epoch(1), attempt: Some(1), last: None, number: 4 };
    assert_eq!(bench.receive(4, attempt), vec![], "it has promised no attempt");
}

#[test]
fn a_sealed_member_serves_its_attempt_to_its_end_and_a_learner_nobody() {
    let mut bench = Bench::member(3, PersistOrder::Parallel, Timing::default());
    bench.receive(2, append(1, None, &[(1, 0), (1, 1)], None));
    bench.receive(9, Message::Seal { configuration: configuration(1, &[life(1), life(2), life(3)], None), attempt: 2 });
    let ask = |attempt| Message::Fetch { epoch: Epoch(1), attempt, last: at(1, 0), number: 1 };
    for other in [None, Some(1), Some(3)] {
        assert_eq!(bench.receive(2, ask(other)), vec![]);
    }
    let entries = entries(&[(1, 1)]);
    let fetched = Message::Fetched { epoch: Epoch(1), number: 1, previous: at(1, 0), entries, commit: None };
    assert_eq!(bench.receive(2, ask(Some(2))), vec![send(2, fetched)]);
    assert_eq!(learner(Vec::new()).receive(2, question(3, None, 1)), vec![]);
}

fn purged(number: u64, through: Position) -> Message {
    Message::Purged { epoch: Epoch(3), number, through }
}

#[test]
fn a_source_that_has_purged_what_is_wanted_says_so() {
    let log = entries(&[(1, 0), (1, 1), (2, 2), (2, 3)]);
    let mut source = Bench::new(life(3), PersistOrder::Parallel, Timing::default(), log);
    source.configure(configuration(3, &[life(3)], at(2, 3)));
    source.log.purged = at(2, 2);
    let told = vec![send(4, purged(FIRST, Position::new(2, 2)))];
    assert_eq!(source.receive(4, question(3, None, FIRST)), told, "an empty log");
    assert_eq!(source.receive(4, question(3, at(1, 1), FIRST)), told, "one that ends too early");
    assert_eq!(source.receive(4, question(3, at(1, 9), FIRST)), told, "one of another history");
    let meet = Message::Fetched {
        epoch: Epoch(3),
        number: FIRST,
        previous: at(2, 2),
        entries: entries(&[(2, 3)]),
        commit: at(2, 3),
    };
    assert_eq!(source.receive(4, question(3, at(2, 2), FIRST)), vec![send(4, meet)], "the purged end is still known");
}

#[test]
fn a_learner_goes_on_from_an_image_where_the_source_has_purged_and_fetches_what_follows() {
    let mut bench = learner(entries(&[(1, 0), (1, 1), (1, 2)]));
    let image = Position::new(3, 9);
    let wanted = vec![Effect::GetImage { from: DiskId(3), at_least: Position::new(3, 6) }];
    assert_eq!(bench.receive(3, purged(FIRST, Position::new(3, 6))), wanted);
    assert_eq!(bench.give(Event::Tick), vec![], "one question at a time");
    assert_eq!(bench.give(Event::ImageHere(Some(image))), vec![Effect::EnterImage(image)]);
    let standing = bench.replica.standing();
    assert_eq!((standing.last, standing.commit), (Some(image), Some(image)), "nothing of the old log is left");
    assert_eq!(bench.give(Event::Tick), vec![], "nothing is fetched before the log is there");
    assert_eq!(bench.durable(Some(image)), vec![send(3, question(3, Some(image), FIRST + 1))]);
}

#[test]
fn an_image_that_the_log_reaches_leaves_what_follows_in_it() {
    let mut bench = learner(entries(&[(1, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)]));
    bench.receive(3, purged(FIRST, Position::new(3, 4)));
    let image = Position::new(3, 4);
    assert_eq!(bench.give(Event::ImageHere(Some(image))), vec![Effect::EnterImage(image)]);
    assert_eq!((bench.replica.standing().last, bench.replica.standing().commit), (at(3, 5), at(3, 4)));
}

#[test]
fn a_learner_asks_the_next_source_where_no_image_comes() {
    let mut bench = learner(Vec::new());
    bench.receive(3, purged(FIRST, Position::new(2, 2)));
    assert_eq!(bench.give(Event::ImageHere(None)), vec![]);
    assert_eq!(bench.give(Event::Tick), vec![send(2, question(3, None, FIRST + 1))]);
}

#[test]
fn an_image_comes_too_late_for_who_was_sealed_or_has_come_further() {
    let mut bench = learner(Vec::new());
    bench.receive(3, purged(FIRST, Position::new(2, 2)));
    bench.receive(
        9,
        Message::Seal { configuration: configuration(3, &[life(1), life(2), life(3)], at(2, 3)), attempt: 1 },
    );
    assert_eq!(bench.give(Event::ImageHere(at(2, 2))), vec![], "it has told its end");

    let mut bench = learner(entries(&[(1, 0), (1, 1), (2, 2), (2, 3)]));
    bench.receive(3, purged(FIRST, Position::new(3, 6)));
    assert_eq!(bench.give(Event::ImageHere(at(2, 2))), vec![], "below what is committed here");
}

#[test]
fn who_may_count_takes_no_image() {
    let again = Life { incarnation: Incarnation(2), ..life(2) };
    let mut bench =
        Bench::new(again, PersistOrder::Parallel, Timing::default(), entries(&[(1, 0), (2, 1), (2, 2), (2, 3)]));
    bench.configure(configuration(3, &[life(1), life(2)], at(2, 3)));
    assert_eq!(bench.receive(1, purged((2 << 32) + 1, Position::new(3, 6))), vec![]);
}
