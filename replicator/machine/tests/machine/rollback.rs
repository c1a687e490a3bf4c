//! Rollback: after a trap, the machine is one that never saw the request (invariant 13).

use proptest::prelude::*;
use replicator_machine::{Command, Limits, Outcome, Refusal, RequestResult, bench};

use crate::harness::*;

/// Runs requests on one machine with poison among them, and on another without; the application must be the same.
fn without_effect(requests: &[&[u8]], is_poison: impl Fn(&[u8]) -> bool) {
    let (mut with, mut without) = (Node::new(), Node::new());
    let (mut a, mut b) = (with.open(), without.open());
    for request in requests {
        let outcome = with.send(&mut a, request).outcome;
        if is_poison(request) {
            assert!(matches!(outcome, Outcome::Executed { result: RequestResult::Trap(_), .. }), "{outcome:?}");
        } else {
            assert_eq!(reply_of(outcome), without.reply(&mut b, request));
        }
        let (x, y) = (with.machine.state_parts(), without.machine.state_parts());
        // The memory holds the input's header with the index, which differs once there was poison; so compare it by
        // what it says, and all bytes of it in the test below, at equal index.
        assert_eq!(x.globals, y.globals);
        assert_eq!(with.query_reply(b"c"), without.query_reply(b"c"));
        assert_eq!(with.query_reply(b"s"), without.query_reply(b"s"));
    }
}

#[test]
fn poison_leaves_no_effect() {
    let requests: [&[u8]; 12] = [b"c", b"u", b"e1", b"g", b"g", b"c", b"l", b"m", b"g", b"u", b"c", b"e2"];
    without_effect(&requests, |request| matches!(request[0], b'u' | b'g' | b'l'));
}

#[test]
fn at_equal_index_all_bytes_of_memory_and_globals_are_equal() {
    let (mut with, mut without) = (Node::new(), Node::new());
    for round in 0..20u8 {
        // New sessions each time, as the sequence is in the header and so in the memory.
        let (mut a, b) = (with.open(), without.open());
        assert_eq!(a.session, b.session);
        // Where one gets poison, the other gets a request that is refused.
        with.trap(&mut a, [&b"u"[..], b"g", b"l", b"b"][usize::from(round % 4)]);
        assert!(matches!(refusal_of(without.send_as(&b, 9, 1, b"c").outcome), Refusal::Gap { .. }));
        let request = [b"e".to_vec(), vec![round; usize::from(round) * 100]].concat();
        let (mut fresh_a, mut fresh_b) = (with.open(), without.open());
        assert_eq!(with.reply(&mut fresh_a, &request), without.reply(&mut fresh_b, &request));
        let (x, y) = (with.machine.state_parts(), without.machine.state_parts());
        assert_eq!((x.memory, x.globals, x.clock), (y.memory, y.globals, y.clock), "round {round}");
        assert!(x.digest != y.digest && x.sessions != y.sessions, "the trap is an outcome");
        for client in [&a, &fresh_a] {
            with.apply(Command::CloseSession { session: client.session });
            without.apply(Command::CloseSession { session: client.session });
        }
    }
}

#[test]
fn live_and_replayed_machines_are_equal() {
    let mut node = Node::new();
    let mut client = node.open();
    for request in ["c", "u", "Ppushed", "g", "m", "l", "ehello", "n", "p", "c"] {
        node.send(&mut client, request.as_bytes());
        node.query(b"w");
        node.query(b"g");
        node.time_us += 300_000;
        node.tick();
    }
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_parts(), node.machine.state_parts());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
    assert_eq!(replayed.machine.digest(), node.machine.digest());
}

#[test]
fn the_input_is_asked_for_once() {
    let mut node = Node::new();
    let mut client = node.open();
    for _ in 0..3 {
        node.trap(&mut client, b"u");
        node.reply(&mut client, b"c");
        node.query(b"g");
        assert_eq!(number(&node.query_reply(b"i")), 1);
    }
}

#[test]
fn a_rollback_after_more_calls_than_a_journal_holds() {
    let mut node = Node::with(&hostile(), Limits { apply_fuel: 100_000, ..limits() });
    let mut client = node.open();
    for _ in 0..70_000 {
        node.reply(&mut client, b"c");
    }
    node.trap(&mut client, b"g");
    assert_eq!(number(&node.reply(&mut client, b"c")), 1 + 70_000 + 1);
    node.trap(&mut client, b"u");
    node.trap(&mut client, b"u");
    assert_eq!(number(&node.reply(&mut client, b"c")), 1 + 70_000 + 2);
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_requests_leave_two_machines_equal(requests in prop::collection::vec(
        (prop::sample::select(&b"echxRPLtupqlrmgbdofin"[..]), prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 1..25)
    ) {
        let mut node = Node::new();
        let mut client = node.open();
        for (op, mut body, tick) in requests {
            body.insert(0, op);
            let applied = node.send(&mut client, &body);
            let executed = matches!(applied.outcome, Outcome::Executed { .. });
            prop_assert!(executed);
            if tick {
                node.time_us += 10_000;
                node.tick();
                node.query(&body);
            }
        }
        let mut replayed = node.replayed(&hostile());
        prop_assert_eq!(replayed.machine.state_parts(), node.machine.state_parts());
        let mut by_copies = bench::without_write_tracking(|| node.replayed(&hostile()));
        prop_assert_eq!(by_copies.machine.state_parts(), node.machine.state_parts());
        // And once more, with traps only, which must change nothing of the application.
        let before = node.machine.state_parts();
        node.trap(&mut client, b"g");
        let after = node.machine.state_parts();
        prop_assert_eq!((before.memory, before.globals), (after.memory, after.globals));
    }
}
