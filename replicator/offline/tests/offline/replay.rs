//! A machine at any index is the one that was there, from genesis or from an image, through swaps; and what changed is told.

use replicator_machine::{Command, Outcome};
use replicator_offline::{Beginning, History, OfflineError, Replay, changes::changes};
use replicator_types::LogIndex;

use crate::{
    memory::{Memory, limits},
    notes::{V1, V2},
};

/// Requests, a trap, a push, a swap and requests again; what the machine was after each entry.
fn history() -> (Memory, Vec<(u64, u64)>) {
    let (v1, v2) = (V1.wasm(), V2.wasm());
    let mut log = Memory::new(&[&v1, &v2], limits());
    let mut states = vec![(0, 0); 2];
    states[1] = (log.machine.digest().0, log.machine.state_hash().0);
    let mut client = log.open();
    states.push((log.machine.digest().0, log.machine.state_hash().0));
    for step in 0..40 {
        match step {
            10 => log.skip(),
            20 => {
                let expected = log.machine.active_module().unwrap();
                let module = replicator_offline::Modules::default().add(v2.clone().into());
                let applied = log.apply(Command::Activate { module, expected });
                assert!(matches!(applied.outcome, Outcome::Activated { .. }), "{applied:?}");
            }
            7 | 30 => drop(log.send(&mut client, b"u")),
            8 => drop(log.send(&mut client, b"Ppushed")),
            _ => drop(log.send(&mut client, format!("atext {step}").as_bytes())),
        }
        states.push((log.machine.digest().0, log.machine.state_hash().0));
    }
    (log, states)
}

fn replayed(log: &Memory, until: u64) -> Result<(u64, u64, Beginning), OfflineError> {
    let mut replay = Replay::begin(log, LogIndex(until), log.modules())?;
    replay.run_to(LogIndex(until), &mut |_| {})?;
    let beginning = replay.beginning();
    let machine = replay.machine();
    assert_eq!(machine.applied().unwrap().index, LogIndex(until));
    Ok((machine.digest().0, machine.state_hash().0, beginning))
}

#[test]
fn the_machine_at_every_index_is_the_one_that_was_there() {
    let (mut log, states) = history();
    for (index, (digest, state)) in states.iter().enumerate().skip(1) {
        assert_eq!(replayed(&log, index as u64).unwrap(), (*digest, *state, Beginning::Genesis), "at {index}");
    }
    assert!(matches!(replayed(&log, 99), Err(OfflineError::Beyond { .. })));

    // From here on the log begins behind an image.
    log.take_image();
    let mut client = log.open();
    log.send(&mut client, b"alater");
    let position = log.image.as_ref().unwrap().0;
    let last = log.last().unwrap().index.0;
    let expected = (log.machine.digest().0, log.machine.state_hash().0, Beginning::Image(position));
    assert_eq!(replayed(&log, last).unwrap(), expected);
    let early = replayed(&log, 5).unwrap_err();
    assert!(matches!(early, OfflineError::Unreachable { .. }), "{early}");
    assert!(early.to_string().contains(&format!("from {} on", position.index)), "{early}");

    // A damaged image is passed over, and then there is no way.
    let bytes = &mut log.image.as_mut().unwrap().1;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert!(matches!(replayed(&log, last), Err(OfflineError::Unreachable { .. })));
}

#[test]
fn what_changed_between_two_indices_is_told_by_part() {
    let (log, states) = history();
    let changed = changes(&log, LogIndex(5), LogIndex(15), &mut |_| {}).unwrap();
    assert_eq!((changed.before.state_hash.0, changed.after.state_hash.0), (states[5].1, states[15].1));
    let kinds: Vec<_> = changed.tally.kinds().collect();
    assert_eq!(kinds, [("request", 9), ("strategy's own", 1)]);
    let outcomes: Vec<_> = changed.tally.outcomes().collect();
    assert_eq!(outcomes, [("executed", 8), ("trapped", 1)]);
    assert_eq!((changed.tally.pushes, changed.tally.push_bytes, changed.after.pushes_len), (1, 6, 1));
    assert!(changed.memory.differing > 0 && !changed.memory.runs.is_empty(), "{:?}", changed.memory);
    assert_eq!((changed.sessions.used.len(), changed.sessions.opened.len()), (1, 0));
    assert_ne!(changed.before.parts.memory, changed.after.parts.memory);
    assert_eq!(changed.before.parts.history, changed.after.parts.history);

    // Over the swap; and where nothing but the position changes.
    let over = changes(&log, LogIndex(15), LogIndex(30), &mut |_| {}).unwrap();
    assert!(over.tally.outcomes().any(|outcome| outcome == ("activated", 1)), "{:?}", over.tally);
    assert_ne!(over.before.parts.history, over.after.parts.history);
    let skipped = changes(&log, LogIndex(12), LogIndex(13), &mut |_| {}).unwrap();
    assert_eq!((skipped.memory.differing, skipped.sessions.untouched), (0, 1));
    assert_eq!(skipped.before.parts.sessions, skipped.after.parts.sessions);
}
