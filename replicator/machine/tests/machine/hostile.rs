//! Hostile requests: a typed result, the same on two machines, and the next request works.

use replicator_machine::{Command, Outcome, Trap, TrapKind};

use crate::harness::*;

/// The result of one request on two machines, after which both go on alike.
fn trap_on_two_machines(request: &[u8]) -> Trap {
    let mut nodes = [Node::new(), Node::new()];
    let traps = nodes.each_mut().map(|node| {
        let mut client = node.open();
        node.reply(&mut client, b"c");
        let before = node.machine.state_parts();
        let trap = node.trap(&mut client, request);
        let after = node.machine.state_parts();
        assert_eq!((before.memory, before.globals), (after.memory, after.globals), "the trap left an effect");
        assert_eq!(number(&node.reply(&mut client, b"c")), 3, "connect, then two counted requests");
        trap
    });
    assert_eq!(nodes[0].machine.state_hash(), nodes[1].machine.state_hash());
    assert_eq!(traps[0], traps[1]);
    traps[0].clone()
}

#[test]
fn every_trap_is_typed_and_leaves_no_effect() {
    for (request, kind, message) in [
        ("u", TrapKind::Unreachable, "the module panicked"),
        ("p", TrapKind::Unreachable, "oops"),
        ("q", TrapKind::Unreachable, "the module panicked"),
        ("l", TrapKind::OutOfFuel, "out of fuel"),
        ("g", TrapKind::Unreachable, "the module panicked"),
        ("b", TrapKind::MemoryOutOfBounds, "memory access out of bounds"),
        ("d", TrapKind::DivideByZero, "division by zero"),
        ("o", TrapKind::IntegerOverflow, "integer overflow"),
        ("f", TrapKind::BadConversion, "conversion of a number that is no integer"),
        ("i", TrapKind::BadIndirectCall, "indirect call of a wrong function"),
    ] {
        let trap = trap_on_two_machines(request.as_bytes());
        assert_eq!((trap.kind, trap.message.as_str()), (kind, message), "{request}");
    }
}

#[test]
fn deep_recursion_traps() {
    // With fuel to spare, the stack ends first.
    let limits = replicator_machine::Limits { apply_fuel: 1_000_000_000, ..limits() };
    let played = replicator_machine::with_apply_stack(|| {
        let mut node = Node::with(&hostile(), limits);
        let mut client = node.open();
        assert_eq!(node.trap(&mut client, b"r").kind, TrapKind::StackOverflow);
        assert_eq!(node.reply(&mut client, b"ehello"), "hello");
    });
    played.unwrap();
}

#[test]
fn output_regions_are_bounds_checked() {
    let region = |start: u64, len: u64| [b"R".to_vec(), ((start << 32) | len).to_le_bytes().to_vec()].concat();
    for (start, len, kind) in [
        (0, 40_001, TrapKind::OutputTooLarge),
        (0, 0xffff_ffff, TrapKind::OutputTooLarge),
        (131_072, 1, TrapKind::MalformedOutput),
        (131_071, 2, TrapKind::MalformedOutput),
        (0xffff_ffff, 40_000, TrapKind::MalformedOutput),
        (0xffff_ffff, 0, TrapKind::MalformedOutput),
    ] {
        assert_eq!(trap_on_two_machines(&region(start, len)).kind, kind, "{start} {len}");
    }
    let mut node = Node::new();
    let mut client = node.open();
    assert_eq!(node.reply(&mut client, &region(131_072, 0)), "");
}

#[test]
fn malformed_lists_trap() {
    let record = |tag: u32, len: u32, bytes: usize| {
        [&b"x"[..], &tag.to_le_bytes(), &len.to_le_bytes(), &[0; 16], &vec![7; bytes]].concat()
    };
    let two_replies = [record(0, 0, 0), record(0, 0, 0)[1..].to_vec()].concat();
    for list in [
        b"x0".to_vec(),
        record(3, 0, 0),
        record(0, 8, 7),
        record(0, 1, 1),
        record(1, u32::MAX, 8),
        record(2, 9, 15),
        [record(0, 8, 8), vec![0]].concat(),
        two_replies,
    ] {
        assert_eq!(trap_on_two_machines(&list).kind, TrapKind::MalformedOutput, "{list:?}");
    }
    let mut node = Node::new();
    let mut client = node.open();
    assert_eq!(node.reply(&mut client, &record(0, 8, 8)), [7; 8].as_slice());
}

