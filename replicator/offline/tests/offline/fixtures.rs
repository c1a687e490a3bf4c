//! A run that was kept comes out the same again, or the first entry that doesn't is named; and no changed byte is taken.

use replicator_machine::{Command, Outcome};
use replicator_offline::{Fixture, FixtureError, FixtureHead, FixtureWriter, History, OfflineError, Replay};

use crate::{
    memory::{Memory, limits},
    notes::{Notes, V1, V2},
};

/// A run of some requests and a swap, kept.
fn kept(with_image: bool) -> (Memory, Vec<u8>) {
    let (v1, v2) = (V1.wasm(), V2.wasm());
    let mut log = Memory::new(&[&v1, &v2], limits());
    let mut client = log.open();
    for _ in 0..5 {
        log.send(&mut client, b"asome text");
    }
    if with_image {
        log.take_image();
    }
    log.send(&mut client, b"u");
    log.send(&mut client, b"Ppush");
    let (module, expected) =
        (replicator_offline::Modules::default().add(v2.clone().into()), log.machine.active_module());
    log.apply(Command::Activate { module, expected: expected.unwrap() });
    log.skip();
    log.send(&mut client, b"amore");

    let until = log.last().unwrap().index;
    let mut replay = Replay::begin(&log, until, log.modules()).unwrap();
    let image = log.image.as_ref();
    let head = FixtureHead { program: "test".into(), image: image.map(|(position, _)| *position) };
    let mut writer = FixtureWriter::begin(Vec::new(), &head, image.map(|(_, bytes)| &bytes[..])).unwrap();
    replay.run::<OfflineError>(until, &mut |_| {}, |at, applied| Ok(writer.add(at, applied)?)).unwrap();
    let bytes = writer.finish(replay.machine(), &[v1.into(), v2.into()]).unwrap();
    (log, bytes)
}

#[test]
fn kept_run_comes_out_the_same_from_genesis_and_from_an_image() {
    for with_image in [false, true] {
        let (mut log, bytes) = kept(with_image);
        let fixture = Fixture::read(bytes.into()).unwrap();
        assert_eq!(fixture.tail().description, V2.description);
        let verified = fixture.verify(&mut |_| {}).unwrap();
        assert!(verified.is_equal() && verified.first.is_none(), "{verified:?}");
        assert_eq!(verified.state_hash.unwrap().0, log.machine.state_hash());
        assert_eq!(verified.tally.requests(), if with_image { 3 } else { 8 });
    }
}

#[test]
fn first_entry_that_comes_to_something_else_is_named() {
    let (_, bytes) = kept(false);
    let fixture = Fixture::read(bytes.into()).unwrap();
    let same = fixture.verify_by(Notes { ..V1 }.wasm().into(), &mut |_| {}).unwrap();
    assert!(same.is_equal() && same.state_hash.is_none(), "{same:?}");
    let other = Notes { step: 3, ..V1 }.wasm();
    let verified = fixture.verify_by(other.into(), &mut |_| {}).unwrap();
    assert!(!verified.is_equal());
    let (position, entry, applied) = verified.first.unwrap();
    assert_eq!(position.index.0, 3, "after a blank, the genesis and an opened session");
    assert!(matches!(entry.command, Command::Request { .. }));
    assert!(matches!(applied.outcome, Outcome::Executed { .. }));
    // The trap and the push say nothing of the count. The swap expects the module that ran.
    assert_eq!(verified.differing, 5 + 1 + 1, "five requests, the swap that is refused, the request after it");

    let (_, bytes) = kept(true);
    let with_image = Fixture::read(bytes.into()).unwrap();
    let error = with_image.verify_by(V2.wasm().into(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, OfflineError::Fixture(FixtureError::BeginsWithImage { .. })), "{error}");
}

#[test]
fn every_changed_byte_and_every_cut_is_found() {
    let (_, bytes) = kept(true);
    // Two modules of some thousand bytes each: every byte of the rest, and some of theirs.
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(Fixture::read(changed.into()).is_err(), "byte {at} was changed, and nobody noticed");
        assert!(Fixture::read(bytes[..at].to_vec().into()).is_err(), "it was cut at {at}, and nobody noticed");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(Fixture::read(longer.into()), Err(FixtureError::Damaged { .. })));
    assert!(matches!(Fixture::read(b"something".to_vec().into()), Err(FixtureError::NotAFixture)));
}
