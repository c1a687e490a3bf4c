//! Images: a machine made of one is the machine that was imaged (invariant 13), whatever happened meanwhile.

use std::{
    io::{self, Write},
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use proptest::prelude::*;
use replicator_machine::{
    Applied, Command, Entry, Halt, Image, ImageError, ImageSummary, ImageUnavailable, Machine, PushCursor, bench,
};
use replicator_types::{Position, Sequence};

use crate::harness::*;

fn written(image: Image) -> (Vec<u8>, ImageSummary) {
    let mut bytes = Vec::new();
    let summary = image.write_to(&mut bytes).expect("a vector takes it");
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.content_hash.to_le_bytes(), bytes[bytes.len() - 16..]);
    (bytes, summary)
}

fn image(machine: &mut Machine) -> Vec<u8> {
    written(machine.image().expect("there is no other one")).0
}

fn restored(bytes: &[u8]) -> Result<Machine, ImageError> {
    let (modules, _) = Modules::with(&hostile());
    Machine::from_image(&mut &bytes[..], modules)
}

fn assert_equal(a: &mut Machine, b: &mut Machine) {
    assert_eq!(a.state_parts(), b.state_parts());
    assert_eq!((a.applied(), a.digest(), a.state_hash()), (b.applied(), b.digest(), b.state_hash()));
    assert_eq!(a.checkpoint().expect("it goes on"), b.checkpoint().expect("it goes on"));
    assert_eq!((a.genesis(), a.wants_ticks()), (b.genesis(), b.wants_ticks()));
    let (mut x, mut y) = (a.stats(), b.stats());
    (x.traps, y.traps) = (0, 0); // counted since a machine was made
    assert_eq!(x, y);
    for cursor in [PushCursor::default(), PushCursor { index: a.applied().unwrap_or_default().index, ordinal: 0 }] {
        assert_eq!(a.pushes_after(cursor, usize::MAX), b.pushes_after(cursor, usize::MAX));
    }
    for query in [&b"c"[..], b"k", b"i", b"s", b"h", b"g", b"u"] {
        assert_eq!(a.query(None, query).expect("it goes on"), b.query(None, query).expect("it goes on"));
    }
}

/// Applies the same entries to both, which must come to the same.
fn go_on_equally(node: &mut Node, other: &mut Machine, entries: &[(Position, Entry)]) {
    for (position, entry) in entries {
        let (a, b) = (node.machine.apply(*position, entry), other.apply(*position, entry));
        assert_eq!(a.expect("it goes on"), b.expect("it goes on"), "{entry:?}");
    }
    assert_equal(&mut node.machine, other);
}