#[test]
fn a_memory_bomb_gets_no_more_than_the_limit() {
    let mut nodes = [Node::new(), Node::new()];
    for node in &mut nodes {
        let mut client = node.open();
        assert_eq!(number(&node.reply(&mut client, b"m")), 8);
        assert_eq!(node.machine.stats().memory_bytes, 8 << 16);
        assert_eq!(number(&node.reply(&mut client, b"m")), 8);
        // A rollback can't shrink it below what it was.
        node.trap(&mut client, b"g");
        assert_eq!(node.machine.stats().memory_bytes, 8 << 16);
    }
    assert_eq!(nodes[0].machine.state_hash(), nodes[1].machine.state_hash());
}

#[test]
fn nan_bits_are_canonical() {
    let mut node = Node::new();
    let mut client = node.open();
    let bits = node.reply(&mut client, b"n");
    let (nan64, nan32) = (0x7ff8_0000_0000_0000u64.to_le_bytes(), 0x7fc0_0000u32.to_le_bytes());
    assert_eq!(bits, [&nan64[..], &nan64, &nan32, &nan32].concat());
}

#[test]
fn a_request_longer_than_the_limit_is_refused_and_not_counted() {
    let mut node = Node::new();
    let mut client = node.open();
    let refused = node.send(&mut client, &vec![b'e'; 50_001]).outcome;
    assert_eq!(refusal_of(refused), replicator_machine::Refusal::TooLarge { bytes: 50_001, max: 50_000 });
    client.sequence -= 1;
    assert_eq!(node.reply(&mut client, &[b'e'; 30_001]).len(), 30_000);
    assert!(node.machine.query(None, &vec![b'c'; 50_001]).is_ok());
}

#[test]
fn the_module_sees_the_header() {
    let mut node = Node::new();
    let mut client = node.open();
    node.time_us += 77;
    let (position, entry) = node.entry(Command::Tick);
    let header = node.reply(&mut client, b"h");
    let expected = [
        &64u32.to_le_bytes()[..],
        &0u32.to_le_bytes(),
        &position.index.0.to_le_bytes(),
        &client.session.0,
        &entry.time_us.to_le_bytes(),
        &1u64.to_le_bytes(),
        &entry.seed.0,
    ];
    assert_eq!(header, expected.concat());
    // Time never goes back.
    node.time_us -= 1_000_000;
    let header = node.reply(&mut client, b"h");
    assert_eq!(header[32..40], entry.time_us.to_le_bytes());
}

#[test]
fn log_lines_come_out() {
    let mut node = Node::new();
    let mut client = node.open();
    let applied = node.send(&mut client, b"Lhello \xff");
    assert_eq!(applied.logs, ["hello \u{fffd}"]);
    assert_eq!(reply_of(applied.outcome), "");
}

#[test]
fn a_trap_at_connect_or_disconnect_leaves_the_session_change() {
    let mut node = Node::new();
    let mut client = node.open();
    node.reply(&mut client, b"t");
    let before = node.machine.state_parts();
    let applied = node.apply(Command::OpenSession { ttl_us: 0 });
    let Outcome::SessionOpened { session, .. } = applied.outcome else { panic!("{applied:?}") };
    assert!(applied.pushes.is_empty() && node.machine.has_session(&session));
    let applied = node.apply(Command::CloseSession { session });
    assert_eq!(applied.outcome, Outcome::SessionClosed { existed: true });
    assert!(applied.pushes.is_empty() && !node.machine.has_session(&session));
    assert_eq!(node.tick(), 0);
    let after = node.machine.state_parts();
    assert_eq!((before.memory, before.globals), (after.memory, after.globals));
    assert_eq!(node.machine.stats().traps, 3);
    let replayed = &mut node.replayed(&hostile()).machine;
    assert_eq!(replayed.state_hash(), node.machine.state_hash());
}

#[test]
fn a_second_copy_of_an_open_session_never_opens_the_first_one_again() {
    let opened = |outcome| match outcome {
        Outcome::SessionOpened { session, .. } => session,
        other => panic!("not opened: {other:?}"),
    };
    let mut node = Node::new();
    let (position, entry) = node.entry(Command::OpenSession { ttl_us: 0 });
    let first = opened(node.machine.apply(position, &entry).unwrap().outcome);
    let (position, close) = node.entry(Command::CloseSession { session: first });
    node.machine.apply(position, &close).unwrap();
    let (position, _) = node.entry(Command::Tick);
    let second = opened(node.machine.apply(position, &entry).unwrap().outcome);
    assert_ne!(first, second);
    assert!(!node.machine.has_session(&first));
    assert!(first.to_string().starts_with("88776655") && second.to_string().starts_with("88776655"));
}
