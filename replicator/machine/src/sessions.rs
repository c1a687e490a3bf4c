//! The session table: each (session, sequence) executes at most once, and all its answers are equal (safety rules 13, 14).
//!
//! ```text
//!   sequence   1 ... floor-1 | floor ............ last | last+1      | last+2 ...
//!   answer     STALE         | the stored outcome,     | executes,   | GAP
//!                            | or REUSED               | WINDOW_FULL |
//! ```
//!
//! A refusal changes nothing, not even `floor`. An execution or a repeat raises `floor` to the request's `acked_below`,
//! clamped to `last + 1`, and prolongs the session's life.
//!
//! Outcomes are kept for at most `session_window` sequences; and the window is full, too, while the kept ones hold
//! `output_bytes` of replies, so that a session can't fill the memory of all nodes.
//!
//! A snapshot for an image takes the table as a whole, at no cost. As long as that lives, sessions that change are copied
//! into a layer above, one by one; once it is gone the layer is merged, a few sessions at each access.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use replicator_types::{Digest, Position, Sequence, SessionId};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64, xxh3_128};

use crate::{
    limits::Limits,
    outcome::{Outcome, Refusal, RequestResult},
};

mod encoding;

pub(crate) use encoding::{MESSAGE_BYTES_MAX, SessionsReading};

/// The outcome of an executed request, and what it was asked.
#[derive(Debug, Clone)]
struct Stored {
    request_hash: u128,
    result: RequestResult,
    position: Position,
    digest: Digest,
}

/// One session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    ttl_us: u64,
    /// The session clock at which it expires.
    deadline_us: u64,
    /// The least sequence whose outcome is kept, if it was executed. At least 1.
    floor: u64,
    /// Those of `floor` to the last one executed, without gaps. Invariant: at most `session_window`.
    outcomes: VecDeque<Stored>,
    /// Invariant: the sum of the bytes of `outcomes`.
    result_bytes: u64,
}

/// What is to be done with a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Execute it, then [`Session::store`] the outcome.
    Execute(RequestHash),
    /// It was executed: this is its outcome.
    Repeat(Outcome),
    /// Neither.
    Refuse(Refusal),
}

/// The hash by which a repeat is told from another request.
#[derive(Debug)]
pub(crate) struct RequestHash(u128);

impl Session {
    /// The last sequence executed; 0 if none.
    fn last(&self) -> u64 {
        self.floor - 1 + self.outcomes.len() as u64
    }

    /// Judges a request, and unless it is refused, drops what the client has and prolongs the session's life.
    #[inline]
    pub(crate) fn judge(
        &mut self,
        sequence: Sequence,
        acked_below: Sequence,
        request: &[u8],
        clock_us: u64,
        limits: &Limits,
    ) -> Verdict {
        let last = self.last();
        let floor = acked_below.0.min(last + 1).max(self.floor);
        if sequence.0 > last + 1 {
            return Verdict::Refuse(Refusal::Gap { last: Sequence(last) });
        }
        if sequence.0 < floor {
            return Verdict::Refuse(Refusal::Stale { last: Sequence(last) });
        }
        let hash = xxh3_128(request);
        if sequence.0 <= last {
            let stored = &self.outcomes[(sequence.0 - self.floor) as usize];
            if stored.request_hash != hash {
                return Verdict::Refuse(Refusal::Reused { last: Sequence(last) });
            }
            let Stored { result, position, digest, .. } = stored;
            let outcome = Outcome::Executed { result: result.clone(), position: *position, digest: *digest };
            self.settle(floor, clock_us);
            return Verdict::Repeat(outcome);
        }
        if request.len() as u64 > limits.request_bytes.into() {
            let (bytes, max) = (request.len() as u64, limits.request_bytes.into());
            return Verdict::Refuse(Refusal::TooLarge { bytes, max });
        }
        let dropped = (floor - self.floor) as usize;
        let dropped_bytes: u64 = self.outcomes.iter().take(dropped).map(|stored| stored.result.bytes() as u64).sum();
        let full = self.outcomes.len() - dropped >= limits.session_window as usize
            || self.result_bytes - dropped_bytes >= limits.output_bytes.into();
        if full {
            return Verdict::Refuse(Refusal::WindowFull { last: Sequence(last) });
        }
        self.settle(floor, clock_us);
        Verdict::Execute(RequestHash(hash))
    }

