//! Version 2 takes over from version 1, and version 1 from version 2: what goes on, and what a rollback loses.

use chat_module::Chat;
use chat_v1_module::Chat as ChatV1;
use replicator_proto::chat::v1::ChatErrorCode as Code;
use statemachine::testing::{Harness, records, snapshot};

use crate::world::{World, edit, react, texts};

#[test]
fn each_version_says_which_it_is() {
    let told = |description: statemachine::Description| String::from_utf8(description.as_bytes().to_vec()).unwrap();
    let described = [told(statemachine::describe::<ChatV1>()), told(statemachine::describe::<Chat>())];
    assert_eq!(
        described,
        ["app=chat version=1.0.0 schema=1 accepts_from=1,2", "app=chat version=2.0.0 schema=2 accepts_from=1,2"]
    );
}

#[test]
fn version_1_refuses_what_version_2_brought() {
    let (mut world, [ada]) = World::<ChatV1>::running(["ada"]);
    let id = world.send(ada, "ada", "hi");
    assert_eq!(world.refused(ada, react(id, "ok")), Code::UnknownAction);
    assert_eq!(world.refused(ada, edit("ada", id, "ho")), Code::UnknownAction);
}

#[test]
fn a_conversation_goes_on_through_a_swap_and_a_rollback() {
    let (mut world, [ada, bob]) = World::<ChatV1>::running(["ada", "bob"]);
    let first = world.send(ada, "bob", "from version 1");
    world.read_next(bob, 1);

    let mut world = world.swap::<Chat>();
    let second = world.send(ada, "bob", "from version 2");
    world.ask(bob, react(first, "\u{1f44d}"));
    world.ask(ada, edit("bob", second, "from version 2, edited"));
    let edited = world.mailbox(bob);
    assert_eq!((edited[0].reaction.as_str(), edited[1].edited_us > 0), ("\u{1f44d}", true));

    // The reactions and the marks of editing are lost, the texts are not.
    let mut world = world.swap::<ChatV1>();
    assert_eq!(world.send(ada, "bob", "from version 1 again"), 3);
    let mailbox = world.mailbox(bob);
    assert_eq!(texts(&mailbox), ["from version 1", "from version 2, edited", "from version 1 again"]);
    assert!(mailbox.iter().all(|message| message.reaction.is_empty() && message.edited_us == 0));
    assert_eq!(mailbox.iter().map(|message| message.unread).collect::<Vec<_>>(), [false, true, true]);

    let mut world = world.swap::<Chat>();
    assert_eq!(world.mailbox(bob), mailbox, "they don't come back");
    world.ask(bob, react(first, "ok"));
}

#[test]
fn the_bytes_of_schema_1_stay_as_they_are() {
    let (mut world, [ada]) = World::<ChatV1>::running(["ada"]);
    world.send(ada, "ada", "hi");
    let key = crate::world::key("ada").verifying_key().to_bytes();
    let (one, two) = (1u64.to_le_bytes(), 2u64.to_le_bytes());
    let sent = (statemachine::testing::START_TIME_US + 4_000).to_le_bytes();
    let expected: [&[&[u8]]; 4] = [
        &[&[0], &two, &two],
        &[&[1], &one, &key, b"ada"],
        &[&[2], &ada.0, &one],
        &[&[3], &one, &one, &[1], &sent, &one, &[3], b"ada", b"hi"],
    ];
    let expected = expected.map(<[_]>::concat);
    let written = world.harness.snapshot();
    assert_eq!(records(&written), expected);
    // What version 2 has nothing to add to, it writes as version 1 does.
    let mut restored = Harness::<Chat>::restored(b"", 1, &snapshot(&expected)).unwrap();
    assert_eq!(restored.snapshot(), written);
}

#[test]
fn version_1_skips_additions_of_schema_2_and_of_no_other() {
    let counters = [&[0][..], &1u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    let with = |kind: u8| snapshot([counters.clone(), vec![kind; 4]]);
    for kind in [16, 17, 200] {
        let mut restored = Harness::<ChatV1>::restored(b"", 2, &with(kind)).unwrap();
        assert_eq!(records(&restored.snapshot()), std::slice::from_ref(&counters));
        let error = Harness::<ChatV1>::restored(b"", 1, &with(kind)).err().unwrap();
        assert_eq!(error, format!("schema 1 has no record of kind {kind}"));
        for schema in [1, 2] {
            let damaged = Harness::<Chat>::restored(b"", schema, &with(kind));
            assert!(damaged.is_err(), "version 2 knows all kinds of schema {schema}, and {kind} isn't like this");
        }
    }
    for kind in 4..16 {
        assert!(Harness::<ChatV1>::restored(b"", 2, &with(kind)).is_err(), "kind {kind} can't be skipped");
    }
}

#[test]
fn damaged_additions_are_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    world.send(ada, "ada", "hi");
    let mut written = records(&world.harness.snapshot());
    let addition =
        |kind: u8, message: u64, what: &[u8]| [&[kind][..], &1u64.to_le_bytes(), &message.to_le_bytes(), what].concat();
    let base = written.len();
    for (additions, why) in [
        (vec![addition(16, 2, b"ok")], "belongs to message 2"),
        (vec![addition(16, 1, b"")], "no reaction"),
        (vec![addition(16, 1, b"a b")], "white space"),
        (vec![addition(16, 1, b"ok"), addition(16, 1, b"no")], "not the only one"),
        (vec![addition(17, 1, &0i64.to_le_bytes())], "is no time"),
        (vec![addition(17, 1, &[1; 9])], "too long"),
        (vec![addition(17, 1, &[1; 7])], "breaks off"),
    ] {
        written.truncate(base);
        written.extend(additions);
        let error = Harness::<Chat>::restored(b"", 2, &snapshot(&written)).err().unwrap();
        assert!(error.contains(why), "{error}");
    }
}
