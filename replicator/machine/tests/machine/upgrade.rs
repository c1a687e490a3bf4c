//! Engine barriers: programs of one engine apply nothing after an upgrade, and leave an image for those of the next.

use replicator_machine::{Command, Halt, ImageError, Machine, Outcome, engine_fingerprint};
use replicator_types::Position;

use crate::harness::*;

fn upgrade(from: &str, to: &str) -> Command {
    Command::Upgrade { from: from.to_owned(), to: to.to_owned() }
}

#[test]
fn nothing_is_applied_after_an_upgrade_but_reads_and_images_work() {
    let mut node = Node::new();
    let mut client = node.open();
    node.reply(&mut client, b"c");
    assert_eq!((node.machine.awaits_engine(), node.machine.engine()), (None, Some(&*engine_fingerprint())));
    assert_eq!(node.apply(upgrade(&engine_fingerprint(), "next")).outcome, Outcome::Upgraded);
    assert_eq!((node.machine.awaits_engine(), node.machine.engine()), (Some("next"), Some("next")));
    let (at, hash) = (node.machine.applied(), node.machine.state_hash());
    for command in [Command::Tick, upgrade("next", "later"), Command::OpenSession { ttl_us: 0 }] {
        match node.try_apply(command) {
            Err(halt @ Halt::AwaitsEngine { .. }) => {
                let text = halt.to_string();
                assert!(
                    text.contains("upgraded to the engine \"next\"") && text.contains("start the program"),
                    "{text}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((node.machine.applied(), node.machine.state_hash()), (at, hash));
    assert_eq!(number(&node.query_reply(b"c")), 2);
    // What the strategy keeps to itself goes on.
    node.machine.skip(Position::new(9, 99));
    let image = node.machine.image().expect("that is what the barrier is for");
    assert_eq!((image.engine(), image.position()), ("next", Position::new(9, 99)));
}

#[test]
fn a_program_of_the_old_engine_does_not_go_on_from_the_barrier() {
    let mut node = Node::new();
    node.apply(upgrade(&engine_fingerprint(), "next"));
    let mut bytes = Vec::new();
    node.machine.image().unwrap().write_to(&mut bytes).unwrap();
    let refused = Machine::from_image(&mut &bytes[..], node.modules.clone()).err().expect("it is for others");
    match &refused {
        ImageError::Refused(Halt::EngineMismatch { logged, ours }) => {
            assert_eq!((&**logged, ours), ("next", &engine_fingerprint()));
        }
        other => panic!("{other:?}"),
    }
    assert!(refused.to_string().contains("start the program that the cluster runs"), "{refused}");
    // Nor by replaying the log: it comes to the barrier again.
    let mut replayed = node.replayed(&hostile());
    assert_eq!(replayed.machine.state_hash(), node.machine.state_hash());
    assert!(matches!(replayed.try_apply(Command::Tick), Err(Halt::AwaitsEngine { .. })));
}

#[test]
fn an_upgrade_of_another_engine_or_to_none_does_nothing() {
    let ours = engine_fingerprint();
    let mut node = Node::new();
    let long = "x".repeat(1_025);
    for (from, to) in [("former", &*ours), ("former", "next"), (&ours, &ours), (&ours, ""), (&ours, &long)] {
        let outcome = node.apply(upgrade(from, to)).outcome;
        assert_eq!(outcome, Outcome::UpgradeRefused { engine: ours.clone() }, "{from} to {to}");
        assert_eq!(node.machine.awaits_engine(), None);
    }
    node.open();
    assert_eq!(node.replayed(&hostile()).machine.state_hash(), node.machine.state_hash());
}
