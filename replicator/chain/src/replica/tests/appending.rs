//! Active members: proposing, appending, acknowledging, committing, reading.

use super::*;
use crate::{Refusal, Role};

fn timing() -> Timing {
    Timing { window_entries_max: 4, message_bytes_max: 1_000, ..Timing::default() }
}

fn acknowledgement_of(
    epoch: u64,
    received: Option<Position>,
    durable: Option<Position>,
    barrier: u64,
    gap: bool,
) -> Message {
    Message::Acknowledged { epoch: Epoch(epoch), received, durable, barrier, gap }
}

fn news(previous: Option<Position>, commit: Option<Position>, barrier: u64) -> Message {
    Message::Append { epoch: Epoch(1), previous, entries: Vec::new(), commit, barrier }
}

fn alone(order: PersistOrder) -> Bench {
    let mut bench = Bench::new(life(1), order, timing(), Vec::new());
    bench.configure(configuration(1, &[life(1)], None));
    bench
}

fn sent_entries(effects: &[Effect]) -> Vec<u64> {
    let entries = effects.iter().flat_map(|effect| match effect {
        Effect::Send { message: Message::Append { entries, .. }, .. } => entries.clone(),
        _ => Vec::new(),
    });
    entries.map(|entry| entry.position.index.0).collect()
}

#[test]
fn entering_greets_the_successor_and_asks_the_predecessor_anew() {
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, timing(), Vec::new());
    let first = configuration(1, &[life(1), life(2), life(3)], None);
    let expected = vec![
        Effect::Entered(first.clone()),
        send(3, news(None, None, 0)),
        send(1, acknowledgement_of(1, None, None, 0, true)),
    ];
    assert_eq!(bench.configure(first.clone()), expected);
    assert_eq!(bench.replica.standing().role, Role::Middle);
    assert_eq!(bench.configure(first), vec![], "the same again is not new");
}

#[test]
fn proposed_in_parallel_is_sent_and_appended_in_one_step() {
    let mut bench = Bench::member(1, PersistOrder::Parallel, timing());
    let effects = bench.propose(7, &["0@1", "1@1"]);
    let expected = vec![
        Effect::Accepted { number: 7, last: Position::new(1, 1) },
        send(2, append(1, None, &[(1, 0), (1, 1)], None)),
        Effect::AppendLog(entries(&[(1, 0), (1, 1)])),
    ];
    assert_eq!(effects, expected);
    assert_eq!(bench.receive(2, acknowledged(1, at(1, 1), at(1, 1))), vec![], "committed before its own disk has it");
    let expected = vec![Effect::Committed(Position::new(1, 1)), send(2, news(at(1, 1), at(1, 1), 0))];
    assert_eq!(bench.durable(at(1, 1)), expected);
}

#[test]
fn proposed_backups_first_is_appended_once_all_backups_have_it() {
    let mut bench = Bench::member(1, PersistOrder::BackupsFirst, timing());
    let effects = bench.propose(7, &["0@1", "1@1"]);
    let accepted = Effect::Accepted { number: 7, last: Position::new(1, 1) };
    assert_eq!(effects, vec![accepted, send(2, append(1, None, &[(1, 0), (1, 1)], None))]);
    assert_eq!(bench.receive(2, acknowledged(1, at(1, 1), None)), vec![], "appended when it was only received");
    assert_eq!(bench.replica.standing().held, 2);
    let effects = bench.receive(2, acknowledged(1, at(1, 1), at(1, 0)));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(1, 0)]))]);
    let expected = vec![Effect::Committed(Position::new(1, 0)), send(2, news(at(1, 1), at(1, 0), 0))];
    assert_eq!(bench.durable(at(1, 0)), expected);
    assert_eq!(bench.replica.standing().held, 1);
}

#[test]
fn alone_in_either_order_it_commits_what_is_durable() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut bench = alone(order);
        let effects = bench.propose(1, &["0@1"]);
        let accepted = Effect::Accepted { number: 1, last: Position::new(1, 0) };
        assert_eq!(effects, vec![accepted, Effect::AppendLog(entries(&[(1, 0)]))]);
        assert_eq!(bench.give(Event::ReadAsked { number: 2 }), vec![Effect::ReadRefused { number: 2 }]);
        assert_eq!(bench.durable(at(1, 0)), vec![Effect::Committed(Position::new(1, 0))]);
        let confirmed = Effect::ReadConfirmed { number: 3, index: LogIndex(0) };
        assert_eq!(bench.give(Event::ReadAsked { number: 3 }), vec![confirmed]);
    }
}

