//! Snapshots: everything comes back, and what isn't a snapshot is refused. Random states: `src/invariants.rs`.

use chat_module::Chat;
use replicator_proto::chat::v1::{DeleteAccount, chat_request::Action};
use statemachine::testing::{Harness, records};

use crate::world::{World, edit, react, texts};

/// The format that the module writes.
const SCHEMA: u32 = 2;

/// A server in which every kind of record has something to say.
fn full() -> World {
    let (mut world, [ada, bob, eve]) = World::of(["ada", "bob", "eve"]);
    world.send(ada, "bob", "read");
    world.send(eve, "bob", "from somebody who goes");
    world.read_next(bob, 1);
    world.send(bob, "ada", "unread");
    world.ask(bob, react(1, "\u{1f44d}"));
    world.ask(ada, react(3, "ok"));
    world.ask(bob, edit("ada", 3, "unread, and edited"));
    world.ask(eve, Action::DeleteAccount(DeleteAccount {}));
    world
}

fn restore(stream: &[u8]) -> Result<Harness<Chat>, String> {
    Harness::restored(b"", SCHEMA, &[stream.to_vec()])
}

#[test]
fn a_restored_server_goes_on_for_its_sessions() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    world.send(ada, "bob", "before");
    world.harness = world.harness.swap(b"").unwrap();
    world.send(ada, "bob", "after");
    assert_eq!(texts(&world.read_next(bob, 10).messages), ["before", "after"]);
}

#[test]
fn a_snapshot_of_a_restored_server_is_the_same() {
    let stream = full().harness.snapshot().concat();
    assert_eq!(restore(&stream).unwrap().snapshot().concat(), stream);
}

#[test]
fn the_bytes_of_schema_2_stay_as_they_are() {
    let (mut world, [ada]) = World::of(["ada"]);
    world.send(ada, "ada", "hi");
    world.ask(ada, react(1, "ok"));
    world.ask(ada, edit("ada", 1, "ho"));
    let key = crate::world::key("ada").verifying_key().to_bytes();
    let (one, two) = (1u64.to_le_bytes(), 2u64.to_le_bytes());
    let [sent, edited] = [4_000, 6_000].map(|after| (statemachine::testing::START_TIME_US + after).to_le_bytes());
    let expected: [&[&[u8]]; 6] = [
        &[&[0], &two, &two],
        &[&[1], &one, &key, b"ada"],
        &[&[2], &ada.0, &one],
        &[&[3], &one, &one, &[1], &sent, &one, &[3], b"ada", b"ho"],
        &[&[16], &one, &one, b"ok"],
        &[&[17], &one, &one, &edited],
    ];
    assert_eq!(records(&world.harness.snapshot()), expected.map(<[_]>::concat));
}

#[test]
fn a_snapshot_of_another_schema_is_refused() {
    let chunks = full().harness.snapshot();
    for schema in [0, 3] {
        let error = Harness::<Chat>::restored(b"", schema, &chunks).err().unwrap();
        assert!(error.contains(&format!("this one is of {schema}")), "{error}");
    }
}

#[test]
fn a_snapshot_cut_anywhere_is_refused() {
    let stream = full().harness.snapshot().concat();
    for len in 0..stream.len() {
        assert!(restore(&stream[..len]).is_err(), "{len} of {} bytes were taken", stream.len());
    }
}

#[test]
fn a_snapshot_with_a_flipped_bit_is_refused_or_restored_but_never_panics() {
    let stream = full().harness.snapshot().concat();
    for bit in 0..8 * stream.len() {
        let mut damaged = stream.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(mut restored) = restore(&damaged) {
            assert_eq!(restored.snapshot().concat().len(), stream.len(), "bit {bit}");
        }
    }
}
