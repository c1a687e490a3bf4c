//! Images that nobody wrote: well-formed hashes around what no machine says.

use std::sync::Arc;

use bytes::Bytes;
use replicator_types::{ClusterId, Lineage, Seed, codec};
use xxhash_rust::xxh3::xxh3_128;

use super::*;
use crate::{
    engine,
    entry::{Command, Entry},
    limits::{Limits, LimitsError},
    machine::{Machine, ModuleSource},
};

const PAGE: usize = 4 << 10;

struct OneModule(Bytes);

impl ModuleSource for OneModule {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        (engine::hash(&self.0) == *hash).then(|| self.0.clone())
    }
}

fn modules() -> Arc<OneModule> {
    Arc::new(OneModule(wat::parse_str(include_str!("../tests/machine/guest.wat")).expect("it is valid").into()))
}

/// The head of a machine that has just begun: no sessions, no pushes, two pages of memory, three globals.
fn head() -> Head {
    let limits = Limits {
        memory_pages: 300,
        request_bytes: 100,
        output_bytes: 100,
        sessions: 2,
        session_window: 2,
        ..Limits::default()
    };
    let genesis = Genesis {
        cluster: ClusterId([1; 16]),
        lineage: Lineage(7),
        module: engine::hash(&modules().0),
        app_config: Bytes::new(),
        limits: Limits { retained_push_bytes: 300, ..limits },
        engine: engine::engine_fingerprint(),
    };
    let mut machine = Machine::new(modules());
    let entry = Entry { time_us: 5, seed: Seed::default(), command: Command::Genesis(Box::new(genesis)) };
    machine.apply(Position::new(1, 1), &entry).expect("it begins");
    machine.image().expect("the first").head
}

type Section = (u8, Vec<u8>);

