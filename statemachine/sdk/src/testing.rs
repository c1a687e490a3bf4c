//! Drives a machine natively, through the same bytes as a host does: for an author's unit tests.

use std::collections::BTreeMap;

use crate::{
    Context, HEADER_BYTES, Kind, SessionId, StateMachine, TopicId,
    guest::Guest,
    output::{TAG_PUSH, TAG_REPLY, records as output_records},
    stream::{RestoreStream, SnapshotStream},
};

/// The longest input of a harness, header included.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// What the harness calls now at its beginning: 2023-11-14T22:13:20Z.
pub const START_TIME_US: i64 = 1_700_000_000_000_000;

/// Bytes of a snapshot's chunks, unless others are asked for.
const CHUNK_BYTES: usize = 64 << 10;

/// A machine with a log of its own: every call is the next entry, a millisecond after the one before.
pub struct Harness<M> {
    guest: Guest<M>,
    /// Of the last entry.
    index: u64,
    /// Of the last entry.
    time_us: i64,
    /// The last sequence of every session that is open.
    sequences: BTreeMap<SessionId, u64>,
    /// How many sessions were ever opened.
    opened: u64,
}

/// A snapshot of these records: to test how a machine restores one that an earlier version wrote, without that version.
pub fn snapshot<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> Vec<Vec<u8>> {
    let records: Vec<Vec<u8>> = records.into_iter().map(|record| record.as_ref().to_vec()).collect();
    let mut stream = SnapshotStream::new(records.into_iter());
    chunks(|chunk| stream.fill(chunk, CHUNK_BYTES))
}

/// The chunks that `fill` gives, until it gives an empty one.
fn chunks(mut fill: impl FnMut(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    loop {
        let mut chunk = Vec::new();
        fill(&mut chunk);
        if chunk.is_empty() {
            return chunks;
        }
        chunks.push(chunk);
    }
}

/// The records of a snapshot: to test what a machine writes, so that no change of its format goes unnoticed.
///
/// # Panics
/// If these aren't the chunks of a whole snapshot.
pub fn records(chunks: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut stream = RestoreStream::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let mut take = |record: &[u8]| {
            records.push(record.to_vec());
            Ok(())
        };
        stream.feed(chunk, i + 1 == chunks.len(), &mut take).expect("these are the chunks of a snapshot");
    }
    records
}

/// An event that a call pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The session's or the topic's id.
    pub to: [u8; 16],
    /// What was pushed.
    pub payload: Vec<u8>,
}

impl Push {
    /// Whether it went to this topic.
    pub fn is_to_topic(&self, name: &str) -> bool {
        self.to == TopicId::of_name(name).0
    }
}

/// What a call said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "an ignored outcome tests nothing"]
pub struct Outcome {
    /// The session that called, or was opened or closed.
    pub session: SessionId,
    /// The reply, if there was one.
    pub reply: Option<Vec<u8>>,
    /// The pushes, in order.
    pub pushes: Vec<Push>,
    /// The log lines, in order.
    pub logs: Vec<String>,
}

impl Outcome {
    /// The reply as the client sees it: a call without one answers with no bytes.
    pub fn reply(&self) -> &[u8] {
        self.reply.as_deref().unwrap_or_default()
    }

    /// The payloads pushed to a session.
    pub fn pushed_to(&self, session: SessionId) -> impl Iterator<Item = &[u8]> {
        self.pushes.iter().filter(move |push| push.to == session.0).map(|push| push.payload.as_slice())
    }

    fn read(session: SessionId, list: &[u8]) -> Self {
        let mut outcome = Self { session, ..Self::default() };
        for (tag, to, payload) in output_records(list) {
            let payload = payload.to_vec();
            match tag {
                TAG_REPLY => outcome.reply = Some(payload),
                TAG_PUSH => outcome.pushes.push(Push { to, payload }),
                _ => outcome.logs.push(String::from_utf8(payload).expect("log lines are UTF-8")),
            }
        }
        outcome
    }
}

impl<M: StateMachine> Harness<M> {
    /// A machine at the beginning of a history.
    ///
    /// # Errors
    /// Why the machine refused the configuration.
    pub fn new(config: &[u8]) -> Result<Self, String> {
        let mut harness =
            Self { guest: Guest::new(), index: 0, time_us: START_TIME_US, sequences: BTreeMap::new(), opened: 0 };
        harness.guest.allocate_input(INPUT_BYTES_MAX);
        harness.put(config);
        harness.guest.init(config.len())?;
        Ok(harness)
    }