#[test]
fn whoever_is_no_active_primary_refuses() {
    let mut idle = Bench::new(life(1), PersistOrder::Parallel, timing(), Vec::new());
    let mut backup = Bench::member(2, PersistOrder::Parallel, timing());
    let mut sealed = Bench::member(1, PersistOrder::Parallel, timing());
    let seal = Message::Seal { configuration: configuration(1, &[life(1), life(2), life(3)], None), attempt: 1 };
    sealed.receive(9, seal);
    for bench in [&mut idle, &mut backup, &mut sealed] {
        let refused = Effect::Refused { number: 4, reason: Refusal::NotPrimary };
        assert_eq!(bench.propose(4, &["x"]), vec![refused]);
        assert_eq!(bench.give(Event::ReadAsked { number: 5 }), vec![Effect::ReadRefused { number: 5 }]);
    }
}

#[test]
fn a_chain_shorter_than_the_least_takes_no_writes() {
    let mut bench = Bench::new(life(1), PersistOrder::Parallel, timing(), Vec::new());
    let first = configuration(1, &[life(1), life(2)], None);
    bench.receive(2, Message::Configured { configuration: first.clone() });
    let refused = Effect::Refused { number: 1, reason: Refusal::ChainTooShort };
    assert_eq!(bench.propose(1, &["x"]), vec![refused.clone()], "the least is not known yet");
    bench.give(Event::Configured { configuration: first.clone(), least_chain: 3 });
    assert_eq!(bench.propose(1, &["x"]), vec![refused]);
    bench.give(Event::Configured { configuration: first, least_chain: 2 });
    assert!(matches!(bench.propose(1, &["x"])[0], Effect::Accepted { .. }));
}

#[test]
fn what_waits_for_commitment_is_bounded() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut bench = Bench::member(1, order, timing());
        let taken = (0..100).take_while(|i| matches!(bench.propose(*i, &["x"])[0], Effect::Accepted { .. })).count();
        assert_eq!(taken, 32, "{order:?}: eight windows of 4");
        assert_eq!(bench.propose(100, &["x"]), vec![Effect::Refused { number: 100, reason: Refusal::Full }]);
    }
}

#[test]
fn a_middle_appends_forwards_and_acknowledges_what_it_and_all_behind_hold() {
    let mut bench = Bench::member(2, PersistOrder::BackupsFirst, timing());
    let effects = bench.receive(1, append(1, None, &[(1, 0)], None));
    let received = send(1, acknowledged(1, at(1, 0), None)); // A quarter of the window.
    let forwarded = send(3, append(1, None, &[(1, 0)], None));
    assert_eq!(effects, vec![forwarded, Effect::AppendLog(entries(&[(1, 0)])), received]);
    assert_eq!(bench.durable(at(1, 0)), vec![], "acknowledged for the tail, which hasn't");
    assert_eq!(
        bench.receive(3, acknowledged(1, at(1, 0), at(1, 0))),
        vec![send(1, acknowledged(1, at(1, 0), at(1, 0)))]
    );
}

#[test]
fn a_tail_acknowledges_what_is_durable() {
    let mut bench = Bench::member(3, PersistOrder::BackupsFirst, Timing { window_entries_max: 100, ..timing() });
    let effects = bench.receive(2, append(1, None, &[(1, 0), (1, 1)], None));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(1, 0), (1, 1)]))]);
    assert_eq!(bench.durable(at(1, 0)), vec![send(2, acknowledged(1, at(1, 1), at(1, 0)))]);
    assert_eq!(bench.durable(at(1, 1)), vec![send(2, acknowledged(1, at(1, 1), at(1, 1)))]);
}

#[test]
fn a_gap_is_told_once_in_a_tick() {
    let mut bench = Bench::member(3, PersistOrder::BackupsFirst, timing());
    bench.give(Event::Tick); // What was told on entering was for this tick.
    let told = send(2, acknowledgement_of(1, None, None, 0, true));
    assert_eq!(bench.receive(2, append(1, at(1, 0), &[(1, 1)], None)), vec![told.clone()]);
    assert_eq!(
        bench.receive(2, append(1, at(1, 1), &[(1, 2)], None)),
        vec![],
        "each message under way misses the same"
    );
    bench.give(Event::Tick);
    assert_eq!(bench.receive(2, append(1, at(1, 2), &[], None)), vec![told]);
}

#[test]
fn a_gap_sends_again_from_what_was_received() {
    let mut bench = Bench::member(1, PersistOrder::Parallel, timing());
    bench.propose(1, &["0@1"]);
    bench.propose(2, &["1@1"]);
    let effects = bench.receive(2, acknowledgement_of(1, at(1, 0), None, 0, true));
    assert_eq!(effects, vec![send(2, append(1, at(1, 0), &[(1, 1)], None))]);
}