/// Writes one piece for each token; all, once there are no more tokens to come.
struct Paced {
    bytes: Vec<u8>,
    tokens: mpsc::Receiver<()>,
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.tokens.recv();
        self.bytes.write(&bytes[..bytes.len().min(3_000)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open { ttl_us: u64 },
    Close(usize),
    KeepAlive(usize),
    Send { client: usize, op: u8, body: Vec<u8>, acked: u64 },
    Repeat { client: usize, back: u64 },
    Tick { after_us: i64 },
    Query,
}

fn step() -> impl Strategy<Value = Step> {
    let body = prop::collection::vec(any::<u8>(), 0..200);
    let op = prop::sample::select(&b"echxRPPPLtupqlrmgbdofin"[..]);
    prop_oneof![
        2 => (0..20_000_000u64).prop_map(|ttl_us| Step::Open { ttl_us }),
        1 => (0..8usize).prop_map(Step::Close),
        1 => (0..8usize).prop_map(Step::KeepAlive),
        12 => (0..8usize, op, body, 0..3u64).prop_map(|(client, op, body, acked)| Step::Send { client, op, body, acked }),
        2 => (0..8usize, 0..4u64).prop_map(|(client, back)| Step::Repeat { client, back }),
        2 => (0..3_000_000i64).prop_map(|after_us| Step::Tick { after_us }),
        1 => Just(Step::Query),
    ]
}

/// A node, and the clients of its sessions, which may have expired.
struct Story {
    node: Node,
    clients: Vec<Client>,
}

impl Story {
    fn new() -> Self {
        let mut node = Node::new();
        let clients = vec![node.open(), node.open()];
        Self { node, clients }
    }

    fn command(&mut self, step: &Step) -> Option<Command> {
        let chosen = |place: usize| place % self.clients.len();
        Some(match step {
            Step::Open { ttl_us } => Command::OpenSession { ttl_us: *ttl_us },
            Step::Close(client) => Command::CloseSession { session: self.clients[chosen(*client)].session },
            Step::KeepAlive(client) => Command::KeepAlive { session: self.clients[chosen(*client)].session },
            Step::Send { client, op, body, acked } => {
                let client = chosen(*client);
                let client = &mut self.clients[client];
                client.sequence += 1;
                Command::Request {
                    session: client.session,
                    sequence: Sequence(client.sequence),
                    acked_below: Sequence(client.sequence.saturating_sub(*acked)),
                    request: [&[*op][..], body].concat().into(),
                }
            }
            Step::Repeat { client, back } => {
                let client = &self.clients[chosen(*client)];
                Command::Request {
                    session: client.session,
                    sequence: Sequence(client.sequence.saturating_sub(*back)),
                    acked_below: Sequence(0),
                    request: Bytes::from_static(b"c"),
                }
            }
            Step::Tick { after_us } => {
                self.node.time_us += after_us;
                Command::Tick
            }
            Step::Query => {
                for query in [&b"w"[..], b"W", b"g", b"u"] {
                    self.node.machine.query(None, query).expect("it goes on");
                }
                return None;
            }
        })
    }

    fn take(&mut self, step: &Step) -> Option<Applied> {
        let command = self.command(step)?;
        let applied = self.node.apply(command);
        if let replicator_machine::Outcome::SessionOpened { session, .. } = applied.outcome {
            self.clients.push(Client { session, sequence: 0 });
        }
        Some(applied)
    }
}

fn any_story_goes_on_from_its_image(before: &[Step], meanwhile: &[Step], after: &[Step]) {
    let mut story = Story::new();
    before.iter().for_each(|step| drop(story.take(step)));
    let expected = story.node.machine.state_parts();
    let image = story.node.machine.image().expect("the first one");
    assert_eq!(Some(image.position()), story.node.machine.applied());
    let start = story.node.log.len();

    let (token, tokens) = mpsc::channel();
    let mut paced = Paced { bytes: Vec::new(), tokens };
    let outcomes: Vec<Applied> = thread::scope(|scope| {
        let writer = scope.spawn(|| image.write_to(&mut paced));
        let outcomes = meanwhile.iter().filter_map(|step| {
            let _ = token.send(());
            story.take(step)
        });
        let outcomes = outcomes.collect();
        drop(token);
        writer.join().expect("it ends").expect("a vector takes it");
        outcomes
    });

    let mut other = restored(&paced.bytes).expect("a good image");
    assert_eq!(other.state_parts(), expected);
    for ((position, entry), expected) in story.node.log[start..].iter().zip(outcomes) {
        assert_eq!(other.apply(*position, entry).expect("it goes on"), expected);
    }
    assert_equal(&mut story.node.machine, &mut other);

    // Equal states, equal bytes; and from there on as well.
    let (mut again, mut ours) = (restored(&self::image(&mut other)).expect("a good image"), Vec::new());
    assert_eq!(self::image(&mut again), self::image(&mut story.node.machine));
    for step in after {
        let Some(command) = story.command(step) else { continue };
        let (position, entry) = story.node.entry(command);
        go_on_equally(&mut story.node, &mut again, &[(position, entry.clone())]);
        ours.push((position, entry));
    }
    for (position, entry) in &ours {
        other.apply(*position, entry).expect("it goes on");
    }
    assert_equal(&mut again, &mut other);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_machine_goes_on_from_its_image_as_if_nothing_had_been(
        before in prop::collection::vec(step(), 0..30),
        meanwhile in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..10),
    ) {
        any_story_goes_on_from_its_image(&before, &meanwhile, &after);
    }

    #[test]
    fn and_so_it_does_where_written_pages_are_not_told(
        before in prop::collection::vec(step(), 0..30),
        meanwhile in prop::collection::vec(step(), 0..30),
        after in prop::collection::vec(step(), 0..6),
    ) {
        bench::without_write_tracking(|| any_story_goes_on_from_its_image(&before, &meanwhile, &after));
    }
}

#[test]
fn traps_and_growth_meanwhile_are_not_in_the_image() {
    let mut node = Node::new();
    let mut client = node.open();
    node.reply(&mut client, b"c");
    let expected = node.machine.state_parts();
    let image = node.machine.image().unwrap();
    node.trap(&mut client, b"g");
    node.reply(&mut client, b"m");
    node.trap(&mut client, b"u");
    (0..3).for_each(|_| drop(node.reply(&mut client, b"c")));
    node.query(b"W");
    node.trap(&mut client, b"b");
    let (bytes, summary) = written(image);
    let mut other = restored(&bytes).unwrap();
    assert_eq!((other.state_parts(), summary.memory_bytes), (expected, 2 << 16));
    let rest: Vec<_> = node.log.iter().filter(|(position, _)| *position > summary.position).cloned().collect();
    rest.iter().for_each(|(position, entry)| drop(other.apply(*position, entry).unwrap()));
    assert_equal(&mut node.machine, &mut other);
}

#[test]
fn one_image_lives_at_a_time() {
    let mut node = Node::new();
    let first = node.machine.image().unwrap();
    let second = node.machine.image();
    assert!(matches!(second, Err(ImageUnavailable::AnotherLives)), "{second:?}");
    drop(first);
    let (bytes, summary) = written(node.machine.image().unwrap());
    assert_eq!((summary.position, summary.digest), (node.machine.applied().unwrap(), node.machine.digest()));
    assert_eq!(bytes, image(&mut node.machine), "and writing it ends it, too");
}

#[test]
fn a_writer_that_fails_ends_the_image() {
    let mut node = Node::new();
    let failed = node.machine.image().unwrap().write_to(&mut &mut [0u8; 100][..]);
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::WriteZero);
    image(&mut node.machine);
}