fn forged(head: &Head, sections: &[Section]) -> Vec<u8> {
    let mut bytes = b"RPLIMAG\x02".to_vec();
    let mut section = |(kind, payload): &Section| {
        bytes.push(*kind);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
    };
    section(&(1, codec::encode(head)));
    sections.iter().for_each(section);
    bytes.extend([5, 16, 0, 0, 0]);
    let hash = xxh3_128(&bytes);
    bytes.extend(hash.to_le_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Result<Machine, ImageError> {
    Machine::from_image(&mut &bytes[..], modules())
}

/// That it is refused, and what is said.
fn refused(head: &Head, sections: &[Section], expected: &str) {
    let error = read(&forged(head, sections)).err().unwrap_or_else(|| panic!("taken, instead of {expected:?}"));
    assert!(matches!(error, ImageError::Malformed { .. }), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}; expected {expected:?}");
}

fn with(change: impl FnOnce(&mut Head)) -> Head {
    let mut head = head();
    change(&mut head);
    head
}

/// A run of pages that are all `byte`.
fn run(first: u32, pages: usize, byte: u8) -> Section {
    (4, [&first.to_le_bytes()[..], &vec![byte; pages * PAGE]].concat())
}

fn session(id: u8, floor: u64, outcomes: u32) -> Vec<u8> {
    [&[id; 16][..], &[0; 16], &floor.to_le_bytes(), &outcomes.to_le_bytes()].concat()
}

fn outcome(tag: u8, text: &[u8]) -> Vec<u8> {
    [&[0; 40][..], &[tag], &(text.len() as u32).to_le_bytes(), text].concat()
}

fn push(index: u64, bytes: usize) -> Vec<u8> {
    [&index.to_le_bytes()[..], &[0; 20], &(bytes as u32).to_le_bytes(), &vec![1; bytes]].concat()
}

#[test]
fn what_a_machine_could_have_written_is_taken() {
    let head = with(|head| (head.sessions, head.pushes, head.memory_bytes) = (2, 2, 258 << 16));
    let sessions = [session(3, 1, 2), outcome(0, &[7; 99]), outcome(10, b"too large"), session(4, 9, 0)].concat();
    let pushes = [push(1, 100), push(2, 72)].concat();
    let pages = [run(0, 1, 1), run(255, 1, 1), run(256, 256, 2), run(512, 1, 3), run(4_127, 1, 4)];
    let machine = read(&forged(&head, &[vec![(2, sessions), (3, pushes)], pages.to_vec()].concat()));
    let mut machine = machine.expect("there is nothing wrong with it");
    assert_eq!((machine.stats().sessions, machine.stats().memory_bytes), (2, 258 << 16));
    assert_eq!(machine.pushes_after(PushCursor::default(), 9).expect("they are kept").len(), 2);
    let mut bytes = Vec::new();
    machine.image().expect("the first").write_to(&mut bytes).expect("a vector takes it");
    assert!(read(&bytes).is_ok_and(|mut again| again.state_hash() == machine.state_hash()));
}

#[test]
fn sections_have_their_order() {
    let (mut bytes, one) = (forged(&head(), &[]), || session(3, 1, 0));
    let head_again = (1, codec::encode(&head()));
    refused(&head(), &[head_again], "Head after");
    refused(&head(), &[run(0, 1, 1), (3, push(1, 1))], "Pushes after Pages");
    refused(
        &with(|head| (head.sessions, head.pushes) = (1, 1)),
        &[(3, push(1, 1)), (2, one())],
        "0 sessions instead of 1",
    );
    refused(&head(), &[(6, vec![])], "unknown kind 6");
    refused(&head(), &[(5, vec![0; 15])], "hash of 15 bytes");
    for kind in [0, 2, 3, 4, 5, 99] {
        bytes[8] = kind;
        assert!(read(&bytes).is_err());
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_they_are_believed() {
    for kind in [1, 2, 3, 4, 5] {
        let mut bytes = if kind == 1 { b"RPLIMAG\x02".to_vec() } else { forged(&head(), &[]) };
        bytes.truncate(if kind == 1 { 8 } else { bytes.len() - 21 });
        bytes.extend([kind, 255, 255, 255, 255]);
        let error = read(&bytes).err().expect("refused");
        assert!(matches!(error, ImageError::Malformed { .. }), "kind {kind}: {error:?}");
    }
    let lots = |head: &mut Head| (head.sessions, head.pushes) = (u64::MAX, u64::MAX);
    refused(&with(lots), &[], "0 sessions instead of");
}

#[test]
fn the_module_must_be_able_to_be_in_that_state() {
    refused(&with(|head| head.memory_bytes = 0), &[], "memory of 0 bytes");
    refused(&with(|head| head.memory_bytes = 1 << 16), &[], "it can have 131072 to");
    refused(&with(|head| head.memory_bytes += 4_096), &[], "memory of");
    refused(&with(|head| head.memory_bytes = 301 << 16), &[], "memory of");
    refused(&with(|head| head.memory_bytes = u64::MAX << 16), &[], "memory of");
    refused(&with(|head| head.globals.truncate(2)), &[], "2 mutable globals");
    refused(&with(|head| head.globals.push(1)), &[], "4 mutable globals");
    refused(&with(|head| head.globals[2] |= 1 << 40), &[], "such values in its globals");
    for input in [0, (2 << 16) - 163, 2 << 16, u64::MAX] {
        refused(&with(|head| head.input = input), &[], "its input there");
    }
}

#[test]
fn pages_have_one_way_to_be_written() {
    refused(&head(), &[run(32, 1, 1)], "page 32 and so on, beyond the memory");
    refused(&head(), &[run(31, 2, 1)], "beyond the memory");
    refused(&head(), &[run(u32::MAX, 1, 1)], "beyond the memory");
    refused(&head(), &[run(5, 1, 1), run(5, 1, 1)], "page 5 after page 5");
    refused(&head(), &[run(5, 2, 1), run(6, 1, 1)], "page 6 after page 6");
    refused(&head(), &[run(5, 1, 1), run(4, 1, 1)], "page 4 after page 5");
    refused(&head(), &[run(5, 1, 1), run(6, 1, 1)], "isn't cut where it should be");
    refused(&head(), &[run(5, 1, 0)], "page 5 is there, and zero");
    refused(&head(), &[run(5, 0, 0)], "run of pages of 4 bytes");
    refused(&head(), &[(4, vec![])], "run of pages of 0 bytes");
    refused(&head(), &[(4, vec![1; 4_101])], "run of pages of 4101 bytes");
    let large = with(|head| head.memory_bytes = 300 << 16);
    refused(&large, &[run(0, 257, 1)], "run of pages of");
    refused(&large, &[run(1, 256, 1)], "isn't cut where it should be");
}

#[test]
fn sessions_are_those_that_the_limits_allow() {
    let of = |count| with(|head| head.sessions = count);
    let sessions = |records: &[Vec<u8>]| [(2, records.concat())];
    refused(&of(2), &sessions(&[session(3, 1, 0)]), "1 sessions instead of 2");
    refused(&of(1), &sessions(&[session(3, 1, 0), session(4, 1, 0)]), "more than 1 sessions");
    refused(&of(3), &sessions(&[session(3, 1, 0), session(4, 1, 0), session(5, 1, 0)]), "more than 2 sessions");
    refused(&of(2), &sessions(&[session(4, 1, 0), session(3, 1, 0)]), "isn't in its place");
    refused(&of(2), &sessions(&[session(3, 1, 0), session(3, 1, 0)]), "isn't in its place");
    refused(&of(1), &sessions(&[session(3, 0, 0)]), "0 outcomes, from 0 on");
    refused(&of(1), &sessions(&[session(3, u64::MAX, 1)]), "1 outcomes, from 18446744073709551615 on");
    refused(&of(1), &sessions(&[session(3, 1, 3)]), "3 outcomes");
    refused(&of(1), &sessions(&[session(3, 1, 1)]), "isn't complete");
    refused(&of(1), &sessions(&[session(3, 1, 1), outcome(0, &[0; 101])]), "outcome of 101 bytes");
    refused(&of(1), &sessions(&[session(3, 1, 1), outcome(11, b"")]), "outcome of the kind 11");
    refused(&of(1), &sessions(&[session(3, 1, 1), outcome(1, &[255])]), "no text");
    refused(&of(1), &sessions(&[session(3, 1, 1), outcome(1, &[b'a'; (16 << 10) + 1])]), "outcome of 16385 bytes");
    let full = [session(3, 1, 2), outcome(0, &[0; 100]), outcome(0, &[])];
    refused(&of(1), &sessions(&full), "more than a full window");
    refused(&of(1), &sessions(&[session(3, 1, 0)[..43].to_vec()]), "cut off by its section's end");
    refused(&of(1), &sessions(&[session(3, 1, 1), outcome(0, b"abc")[..47].to_vec()]), "longer than its section");
    refused(&of(0), &sessions(&[]), "section without records");
}

#[test]
fn pushes_are_those_that_the_limits_allow() {
    let of = |count| with(|head| head.pushes = count);
    let pushes = |records: &[Vec<u8>]| [(3, records.concat())];
    refused(&of(2), &pushes(&[push(1, 1)]), "1 pushes instead of 2");
    refused(&of(1), &pushes(&[push(1, 1), push(2, 1)]), "more pushes than 1");
    refused(&of(3), &pushes(&[push(1, 100), push(2, 9)]), "2 pushes instead of 3");
    refused(&of(3), &pushes(&[push(1, 90), push(2, 90), push(3, 90)]), "more pushes than 3, or than 300 bytes");
    refused(&of(2), &pushes(&[push(2, 1), push(1, 1)]), "isn't in its place");
    refused(&of(2), &pushes(&[push(2, 1), push(2, 1)]), "isn't in its place");
    refused(&of(1), &pushes(&[push(2, 101)]), "push of 101 bytes");
    let trimmed =
        with(|head| (head.pushes, head.trimmed) = (1, Some(PushCursor::end_of(replicator_types::LogIndex(2)))));
    refused(&trimmed, &pushes(&[push(2, 1)]), "isn't in its place");
}

#[test]
fn what_genesis_refuses_is_refused_here_too() {
    let refusal = |head: &Head| read(&forged(head, &[])).err().expect("refused");
    let begun = |change: fn(&mut Genesis)| {
        with(|head| {
            change(&mut head.genesis);
            head.history = History::begin(&head.genesis);
        })
    };
    let other = refusal(&begun(|genesis| genesis.engine = "wasmtime-1.0.0".to_owned()));
    assert!(matches!(other, ImageError::Refused(Halt::EngineMismatch { logged, .. }) if logged == "wasmtime-1.0.0"));
    let out_of_range = refusal(&with(|head| head.genesis.limits.memory_pages = 65_536));
    assert!(matches!(out_of_range, ImageError::Refused(Halt::LimitsRefused(LimitsError { name: "memory_pages", .. }))));
    let too_small = refusal(&with(|head| head.genesis.limits.memory_pages = 1));
    assert!(matches!(too_small, ImageError::Refused(Halt::ModuleRefused(_))), "{too_small:?}");
    let missing = refusal(&begun(|genesis| genesis.module = ModuleHash([9; 32])));
    assert!(matches!(missing, ImageError::Refused(Halt::ModuleMissing(ModuleHash(hash))) if hash == [9; 32]));
}

#[test]
fn the_engine_in_force_is_what_counts() {
    let upgraded = with(|head| {
        head.genesis.engine = "the first one".to_owned();
        head.history = History::begin(&head.genesis);
        assert!(head.history.upgrade("the first one", &engine::engine_fingerprint()));
    });
    let mut machine = read(&forged(&upgraded, &[])).expect("this program is the one to go on with it");
    assert_eq!((machine.engine(), machine.awaits_engine()), (Some(&*engine::engine_fingerprint()), None));
    assert_eq!(machine.genesis().map(|genesis| &*genesis.engine), Some("the first one"));
    let entry = |command| Entry { time_us: 6, seed: Seed::default(), command };
    machine.apply(Position::new(1, 2), &entry(Command::Tick)).expect("it goes on");
    // The order of before, come twice.
    let again = Command::Upgrade { from: "the first one".to_owned(), to: engine::engine_fingerprint() };
    let again = machine.apply(Position::new(1, 3), &entry(again)).expect("it goes on").outcome;
    assert_eq!(again, crate::Outcome::UpgradeRefused { engine: engine::engine_fingerprint() });
}

#[test]
fn modules_have_followed_one_another() {
    let at = Position::new;
    let spans = |position: Position, spans: &[(Position, u8)]| {
        with(|head| {
            head.position = position;
            spans.iter().for_each(|(from, module)| head.history.activated(*from, ModuleHash([*module; 32])));
        })
    };
    let good = spans(at(3, 9), &[(at(1, 2), 1), (at(1, 3), 2), (at(3, 9), 1)]);
    let missing = read(&forged(&good, &[])).err().expect("that module isn't there");
    assert!(matches!(missing, ImageError::Refused(Halt::ModuleMissing(ModuleHash(hash))) if hash == [1; 32]));
    for bad in [
        &[(at(1, 2), 1), (at(1, 2), 2)][..],
        &[(at(1, 3), 1), (at(1, 2), 2)],
        &[(at(2, 3), 1), (at(1, 4), 2)],
        &[(at(1, 2), 1), (at(1, 3), 1)],
        &[(at(1, 0), 1)],
        &[(at(3, 10), 1)],
        &[(at(4, 9), 1)],
    ] {
        refused(&spans(at(3, 9), bad), &[], "can't have followed one another");
    }
    let other = with(|head| head.genesis.module = ModuleHash([9; 32]));
    refused(&other, &[], "don't begin with that of the genesis");
    // As long as it gets, it fits a head.
    let long: Vec<_> = (1..3_000u64).map(|index| (at(1, index << 40), (index % 2) as u8)).collect();
    let long = spans(at(1, 3_000 << 40), &long);
    assert_eq!(long.history.modules().len(), 1_024);
    assert!(codec::encode(&long).len() < 64 << 10);
    let missing = read(&forged(&long, &[])).err().expect("that module isn't there");
    assert!(matches!(missing, ImageError::Refused(Halt::ModuleMissing(_))), "{missing:?}");
}

/// The head as version 1 wrote it, without what came later.
#[derive(Serialize, Deserialize)]
struct FirstHead(
    (Position, Digest),
    (ClusterId, Lineage, ModuleHash, Bytes, FirstLimits, String),
    (Vec<Lineage>, i64, u64, i64),
    (u64, Vec<GlobalBits>, u64, u64, u64),
    Option<PushCursor>,
);

type FirstLimits = (u64, u64, u32, u32, u32, u32, u32, u64, u64, u64, u64);

impl Format for FirstHead {
    const WHAT: &'static str = "first head";
}

#[test]
fn images_of_version_1_are_read() {
    let Head {
        position, digest, genesis, lineages, time_us, clock_us, ticked_at_us, memory_bytes, globals, input, ..
    } = head();
    let Genesis { cluster, lineage, module, app_config, limits: of, engine } = genesis;
    let sizes = (of.apply_fuel, of.query_fuel, of.memory_pages, of.request_bytes, of.output_bytes, of.sessions);
    let times = (of.session_window, of.session_ttl_us, of.session_ttl_max_us, of.retained_push_bytes, of.tick_us);
    let limits = (sizes.0, sizes.1, sizes.2, sizes.3, sizes.4, sizes.5, times.0, times.1, times.2, times.3, times.4);
    let first = FirstHead(
        (position, digest),
        (cluster, lineage, module, app_config, limits, engine),
        (lineages, time_us, clock_us, ticked_at_us),
        (memory_bytes, globals, input, 0, 0),
        None,
    );
    let payload = codec::encode(&first);
    let mut bytes =
        [b"RPLIMAG\x01\x01", &(payload.len() as u32).to_le_bytes()[..], &payload, &[5, 16, 0, 0, 0]].concat();
    bytes.extend(xxh3_128(&bytes).to_le_bytes());
    let (mut old, mut new) = (read(&bytes).expect("it is still read"), read(&forged(&head(), &[])).expect("good"));
    assert_eq!(old.state_parts(), new.state_parts());
    assert_eq!((old.modules(), old.engine()), (new.modules(), new.engine()));
}

#[test]
fn a_hash_that_is_wrong_is_found() {
    let mut bytes = forged(&head(), &[run(3, 1, 1)]);
    assert!(read(&bytes).is_ok());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(read(&bytes).err().expect("refused"), ImageError::Damaged { .. }));
}