#[test]
fn entries_that_came_before_are_skipped() {
    let mut bench = Bench::member(3, PersistOrder::BackupsFirst, timing());
    bench.receive(2, append(1, None, &[(1, 0), (1, 1)], None));
    assert_eq!(bench.receive(2, append(1, None, &[(1, 0)], None)), vec![]);
    let effects = bench.receive(2, append(1, at(1, 0), &[(1, 1), (1, 2)], None));
    assert_eq!(effects[0], Effect::AppendLog(entries(&[(1, 2)])));
}

#[test]
#[should_panic(expected = "(5)")]
fn two_entries_at_one_place_of_an_epoch_stop_the_node() {
    let log = entries(&[(1, 0)]);
    let mut bench = Bench::new(life(2), PersistOrder::Parallel, timing(), log);
    bench.configure(configuration(3, &[life(1), life(2)], at(1, 0)));
    bench.receive(1, append(3, None, &[(2, 0), (3, 1)], None));
}

#[test]
fn a_message_that_no_member_sends_is_dropped() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, timing());
    assert_eq!(bench.receive(3, append(1, None, &[(1, 0)], None)), vec![], "not the predecessor");
    assert_eq!(bench.receive(1, append(1, None, &[(1, 1)], None)), vec![], "a hole");
    assert_eq!(bench.receive(1, append(1, None, &[(2, 0)], None)), vec![], "an entry of a later epoch");
    assert_eq!(bench.receive(3, acknowledged(1, at(1, 5), at(1, 5))), vec![], "more than it was sent");
    assert_eq!(bench.receive(1, acknowledged(1, None, None)), vec![], "not the successor");
}

#[test]
fn commit_rises_to_what_is_durable_and_is_passed_on_at_once() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, timing());
    bench.receive(1, append(1, None, &[(1, 0), (1, 1)], None));
    bench.durable(at(1, 0));
    let effects = bench.receive(1, append(1, at(1, 1), &[], at(1, 1)));
    assert_eq!(effects, vec![Effect::Committed(Position::new(1, 0)), send(3, news(at(1, 1), at(1, 0), 0))]);
}

#[test]
fn a_commit_goes_with_the_entries_that_leave_in_the_same_step() {
    let mut bench = Bench::member(1, PersistOrder::BackupsFirst, timing());
    bench.propose(1, &["0@1", "1@1", "2@1", "3@1"]);
    bench.propose(2, &["4@1"]);
    bench.receive(2, acknowledged(1, at(1, 2), at(1, 0)));
    let effects = bench.receive(2, acknowledged(1, at(1, 3), at(1, 1)));
    assert_eq!(effects, vec![Effect::AppendLog(entries(&[(1, 1)]))]);
    bench.propose(3, &["5@1"]);
    bench.propose(4, &["6@1", "7@1"]);
    bench.propose(5, &["8@1"]);
    bench.durable(at(1, 1));
    let effects = bench.receive(2, acknowledged(1, at(1, 5), at(1, 1)));
    assert_eq!(effects, vec![send(2, append(1, at(1, 7), &[(1, 8)], at(1, 1)))]);
}

#[test]
fn a_full_window_lets_the_rest_go_as_room_comes() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut bench = Bench::member(1, order, timing());
        assert_eq!(sent_entries(&bench.propose(1, &["0", "1", "2", "3", "4", "5"])), vec![0, 1, 2, 3]);
        assert_eq!(sent_entries(&bench.propose(2, &["6"])), Vec::<u64>::new(), "{order:?}: the window is full");
        assert_eq!(sent_entries(&bench.receive(2, acknowledged(1, at(1, 1), None))), vec![4, 5]);
        assert_eq!(sent_entries(&bench.receive(2, acknowledged(1, at(1, 5), at(1, 5)))), vec![6]);
    }
}

#[test]
fn messages_and_bytes_under_way_are_bounded() {
    let timing = Timing { window_entries_max: 1_000, message_bytes_max: 2, ..Timing::default() };
    let mut bench = Bench::member(1, PersistOrder::Parallel, timing);
    let effects = bench.propose(1, &["x"; 50]);
    let messages = effects.iter().filter(|effect| matches!(effect, Effect::Send { .. })).count();
    assert_eq!((messages, sent_entries(&effects).len()), (16, 32));
}

#[test]
fn a_new_connection_sends_again_and_says_where_it_stands() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, timing());
    bench.receive(1, append(1, None, &[(1, 0)], None));
    let effects = bench.give(Event::Connected(DiskId(3)));
    assert_eq!(effects, vec![send(3, append(1, None, &[(1, 0)], None)), send(3, news(at(1, 0), None, 0))]);
    assert_eq!(bench.give(Event::Connected(DiskId(1))), vec![send(1, acknowledged(1, at(1, 0), None))]);
    assert_eq!(bench.give(Event::Connected(DiskId(9))), vec![]);
}

