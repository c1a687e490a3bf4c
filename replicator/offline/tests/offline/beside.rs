//! Another module beside the one that ran: what differs is counted and shown, and nothing else.

use bytes::Bytes;
use replicator_machine::Command;
use replicator_offline::{
    History, Modules,
    beside::{BesideError, Compared, Kind, States, beside},
};

use crate::{
    memory::{Client, Memory, limits},
    notes::{Notes, PANIC, REFUSE, V1, V2},
};

fn log() -> (Memory, Client) {
    let (v1, v2) = (V1.wasm(), V2.wasm());
    let mut log = Memory::new(&[&v1, &v2], limits());
    let client = log.open();
    (log, client)
}

fn compare(log: &Memory, new: &Notes) -> Result<Compared, BesideError> {
    beside(log, new.wasm().into(), log.last().unwrap().index, &mut |_| {}, &mut || {})
}

#[test]
fn a_build_that_does_the_same_differs_in_nothing() {
    let (mut log, mut client) = log();
    for step in 0..50 {
        log.send(&mut client, format!("atext {step}").as_bytes());
    }
    let rebuilt = Notes { description: "app=notes version=1.0.1 schema=1 accepts_from=1", ..V1 };
    let compared = compare(&log, &rebuilt).unwrap();
    assert_eq!((compared.differences.total(), compared.tally.requests()), (0, 50));
    assert!(matches!(compared.states, States::Equal { bytes } if bytes > 300), "{:?}", compared.states);
    assert_eq!((&*compared.old.1, &*compared.new.1), (V1.description, rebuilt.description));
    assert_eq!(compared.from.index.0, 1, "from the genesis entry on");
}

#[test]
fn responses_traps_and_pushes_that_differ_are_told_with_examples() {
    let (mut log, mut client) = log();
    log.send(&mut client, b"abefore");
    log.take_image();
    for _ in 0..8 {
        log.send(&mut client, b"aafter");
    }
    log.send(&mut client, b"u");
    log.send(&mut client, b"Ppush");
    let compared = compare(&log, &V2).unwrap();
    assert_eq!(compared.from, log.image.as_ref().unwrap().0);
    let counts = Kind::ALL.map(|kind| compared.differences.count(kind));
    assert_eq!(counts, [8, 0, 0, 0], "it counts by tens, and traps and pushes alike");
    assert_eq!(compared.traps, (1, 1));
    let examples = compared.differences.examples();
    assert_eq!(examples.len(), 5, "the first ones");
    assert_eq!(examples[0].position.index, compared.from.index.next());
    assert_ne!(examples[0].old.outcome, examples[0].new.outcome);
    assert!(matches!(compared.states, States::Differ { at: 0, .. }), "{:?}", compared.states);
}

#[test]
fn comparison_begins_anew_after_a_swap_and_a_module_for_the_later_one_is_taken() {
    let (mut log, mut client) = log();
    log.send(&mut client, b"aone");
    let module = Modules::default().add(V2.wasm().into());
    let expected = log.machine.active_module().unwrap();
    log.apply(Command::Activate { module, expected });
    let swap = log.last().unwrap();
    log.send(&mut client, b"atwo");
    // It reads only what the second one writes.
    let v3 = Notes { description: "app=notes version=3 schema=3 accepts_from=2,3", step: 10, ..V1 };
    let compared = compare(&log, &v3).unwrap();
    assert_eq!((compared.from, compared.tally.requests(), compared.differences.total()), (swap, 1, 0));
    assert_eq!(compared.old.0, module);
    // An activation that is refused changes nothing, and hides nothing.
    log.apply(Command::Activate { module: expected, expected });
    log.send(&mut client, b"athree");
    assert_eq!(compare(&log, &v3).unwrap().tally.requests(), 2);
    assert!(matches!(compare(&log, &V2), Err(BesideError::Same(_))));
}

#[test]
fn a_module_that_would_be_refused_says_why() {
    let (mut log, mut client) = log();
    log.send(&mut client, b"atext");
    let restore = |hook| Notes { description: V2.description, restore: hook, ..V1 };
    for (new, why) in [
        (restore(REFUSE), "oops"),
        (restore(PANIC), "oops"),
        (Notes { description: "app=other version=1 schema=1 accepts_from=1", ..V1 }, "\"other\""),
        (Notes { description: "app=notes version=9 schema=9 accepts_from=8,9", ..V1 }, "8,9"),
    ] {
        match compare(&log, &new) {
            Err(error @ BesideError::Refused(_)) => assert!(error.to_string().contains(why), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    let garbage = beside(&log, Bytes::from_static(b"no wasm"), log.last().unwrap().index, &mut |_| {}, &mut || {});
    assert!(matches!(garbage, Err(BesideError::Refused(_))), "{garbage:?}");
}
