//! Queries never change state, and never see each other.

use proptest::prelude::*;
use replicator_machine::{Push, QueryOutcome, RequestResult, TrapKind};

use crate::harness::*;

/// Queries that write all over memory and globals: and return, trap, panic, loop or grow.
const WRITING: [&[u8]; 6] = [b"w", b"W", b"u", b"p", b"l", b"g"];

#[test]
fn a_query_that_writes_traps_or_grows_changes_nothing() {
    let mut node = Node::new();
    let mut client = node.open();
    for round in 0..3 {
        node.reply(&mut client, b"c");
        let (hash, count) = (node.machine.state_hash(), node.query_reply(b"c"));
        assert_eq!(number(&count), 2 + round);
        for query in WRITING {
            node.query(query);
            assert_eq!(node.machine.state_hash(), hash, "{query:?}");
            assert_eq!(node.query_reply(b"c"), count, "memory after {query:?}");
            assert_eq!(number(&node.query_reply(b"k")), 3 * (2 + round), "globals after {query:?}");
            assert_eq!(number(&node.query_reply(b"s")), 2, "size after {query:?}");
        }
    }
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
}

#[test]
fn a_query_that_writes_more_than_is_copied_back_changes_nothing() {
    let mut node = Node::new();
    let mut client = node.open();
    assert_eq!(number(&node.reply(&mut client, b"m")), 8);
    let hash = node.machine.state_hash();
    for round in 3..6 {
        assert_eq!(number(&node.query_reply(b"W")), u64::MAX);
        assert_eq!(number(&node.query_reply(b"c")), round - 1);
        assert_eq!(node.machine.state_hash() == hash, round == 3);
        assert_eq!(number(&node.reply(&mut client, b"c")), round);
        assert_eq!(number(&node.query_reply(b"c")), round);
    }
}

#[test]
fn a_writing_query_sees_its_own_writes_only() {
    let mut node = Node::new();
    assert_eq!(number(&node.query_reply(b"w")), u64::MAX);
    assert_eq!(number(&node.query_reply(b"g")), u64::MAX);
    assert_eq!(number(&node.query_reply(b"c")), 0);
}

#[test]
fn results_are_typed() {
    let mut node = Node::new();
    let mut kind = |query: &[u8]| match node.query(query) {
        RequestResult::Trap(trap) => (trap.kind, trap.message),
        reply => panic!("{reply:?}"),
    };
    assert_eq!(kind(b"u"), (TrapKind::Unreachable, "the module panicked".to_owned()));
    assert_eq!(kind(b"p"), (TrapKind::Unreachable, "oops".to_owned()));
    assert_eq!(kind(b"l").0, TrapKind::OutOfFuel);
    assert_eq!(node.machine.stats().traps, 0, "only the log's traps count");
}

#[test]
fn queries_see_the_live_memory_as_it_grows_and_rolls_back() {
    let mut node = Node::new();
    let mut client = node.open();
    assert_eq!(number(&node.query_reply(b"s")), 2);
    node.trap(&mut client, b"g");
    assert_eq!(number(&node.query_reply(b"s")), 2);
    node.reply(&mut client, b"m");
    assert_eq!(number(&node.query_reply(b"s")), 8);
    node.trap(&mut client, b"u");
    assert_eq!(number(&node.query_reply(b"s")), 8);
    node.query(b"g");
    assert_eq!(number(&node.query_reply(b"c")), 2);
    assert_eq!(number(&node.reply(&mut client, b"c")), 3);
    assert_eq!(number(&node.query_reply(b"c")), 3);
}

#[test]
fn the_header_has_the_applied_index_and_no_entropy() {
    let mut node = Node::new();
    let client = node.open();
    let session = Some(client.session);
    let QueryOutcome::Answered { result: RequestResult::Reply(header), .. } =
        node.machine.query(session, b"h").unwrap()
    else {
        panic!()
    };
    let index = node.machine.applied().unwrap().index.0;
    let expected = [
        &64u32.to_le_bytes()[..],
        &0u32.to_le_bytes(),
        &index.to_le_bytes(),
        &client.session.0,
        &node.time_us.to_le_bytes(),
        &[0; 24],
    ];
    assert_eq!(header, expected.concat());
}

#[test]
fn ephemeral_pushes_come_out_and_are_not_retained() {
    let mut node = Node::new();
    let client = node.open();
    let retained = node.machine.pushes_after(Default::default(), 99).unwrap();
    let QueryOutcome::Answered { pushes, .. } = node.machine.query(Some(client.session), b"P").unwrap() else {
        panic!()
    };
    assert_eq!(pushes, [Push { to: client.session.0, payload: bytes::Bytes::from_static(&[64]) }]);
    assert_eq!(node.machine.pushes_after(Default::default(), 99).unwrap(), retained);
}

#[test]
fn a_group_is_answered_like_single_queries() {
    let mut node = Node::new();
    let mut client = node.open();
    node.reply(&mut client, b"c");
    let queries: [&[u8]; 6] = [b"c", b"w", b"c", b"g", b"s", b"k"];
    let single: Vec<_> = queries.iter().map(|query| node.machine.query(None, query).unwrap()).collect();
    let group = node.machine.query_group(queries.iter().map(|query| (None, *query))).unwrap();
    assert_eq!(single, group);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_queries_between_any_requests_change_nothing(steps in prop::collection::vec((
        prop::sample::select(&b"ecmguPn"[..]), prop::collection::vec(prop::sample::select(&b"cksPwWuplg"[..]), 0..6)), 1..12)
    ) {
        let (mut asked, mut quiet) = (Node::new(), Node::new());
        let (mut a, mut b) = (asked.open(), quiet.open());
        for (request, queries) in steps {
            let (x, y) = (asked.send(&mut a, &[request, 1, 2]), quiet.send(&mut b, &[request, 1, 2]));
            prop_assert_eq!(x, y);
            for query in queries {
                asked.query(&[query]);
            }
            prop_assert_eq!(asked.machine.state_parts(), quiet.machine.state_parts());
        }
    }
}