    fn settle(&mut self, floor: u64, clock_us: u64) {
        while self.floor < floor {
            let dropped = self.outcomes.pop_front().expect("the floor rises to last + 1 at most");
            self.result_bytes -= dropped.result.bytes() as u64;
            self.floor += 1;
        }
        self.touch(clock_us);
    }

    /// Keeps the outcome of the sequence after the last one.
    #[inline]
    pub(crate) fn store(
        &mut self,
        RequestHash(request_hash): RequestHash,
        result: RequestResult,
        position: Position,
        digest: Digest,
    ) {
        self.result_bytes += result.bytes() as u64;
        self.outcomes.push_back(Stored { request_hash, result, position, digest });
    }

    /// Prolongs the session's life.
    pub(crate) fn touch(&mut self, clock_us: u64) {
        self.deadline_us = clock_us.saturating_add(self.ttl_us);
    }
}

type Table = HashMap<SessionId, Session, BuildHasherDefault<IdHasher>>;

/// Sessions that are merged at one access, so that no entry waits for all of them.
const MERGED_AT_ONCE: usize = 64;

/// All open sessions.
///
/// Hashed by id, for speed; whatever depends on an order sorts the ids first.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// What no snapshot has. As long as there are layers: what is new since.
    table: Table,
    layers: Option<Box<Layers>>,
    len: usize,
}

/// What is below the table while a snapshot lives.
#[derive(Debug)]
struct Layers {
    /// What the snapshot has, too.
    base: Arc<Table>,
    /// Ids in the base that don't count: they are in the table above, or closed.
    gone: HashSet<SessionId, BuildHasherDefault<IdHasher>>,
}

impl Layers {
    fn get(&self, id: &SessionId) -> Option<&Session> {
        self.base.get(id).filter(|_| !self.gone.contains(id))
    }
}

