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
//! The table is cut into shards, so that a snapshot for an image takes a pointer for each of them and no more. The first
//! change to a shard that a snapshot still has copies that shard; one that no snapshot has costs nothing.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use replicator_types::{Digest, Position, Sequence, SessionId};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

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

/// Shards of the table. More would make copies shorter, and each lookup slower: the tables' marks must stay in the
/// processor's first cache.
const SHARDS: usize = 1 << 8;

type Table = HashMap<SessionId, Session, BuildHasherDefault<IdHasher>>;

/// All open sessions.
///
/// Hashed by id, for speed; whatever depends on an order sorts the ids first.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// By [`shard`].
    shards: Box<[Shard]>,
    len: usize,
}

/// A part of the table.
#[derive(Debug)]
enum Shard {
    Owned(Table),
    /// A snapshot has it, too, or had.
    Shared(Arc<Table>),
}

impl Shard {
    #[inline]
    fn get(&self) -> &Table {
        match self {
            Self::Owned(table) => table,
            Self::Shared(table) => table,
        }
    }

    #[inline]
    fn get_mut(&mut self) -> &mut Table {
        if let Self::Shared(_) = self {
            self.own();
        }
        match self {
            Self::Owned(table) => table,
            Self::Shared(_) => unreachable!("it was just owned"),
        }
    }

    #[cold]
    fn own(&mut self) {
        if let Self::Shared(table) = std::mem::replace(self, Self::Owned(Table::default())) {
            *self = Self::Owned(Arc::unwrap_or_clone(table));
        }
    }

    fn share(&mut self) -> Arc<Table> {
        let shared = match std::mem::replace(self, Self::Owned(Table::default())) {
            Self::Owned(table) => Arc::new(table),
            Self::Shared(table) => table,
        };
        *self = Self::Shared(Arc::clone(&shared));
        shared
    }
}

/// The shard of an id: its byte 12, which hashing uses neither for the place in a table nor for the mark there. So shards in
/// their order hold ids in the order of their last four bytes.
#[inline]
const fn shard(id: &SessionId) -> usize {
    id.0[12] as usize
}

impl Default for Sessions {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::Owned(Table::default())).collect(), len: 0 }
    }
}

impl Sessions {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, id: &SessionId) -> bool {
        self.shards[shard(id)].get().contains_key(id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: &SessionId) -> Option<&mut Session> {
        let shard = &mut self.shards[shard(id)];
        if let Shard::Shared(table) = shard
            && !table.contains_key(id)
        {
            return None;
        }
        shard.get_mut().get_mut(id)
    }

    /// Opens a session. The caller made sure that there is none of this id.
    pub(crate) fn open(&mut self, id: SessionId, ttl_us: u64, clock_us: u64) {
        let deadline_us = clock_us.saturating_add(ttl_us);
        let session = Session { ttl_us, deadline_us, floor: 1, outcomes: VecDeque::new(), result_bytes: 0 };
        self.insert(id, session);
    }

    fn insert(&mut self, id: SessionId, session: Session) {
        let before = self.shards[shard(&id)].get_mut().insert(id, session);
        assert!(before.is_none(), "session {id} was opened twice");
        self.len += 1;
    }

    /// Closes a session, and says whether there was one.
    pub(crate) fn close(&mut self, id: &SessionId) -> bool {
        let existed = self.contains(id) && self.shards[shard(id)].get_mut().remove(id).is_some();
        self.len -= usize::from(existed);
        existed
    }

    fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.shards.iter().flat_map(|shard| shard.get())
    }

    /// The sessions whose time has come, in the order of their ids.
    pub(crate) fn expired(&self, clock_us: u64) -> Vec<SessionId> {
        let expired = self.iter().filter(|(_, session)| session.deadline_us <= clock_us);
        let mut ids: Vec<SessionId> = expired.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// All sessions as they are now, for another thread.
    pub(crate) fn snapshot(&mut self) -> SessionsSnapshot {
        let used = self.shards.iter_mut().filter(|shard| !shard.get().is_empty());
        SessionsSnapshot { shards: used.map(Shard::share).collect(), len: self.len }
    }

    /// The hash of all of it, in the order of ids.
    pub(crate) fn hash(&self) -> u64 {
        let mut sorted: Vec<_> = self.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        let mut hasher = Xxh3Default::new();
        for (id, Session { ttl_us, deadline_us, floor, outcomes, result_bytes }) in sorted {
            hasher.update(&id.0);
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
        hasher.digest()
    }
}

/// The session table at one moment.
#[derive(Debug)]
pub(crate) struct SessionsSnapshot {
    /// Those that hold something.
    shards: Vec<Arc<Table>>,
    len: usize,
}

impl SessionsSnapshot {
    pub(crate) const fn len(&self) -> usize {
        self.len
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
