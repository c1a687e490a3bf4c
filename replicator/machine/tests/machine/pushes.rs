//! Pushes: named, retained, trimmed alike everywhere, resumed by cursor.

use replicator_machine::{CursorExpired, Limits, PushCursor};
use replicator_types::LogIndex;

use crate::harness::*;

#[test]
fn a_repeat_does_not_push_again() {
    let mut node = Node::new();
    let client = node.open();
    let first = node.send_as(&client, 1, 1, b"Phello");
    assert_eq!(first.pushes.len(), 1);
    assert_eq!((first.pushes[0].to, &first.pushes[0].payload[..]), (client.session.0, &b"hello"[..]));
    let repeat = node.send_as(&client, 1, 1, b"Phello");
    assert_eq!(repeat.outcome, first.outcome);
    assert!(repeat.pushes.is_empty());
    let retained = node.machine.pushes_after(PushCursor::default(), 99).unwrap();
    assert_eq!(retained.len(), 2, "connect, and the one request");
}

#[test]
fn a_cursor_resumes_until_it_expires() {
    let mut node = Node::new();
    let mut client = node.open();
    let start = PushCursor::end_of(node.machine.applied().unwrap().index);
    let mut pushed = Vec::new();
    for i in 0..5u8 {
        node.send(&mut client, &[b'P', i]);
        pushed.push(node.machine.applied().unwrap().index);
    }
    let after = |node: &Node, cursor| node.machine.pushes_after(cursor, 99);
    let kept = after(&node, start).unwrap();
    assert_eq!(kept.iter().map(|kept| kept.cursor.index).collect::<Vec<_>>(), pushed);
    assert_eq!(after(&node, kept[2].cursor).unwrap(), kept[3..]);
    assert_eq!(node.machine.pushes_after(start, 2).unwrap(), kept[..2]);
    for i in 0..12u8 {
        node.send(&mut client, &[b'P', i]); // 65 bytes each: 15 fit into 1,000
    }
    let CursorExpired { trimmed } = after(&node, start).unwrap_err();
    assert_eq!(trimmed, PushCursor { index: pushed[1], ordinal: 0 });
    assert_eq!(after(&node, trimmed).unwrap().len(), 15);
    let end = PushCursor::end_of(LogIndex(u64::MAX));
    assert!(after(&node, end).unwrap().is_empty());
    let mut replayed = node.replayed(&hostile());
    assert_eq!(after(&replayed, trimmed), after(&node, trimmed));
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
}

#[test]
fn pushes_of_one_tick_are_numbered_through() {
    let mut node = Node::with(&hostile(), Limits { retained_push_bytes: 1 << 20, ..limits() });
    let clients = [node.open(), node.open(), node.open()];
    for _ in 0..12 {
        node.time_us += TICK_US;
        node.tick();
    }
    assert!(clients.iter().all(|client| !node.machine.has_session(&client.session)));
    let mut ids: Vec<[u8; 16]> = clients.iter().map(|client| client.session.0).collect();
    ids.sort_unstable();
    let retained = node.machine.pushes_after(PushCursor::default(), 99).unwrap();
    let index = retained.iter().find(|kept| kept.push.payload[..] == [3]).unwrap().cursor.index;
    let expiry: Vec<_> = retained.iter().filter(|kept| kept.cursor.index == index).collect();
    assert_eq!(expiry.iter().map(|kept| kept.cursor.ordinal).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let to: Vec<[u8; 16]> = expiry.iter().map(|kept| kept.push.to).collect();
    assert_eq!(to[..3], ids, "in the order of session ids, before the module's own tick");
    assert_eq!(expiry[3].push.payload[..], [1]);
}
