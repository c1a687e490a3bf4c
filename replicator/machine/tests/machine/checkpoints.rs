//! Checkpoints: equal states have equal ones, however each came about, and what no answer tells is in them.

use bytes::Bytes;
use replicator_machine::{CHECKPOINT_ENTRIES, Command, Machine, is_checkpoint};
use replicator_types::{Digest, LogIndex};

use crate::harness::*;

fn checkpoint(machine: &mut Machine) -> Option<Digest> {
    machine.checkpoint().expect("it goes on")
}

/// Whether this system can tell written pages; without that there are no checkpoints to test.
fn tracks() -> bool {
    let tracks = checkpoint(&mut Node::new().machine).is_some();
    if !tracks {
        println!("skipped: this system can't tell which pages were written (it takes Linux 6.7)");
    }
    tracks
}

#[test]
fn they_are_where_the_log_says_so() {
    let node = Node::new();
    let (_, tick) = node.entry(Command::Tick);
    let (_, open) = node.entry(Command::OpenSession { ttl_us: 0 });
    assert!(is_checkpoint(LogIndex(7), Some(&tick)));
    assert!(!is_checkpoint(LogIndex(7), Some(&open)) && !is_checkpoint(LogIndex(7), None));
    assert!(is_checkpoint(LogIndex(3 * CHECKPOINT_ENTRIES), Some(&open)));
    assert!(is_checkpoint(LogIndex(CHECKPOINT_ENTRIES), None));
}

/// One machine has made one after each entry, the other one none before the last: traps, growth and expiries among them.
#[test]
fn equal_states_have_equal_ones_whenever_they_were_made() {
    if !tracks() {
        return;
    }
    let mut often = Node::new();
    let mut client = often.open();
    for (round, request) in
        [&b"c"[..], b"e123", b"u", b"m", b"c", b"g", b"e", b"l", b"k"].iter().cycle().take(60).enumerate()
    {
        often.send(&mut client, request);
        checkpoint(&mut often.machine);
        if round % 7 == 0 {
            often.time_us += TICK_US;
            often.tick();
            often.apply(Command::CloseSession { session: client.session });
            client = often.open();
        }
        let mut seldom = often.replayed(&hostile());
        assert_eq!(checkpoint(&mut often.machine), checkpoint(&mut seldom.machine), "round {round}");
        assert_eq!(often.machine.state_parts(), seldom.machine.state_parts(), "round {round}");
    }
}

/// The requests have equal answers, and leave other bytes in the memory.
#[test]
fn what_no_answer_tells_is_in_them() {
    if !tracks() {
        return;
    }
    let (mut a, mut b) = (Node::new(), Node::new());
    let (of_a, of_b) = (a.open(), b.open());
    assert_eq!(checkpoint(&mut a.machine), checkpoint(&mut b.machine));
    let request = |session, request| Command::Request {
        session,
        sequence: replicator_types::Sequence(1),
        acked_below: replicator_types::Sequence(1),
        request: Bytes::from_static(request),
    };
    let (x, y) = (a.apply(request(of_a.session, b"cx")), b.apply(request(of_b.session, b"cy")));
    assert_eq!((x, a.machine.digest()), (y, b.machine.digest()), "the answers are to be equal");
    assert_ne!(checkpoint(&mut a.machine), checkpoint(&mut b.machine));
}

/// A session that is touched and answers nothing new.
#[test]
fn sessions_are_in_them() {
    if !tracks() {
        return;
    }
    let (mut a, mut b) = (Node::new(), Node::new());
    let (of_a, of_b) = (a.open(), b.open());
    let other = a.open();
    b.open();
    a.tick();
    b.tick();
    // Both keep a session, and each another one: equal outcomes.
    let (x, y) =
        (a.apply(Command::KeepAlive { session: of_a.session }), b.apply(Command::KeepAlive { session: other.session }));
    assert_eq!((x, a.machine.digest()), (y, b.machine.digest()));
    assert_eq!(of_a.session, of_b.session);
    a.time_us += TICK_US;
    b.time_us += TICK_US;
    a.tick();
    b.tick();
    a.apply(Command::KeepAlive { session: of_a.session });
    b.apply(Command::KeepAlive { session: other.session });
    assert_eq!(a.machine.digest(), b.machine.digest());
    assert_ne!(checkpoint(&mut a.machine), checkpoint(&mut b.machine));
}