    /// A machine restored from the chunks of a snapshot. No session is open in it: see [`swap`](Self::swap).
    ///
    /// # Errors
    /// Why the machine refused the configuration or the snapshot.
    pub fn restored(config: &[u8], schema: u32, chunks: &[Vec<u8>]) -> Result<Self, String> {
        let mut harness = Self::new(config)?;
        for (i, chunk) in chunks.iter().enumerate() {
            harness.put(chunk);
            harness.guest.restore(chunk.len(), schema, i + 1 == chunks.len())?;
        }
        Ok(harness)
    }

    /// Puts another machine, or another version, into the place of this one, as a host does: it gets a snapshot; sessions,
    /// sequences and time go on.
    ///
    /// # Errors
    /// Why the new machine refused the configuration or the snapshot.
    pub fn swap<N: StateMachine>(mut self, config: &[u8]) -> Result<Harness<N>, String> {
        let mut swapped = Harness::restored(config, M::SCHEMA, &self.snapshot())?;
        swapped.index = self.index;
        swapped.time_us = self.time_us;
        swapped.sequences = self.sequences;
        swapped.opened = self.opened;
        Ok(swapped)
    }

    /// The machine itself, for a look at its state.
    pub fn machine(&self) -> &M {
        self.guest.machine()
    }

    /// Lets time pass.
    pub fn advance(&mut self, microseconds: i64) {
        self.time_us += microseconds;
    }

    /// Opens a session, whose id the outcome tells. The same harness history gives the same ids.
    pub fn connect(&mut self) -> Outcome {
        self.opened += 1;
        let mut id = [0x5e; 16];
        id[8..].copy_from_slice(&self.opened.to_be_bytes());
        let session = SessionId(id);
        self.sequences.insert(session, 0);
        self.entry(Kind::Connect, session, 0, &[])
    }

    /// Executes a request under the session's next sequence.
    ///
    /// # Panics
    /// If the session isn't open.
    pub fn request(&mut self, session: SessionId, request: &[u8]) -> Outcome {
        let sequence = self.sequences.get_mut(&session).expect("the session is open");
        *sequence += 1;
        let sequence = *sequence;
        self.entry(Kind::Request, session, sequence, request)
    }

    /// Closes a session.
    ///
    /// # Panics
    /// If the session isn't open.
    pub fn disconnect(&mut self, session: SessionId) -> Outcome {
        self.sequences.remove(&session).expect("the session is open");
        self.entry(Kind::Disconnect, session, 0, &[])
    }

    /// A timer entry.
    pub fn tick(&mut self) -> Outcome {
        self.entry(Kind::Tick, SessionId::default(), 0, &[])
    }

    /// Reads on behalf of a session; of none, if it is all zeros.
    pub fn query(&mut self, session: SessionId, request: &[u8]) -> Outcome {
        let (index, time_us) = (self.index, self.time_us);
        let context = Context { kind: Kind::Request, index, session, time_us, sequence: 0, seed: [0; 16] };
        let len = self.put_call(&context, request);
        Outcome::read(session, self.guest.query(len))
    }

    /// The chunks of a snapshot, each of 64 KiB but the last.
    pub fn snapshot(&mut self) -> Vec<Vec<u8>> {
        self.snapshot_in_chunks(CHUNK_BYTES)
    }

    /// The chunks of a snapshot, each of `max` bytes but the last.
    pub fn snapshot_in_chunks(&mut self, max: usize) -> Vec<Vec<u8>> {
        chunks(|chunk| chunk.extend_from_slice(self.guest.snapshot(max)))
    }

    fn entry(&mut self, kind: Kind, session: SessionId, sequence: u64, request: &[u8]) -> Outcome {
        self.index += 1;
        self.time_us += 1_000;
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        seed[8..].copy_from_slice(&self.index.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
        let context = Context { kind, index: self.index, session, time_us: self.time_us, sequence, seed };
        let len = self.put_call(&context, request);
        Outcome::read(session, self.guest.apply(len))
    }

    fn put_call(&mut self, context: &Context, request: &[u8]) -> usize {
        let len = HEADER_BYTES + request.len();
        let input = &mut self.guest.input()[..len];
        input[..HEADER_BYTES].copy_from_slice(&context.header());
        input[HEADER_BYTES..].copy_from_slice(request);
        len
    }

    fn put(&mut self, bytes: &[u8]) {
        self.guest.input()[..bytes.len()].copy_from_slice(bytes);
    }
}
