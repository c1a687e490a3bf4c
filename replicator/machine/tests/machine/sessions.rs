//! Sessions and time, through the whole machine. The table's own properties are tested beside it.

use replicator_machine::{Command, Outcome, Refusal};
use replicator_types::{Lineage, Sequence, SessionId};

use crate::harness::*;

const HOUR_US: i64 = 3_600 * 1_000_000;

fn keep(node: &mut Node, client: &Client) -> bool {
    match node.apply(Command::KeepAlive { session: client.session }).outcome {
        Outcome::Kept { existed } => existed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_repeat_answers_with_every_field_of_the_first_execution() {
    let mut node = Node::new();
    let client = node.open();
    for (sequence, request) in [(1, &b"c"[..]), (2, b"u"), (3, b"g")] {
        let first = node.send_as(&client, sequence, 1, request).outcome;
        let Outcome::Executed { position, digest, .. } = &first else { panic!("{first:?}") };
        assert_eq!((Some(*position), *digest), (node.machine.applied(), node.machine.digest()));
        node.tick();
        assert_eq!(node.send_as(&client, sequence, 1, request).outcome, first);
    }
    assert_eq!(refusal_of(node.send_as(&client, 2, 1, b"c").outcome), Refusal::Reused { last: Sequence(3) });
    assert_eq!(refusal_of(node.send_as(&client, 5, 1, b"c").outcome), Refusal::Gap { last: Sequence(3) });
    assert_eq!(refusal_of(node.send_as(&client, 2, 3, b"u").outcome), Refusal::Stale { last: Sequence(3) });
}

#[test]
fn unknown_and_foreign_sessions_are_refused() {
    let mut node = Node::new();
    let client = node.open();
    let mut unknown = client.clone();
    unknown.session.0[15] ^= 1;
    let foreign = Client { session: SessionId([0; 16]), sequence: 0 };
    assert_eq!(refusal_of(node.send_as(&unknown, 1, 1, b"c").outcome), Refusal::SessionExpired);
    assert_eq!(refusal_of(node.send_as(&foreign, 1, 1, b"c").outcome), Refusal::LineageMismatch);
    assert!(!keep(&mut node, &unknown));
    for command in [Command::KeepAlive { session: foreign.session }, Command::CloseSession { session: foreign.session }]
    {
        assert_eq!(refusal_of(node.apply(command).outcome), Refusal::LineageMismatch);
    }
    let close = Command::CloseSession { session: unknown.session };
    assert_eq!(node.apply(close).outcome, Outcome::SessionClosed { existed: false });
    assert_eq!(number(&node.query_reply(b"c")), 1, "the module saw the connect only");
}

#[test]
fn recovery_closes_every_session_and_refuses_those_of_the_old_lineage() {
    const NEW: Lineage = Lineage(0x99aa_bbcc_ddee_ff00);
    let mut node = Node::new();
    let (mut first, second) = (node.open(), node.open());
    node.reply(&mut first, b"c");
    let seen = number(&node.query_reply(b"c"));
    let old = node.machine.lineages().to_vec();
    let recovered = node.apply(Command::Recover { replaces: old[0], lineage: NEW });
    assert_eq!(recovered.outcome, Outcome::Recovered { closed: 2 });
    assert_eq!(node.machine.lineages(), [old[0], NEW]);
    assert_eq!(number(&node.query_reply(b"c")), seen + 2, "the module saw both go");
    assert_eq!(node.machine.stats().sessions, 0);
    for client in [&first, &second] {
        assert_eq!(refusal_of(node.send_as(client, client.sequence, 1, b"c").outcome), Refusal::LineageMismatch);
        assert_eq!(refusal_of(node.send_as(client, client.sequence + 1, 1, b"c").outcome), Refusal::LineageMismatch);
    }
    let mut new = node.open();
    assert!(new.session.is_of(NEW) && !first.session.is_of(NEW));
    node.reply(&mut new, b"c");
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
    assert_eq!(replayed.machine.digest(), node.machine.digest());
}

#[test]
fn recovery_of_a_disk_that_never_saw_the_one_before_names_both() {
    let mut node = Node::new();
    let (genesis, between, now) = (node.machine.lineages()[0], Lineage(5), Lineage(6));
    node.apply(Command::Recover { replaces: between, lineage: now });
    assert_eq!(node.machine.lineages(), [genesis, between, now]);
}

#[test]
fn sessions_are_bounded() {
    let mut node = Node::new();
    let clients: Vec<Client> = (0..8).map(|_| node.open()).collect();
    let refused = node.apply(Command::OpenSession { ttl_us: 0 }).outcome;
    assert_eq!(refusal_of(refused), Refusal::SessionsFull { max: 8 });
    node.apply(Command::CloseSession { session: clients[0].session });
    node.open();
}

#[test]
fn a_clock_jump_or_an_hour_of_downtime_expires_nobody_in_flight() {
    let mut node = Node::new();
    let mut client = node.open();
    for _ in 0..4 {
        node.time_us += HOUR_US;
        assert_eq!(node.tick(), 0, "two ticks at most, of a time to live of ten");
    }
    node.reply(&mut client, b"c");
    node.time_us -= 3 * HOUR_US;
    for _ in 0..100 {
        node.time_us += TICK_US;
        assert_eq!(node.tick(), 0, "time stands still until the clock has caught up");
    }
}

#[test]
fn only_ticks_advance_the_session_clock() {
    let mut node = Node::new();
    let client = node.open();
    let mut other = node.open();
    for _ in 0..100 {
        node.time_us += TICK_US;
        node.reply(&mut other, b"c");
    }
    assert!(node.machine.has_session(&client.session));
    assert_eq!(node.tick(), 0);
}

#[test]
fn an_idle_session_expires_and_a_kept_one_does_not() {
    let mut node = Node::new();
    let (idle, kept, mut busy) = (node.open(), node.open(), node.open());
    let mut expired = 0;
    for i in 1..=20 {
        node.time_us += TICK_US;
        let now = node.tick();
        assert_eq!(now, u32::from(i == 10), "tick {i}");
        expired += now;
        assert!(keep(&mut node, &kept));
        node.reply(&mut busy, b"c");
    }
    assert_eq!(expired, 1);
    assert!(!node.machine.has_session(&idle.session));
    assert_eq!(refusal_of(node.send_as(&idle, 1, 1, b"c").outcome), Refusal::SessionExpired);
    assert!(node.machine.has_session(&kept.session) && node.machine.has_session(&busy.session));
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
}

#[test]
fn a_refusal_does_not_prolong_a_session() {
    let mut node = Node::new();
    let client = node.open();
    for _ in 0..10 {
        node.send_as(&client, 5, 1, b"c");
        node.time_us += TICK_US;
        node.tick();
    }
    assert!(!node.machine.has_session(&client.session));
}

#[test]
fn the_window_is_full_by_count_and_by_bytes() {
    let mut node = Node::new();
    let mut client = node.open();
    for sequence in 1..=4 {
        reply_of(node.send_as(&client, sequence, 1, b"c").outcome);
    }
    assert_eq!(refusal_of(node.send_as(&client, 5, 1, b"c").outcome), Refusal::WindowFull { last: Sequence(4) });
    reply_of(node.send_as(&client, 5, 2, b"c").outcome);
    client.sequence = 5;
    node.reply(&mut client, &[b'e'; 30_001]);
    node.send_as(&client, 7, 6, &[b'e'; 30_001]);
    assert_eq!(refusal_of(node.send_as(&client, 8, 6, b"c").outcome), Refusal::WindowFull { last: Sequence(7) });
    reply_of(node.send_as(&client, 8, 7, b"c").outcome);
}

#[test]
fn ticks_are_wanted_while_there_is_something_to_expire() {
    // The hostile guest asks for ticks itself; one that doesn't is wanted to tick only with sessions.
    let text = include_str!("guest.wat").replace(" ticks=1", " ticks=0");
    let mut node = Node::with(&wat::parse_str(text).unwrap(), limits());
    assert!(!node.machine.wants_ticks());
    let client = node.open();
    assert!(node.machine.wants_ticks());
    let pushes = node.apply(Command::Tick).pushes;
    assert!(pushes.is_empty(), "the module isn't called for a tick that it didn't ask for");
    node.apply(Command::CloseSession { session: client.session });
    assert!(!node.machine.wants_ticks());
    assert!(Node::new().machine.wants_ticks());
}