#[test]
fn before_genesis_there_is_no_image() {
    let mut machine = Machine::new(Arc::new(Modules::default()));
    assert!(matches!(machine.image(), Err(ImageUnavailable::NotBegun)));
    machine.skip(Position::new(1, 1));
    assert!(matches!(machine.image(), Err(ImageUnavailable::NotBegun)));
}

#[test]
fn a_missing_module_is_named() {
    let mut node = Node::new();
    let bytes = image(&mut node.machine);
    let (_, hash) = Modules::with(&hostile());
    let missing = Machine::from_image(&mut &bytes[..], Arc::new(Modules::default())).err().unwrap();
    assert!(matches!(missing, ImageError::Refused(Halt::ModuleMissing(missing)) if missing == hash));
}

/// As small as it gets, but with all that there can be.
fn small() -> Vec<u8> {
    let mut story = Story::new();
    for op in ["c", "Ppushed", "u", "Pmore", "p", "e12"] {
        let client = usize::from(op.len() > 1);
        story.take(&Step::Send { client, op: op.as_bytes()[0], body: op.as_bytes()[1..].into(), acked: 2 });
    }
    let bytes = image(&mut story.node.machine);
    assert!(restored(&bytes).is_ok());
    bytes
}

#[test]
fn every_flipped_byte_is_found() {
    let mut bytes = small();
    for at in 0..bytes.len() {
        let flip = 1 << (at % 8);
        bytes[at] ^= flip;
        assert!(restored(&bytes).is_err(), "byte {at} of {} was changed", bytes.len());
        bytes[at] ^= flip;
    }
}

#[test]
fn every_cut_is_found_and_so_is_what_follows() {
    let bytes = small();
    for at in (0..bytes.len()).rev() {
        let error = restored(&bytes[..at]).err().unwrap_or_else(|| panic!("cut at {at}"));
        assert!(matches!(error, ImageError::Truncated { offset } if offset == at as u64), "cut at {at}: {error}");
    }
    let longer = restored(&[&bytes[..], b"x"].concat()).err().unwrap();
    assert!(matches!(longer, ImageError::Malformed { offset, .. } if offset == bytes.len() as u64 + 1), "{longer}");
}

#[test]
fn a_reader_that_fails_is_told_with_its_place() {
    struct Failing(usize);
    impl io::Read for Failing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.0);
            bytes[..len].copy_from_slice(&small()[..len]);
            self.0 -= len;
            if len == 0 { Err(io::Error::other("the cable is cut")) } else { Ok(len) }
        }
    }
    let (modules, _) = Modules::with(&hostile());
    let error = Machine::from_image(&mut Failing(3), modules).err().unwrap().to_string();
    assert_eq!(error, "the image can't be read, at byte 3: the cable is cut");
}

#[test]
fn other_bytes_are_no_image() {
    assert!(matches!(restored(b"").err().unwrap(), ImageError::Truncated { offset: 0 }));
    assert!(matches!(restored(&[7; 100]).err().unwrap(), ImageError::NotAnImage));
    let mut newer = small();
    newer[7] = 3;
    assert!(matches!(restored(&newer).err().unwrap(), ImageError::Version { found: 3 }));
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let bytes = small();
    assert_eq!(bytes[..9], *b"RPLIMAG\x02\x01");
    let head = u32::from_le_bytes(bytes[9..13].try_into().unwrap()) as usize;
    assert_eq!(bytes[13 + head], 2, "the sessions follow the head");
    let end = bytes.len() - 21;
    assert_eq!(bytes[end..end + 5], [5, 16, 0, 0, 0]);
    assert_eq!((end - 13 - head) / 4_096, 3, "three pages aren't zeros");
}