#[test]
fn a_tick_sends_a_heartbeat_a_beat_and_an_answer_if_one_is_due() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, timing());
    bench.give(Event::Coordinator(Some(DiskId(9))));
    let heartbeat = send(3, news(None, None, 0));
    let silent = bench.give(Event::Tick);
    assert_eq!(silent.len(), 2);
    assert_eq!(silent[0], heartbeat);
    let Effect::Send { to: DiskId(9), message: Message::Beat { life: own, epoch, link: Some(link), .. } } = silent[1]
    else {
        panic!("no beat: {silent:?}");
    };
    assert_eq!((own, epoch, link.to, link.silent_ticks), (life(2), Epoch(1), DiskId(3), 1));
    bench.receive(1, append(1, None, &[], None));
    assert!(bench.give(Event::Tick).contains(&send(1, acknowledged(1, None, None))));
    assert_eq!(bench.replica.standing().link.map(|link| link.silent_ticks), Some(2));
    bench.receive(3, acknowledged(1, None, None));
    assert_eq!(bench.replica.standing().link.map(|link| link.silent_ticks), Some(0));
}

#[test]
fn reads_share_a_barrier_that_all_behind_have_passed() {
    let mut bench = Bench::member(1, PersistOrder::Parallel, timing());
    bench.propose(1, &["0@1"]);
    bench.receive(2, acknowledged(1, at(1, 0), at(1, 0)));
    bench.durable(at(1, 0));
    assert_eq!(bench.give(Event::ReadAsked { number: 10 }), vec![send(2, news(at(1, 0), at(1, 0), 1))]);
    assert_eq!(bench.give(Event::ReadAsked { number: 11 }), vec![], "waits for the next barrier");
    assert_eq!(bench.give(Event::ReadAsked { number: 12 }), vec![]);
    let confirmed = |number| Effect::ReadConfirmed { number, index: LogIndex(0) };
    let effects = bench.receive(2, acknowledgement_of(1, at(1, 0), at(1, 0), 1, false));
    assert_eq!(effects, vec![confirmed(10), send(2, news(at(1, 0), at(1, 0), 2))]);
    assert_eq!(bench.receive(2, acknowledgement_of(1, at(1, 0), at(1, 0), 1, false)), vec![], "of the barrier before");
    let effects = bench.receive(2, acknowledgement_of(1, at(1, 0), at(1, 0), 2, false));
    assert_eq!(effects, vec![confirmed(11), confirmed(12)]);
}

#[test]
fn a_barrier_is_passed_on_and_answered_by_the_tail() {
    let barrier = Message::Append { epoch: Epoch(1), previous: None, entries: Vec::new(), commit: None, barrier: 3 };
    let passed = acknowledgement_of(1, None, None, 3, false);
    let mut middle = Bench::member(2, PersistOrder::Parallel, timing());
    assert_eq!(middle.receive(1, barrier.clone()), vec![send(3, news(None, None, 3))], "the tail has not passed it");
    assert_eq!(middle.receive(3, passed.clone()), vec![send(1, passed.clone())]);
    let mut tail = Bench::member(3, PersistOrder::Parallel, timing());
    assert_eq!(tail.receive(2, barrier), vec![send(2, passed)]);
}

#[test]
fn a_message_of_an_earlier_epoch_is_answered_with_the_configuration_once_in_a_tick() {
    let mut bench = Bench::new(life(1), PersistOrder::Parallel, timing(), Vec::new());
    let newest = configuration(5, &[life(1)], None);
    bench.configure(newest.clone());
    let told = send(2, Message::Configured { configuration: newest });
    assert_eq!(bench.receive(2, append(4, None, &[(4, 0)], None)), vec![told.clone()]);
    assert_eq!(bench.receive(2, append(4, None, &[(4, 0)], None)), vec![]);
    bench.give(Event::Tick);
    assert_eq!(bench.receive(2, acknowledged(4, None, None)), vec![told]);
}

#[test]
fn a_message_of_a_later_epoch_is_dropped_and_its_configuration_asked_for() {
    let mut bench = Bench::member(2, PersistOrder::Parallel, timing());
    let effects = bench.receive(1, append(2, None, &[(2, 0)], None));
    assert!(matches!(effects[..], [Effect::Send { to: DiskId(1), message: Message::Beat { epoch: Epoch(1), .. } }]));
    assert_eq!(bench.log.last(), None);
    let mut ahead = Bench::new(life(1), PersistOrder::Parallel, timing(), Vec::new());
    let newest = configuration(2, &[life(1), life(2)], None);
    ahead.configure(newest.clone());
    let Effect::Send { message: question, .. } = effects[0].clone() else { unreachable!("matched above") };
    assert_eq!(ahead.receive(2, question), vec![send(2, Message::Configured { configuration: newest })]);
}