impl Sessions {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, id: &SessionId) -> bool {
        self.table.contains_key(id) || self.layers.as_ref().is_some_and(|layers| layers.get(id).is_some())
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: &SessionId) -> Option<&mut Session> {
        if self.layers.is_some() {
            self.lift(id);
        }
        self.table.get_mut(id)
    }

    /// Copies a session to the table, if it is only below; and merges the layers, if they are no longer needed.
    #[cold]
    fn lift(&mut self, id: &SessionId) {
        self.merge(MERGED_AT_ONCE);
        if let Some(layers) = &mut self.layers
            && let Some(session) = layers.get(id)
        {
            self.table.insert(*id, session.clone());
            layers.gone.insert(*id);
        }
    }

    /// Moves at most `max` sessions of the table to the base, if the snapshot is gone; and when none is left there, the base
    /// is the table again.
    fn merge(&mut self, max: usize) {
        let Some(layers) = &mut self.layers else { return };
        let Layers { base, gone } = &mut **layers;
        let Some(base) = Arc::get_mut(base) else { return };
        for id in gone.extract_if(|_| true).take(max) {
            base.remove(&id);
        }
        if !gone.is_empty() {
            return;
        }
        base.extend(self.table.extract_if(|_, _| true).take(max));
        if self.table.is_empty() {
            self.table = std::mem::take(base);
            self.layers = None;
        }
    }

    /// Opens a session. The caller made sure that there is none of this id.
    pub(crate) fn open(&mut self, id: SessionId, ttl_us: u64, clock_us: u64) {
        let deadline_us = clock_us.saturating_add(ttl_us);
        let session = Session { ttl_us, deadline_us, floor: 1, outcomes: VecDeque::new(), result_bytes: 0 };
        self.insert(id, session);
    }

    fn insert(&mut self, id: SessionId, session: Session) {
        let before = self.table.insert(id, session);
        assert!(before.is_none(), "session {id} was opened twice");
        self.len += 1;
    }

    /// Closes a session, and says whether there was one.
    pub(crate) fn close(&mut self, id: &SessionId) -> bool {
        let mut existed = self.table.remove(id).is_some();
        if let Some(layers) = &mut self.layers
            && layers.get(id).is_some()
        {
            existed = true;
            layers.gone.insert(*id);
        }
        self.len -= usize::from(existed);
        existed
    }

    fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        let below = self.layers.iter().flat_map(|layers| {
            let counts = |(id, _): &(&SessionId, &Session)| !layers.gone.contains(*id);
            layers.base.iter().filter(counts)
        });
        self.table.iter().chain(below)
    }

    /// The sessions whose time has come, in the order of their ids.
    pub(crate) fn expired(&self, clock_us: u64) -> Vec<SessionId> {
        let expired = self.iter().filter(|(_, session)| session.deadline_us <= clock_us);
        let mut ids: Vec<SessionId> = expired.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// All sessions as they are now, for another thread. Copies all, if an earlier snapshot still lives.
    pub(crate) fn snapshot(&mut self) -> SessionsSnapshot {
        self.merge(usize::MAX);
        if self.layers.is_some() {
            self.table = self.iter().map(|(id, session)| (*id, session.clone())).collect();
        }
        let base = Arc::new(std::mem::take(&mut self.table));
        self.layers = Some(Box::new(Layers { base: Arc::clone(&base), gone: HashSet::default() }));
        SessionsSnapshot(base)
    }

    /// All of them, in the order of their ids.
    pub(crate) fn ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// A number that tells this table from others, without its outcomes: of each session how far it is, and the last outcome's digest, which
    /// the results before it are folded into. Takes 30 ns for each session.
    pub(crate) fn fingerprint(&self) -> u64 {
        let each = self.iter().map(|(id, session)| {
            let last = session.outcomes.back().map(|last| (last.request_hash, last.position.index.0, last.digest.0));
            let (request_hash, index, digest) = last.unwrap_or_default();
            let mut bytes = [0; 88];
            bytes[..16].copy_from_slice(&id.0);
            bytes[16..32].copy_from_slice(&request_hash.to_le_bytes());
            let Session { ttl_us, deadline_us, floor, outcomes, result_bytes } = session;
            let numbers = [*ttl_us, *deadline_us, *floor, outcomes.len() as u64, *result_bytes, index, digest];
            for (place, number) in bytes[32..].chunks_exact_mut(8).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            xxh3_64(&bytes)
        });
        each.fold(0, u64::wrapping_add)
    }

    /// The hash of all of it, in the order of ids.
    pub(crate) fn hash(&self) -> u64 {
        let mut sorted: Vec<_> = self.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        let mut hasher = Xxh3Default::new();
        for (id, session) in sorted {
            hasher.update(&id.0);
            session.hash_into(&mut hasher);
        }
        hasher.digest()
    }

    /// The hash of each session.
    pub(crate) fn hashes(&self) -> BTreeMap<SessionId, u64> {
        let hash = |(id, session): (&SessionId, &Session)| {
            let mut hasher = Xxh3Default::new();
            session.hash_into(&mut hasher);
            (*id, hasher.digest())
        };
        self.iter().map(hash).collect()
    }
}

impl Session {
    fn hash_into(&self, hasher: &mut Xxh3Default) {
        let Self { ttl_us, deadline_us, floor, outcomes, result_bytes } = self;
        for number in [*ttl_us, *deadline_us, *floor, outcomes.len() as u64, *result_bytes] {
            hasher.update(&number.to_le_bytes());
        }
        for Stored { request_hash, result, position, digest } in outcomes {
            hasher.update(&request_hash.to_le_bytes());
            let (tag, bytes) = match result {
                RequestResult::Reply(reply) => (0, &reply[..]),
                RequestResult::Trap(trap) => (1 + trap.kind as u64, trap.message.as_bytes()),
            };
            for number in [tag, bytes.len() as u64, position.epoch.0, position.index.0, digest.0] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(bytes);
        }
    }
}

/// The session table at one moment.
#[derive(Debug)]
pub(crate) struct SessionsSnapshot(Arc<Table>);

impl SessionsSnapshot {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Takes an id's last 8 bytes as its hash: they come from a proposer's cryptographic generator, so no client chooses
/// the ids that are in the table.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    /// `[u8; 16]` hashes its length too, which says nothing.
    #[inline]
    fn write_usize(&mut self, _: usize) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
