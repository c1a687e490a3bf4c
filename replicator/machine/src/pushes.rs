//! Retained pushes: the newest pushes, kept for subscribers that come back (safety rule 23).
//!
//! They are replicated state: which are kept follows from the entries and the limits alone, so a cursor resumes at any
//! replica. A push leaves when newer ones need its room; a cursor before the newest one that left has expired.
//!
//! They lie in chunks, which nobody adds to once they are full, so that a snapshot for an image takes a pointer for each and
//! a copy of the last.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use replicator_types::LogIndex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::outcome::Push;

mod encoding;

pub(crate) use encoding::PushesReading;

/// A chunk is full when it has so many pushes.
const CHUNK_PUSHES: usize = 512;
/// Or so many bytes, counted as for the limit.
const CHUNK_BYTES: u64 = 64 << 10;

/// What a push counts beside its payload, so that empty ones are bounded too.
const PUSH_OVERHEAD_BYTES: u64 = 64;

/// A push's place among all pushes of a lineage: the entry, and the push within it.
///
/// As `after` of [`crate::Machine::pushes_after`]: the last push that was received. The default is before all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PushCursor {
    /// The entry's index.
    pub index: LogIndex,
    /// The place within the entry, from 0.
    pub ordinal: u32,
}

impl PushCursor {
    /// The cursor after every push of the entry at `index`: what a new subscriber starts from.
    #[must_use]
    pub const fn end_of(index: LogIndex) -> Self {
        Self { index, ordinal: u32::MAX }
    }
}

/// A push, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedPush {
    /// Its place.
    pub cursor: PushCursor,
    /// The push.
    pub push: Push,
}

/// Pushes after the cursor are no longer kept: the subscriber missed some, and has to read the state anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pushes after the cursor are no longer kept, up to entry {} push {}; read the state anew", trimmed.index, trimmed.ordinal)]
pub struct CursorExpired {
    /// The newest push that was dropped. A cursor at or after it is good.
    pub trimmed: PushCursor,
}

/// The retained pushes, oldest first. Invariant: `bytes` is their sum and at most `bytes_max`.
#[derive(Debug)]
pub(crate) struct RetainedPushes {
    /// Full ones. Invariant: none is empty.
    chunks: VecDeque<Arc<Vec<RetainedPush>>>,
    /// The newest, in a chunk that isn't full.
    open: Vec<RetainedPush>,
    open_bytes: u64,
    /// How many of the oldest chunk have left; their payloads may be gone. Invariant: fewer than it has, or it is empty.
    left: usize,
    len: usize,
    bytes: u64,
    bytes_max: u64,
    trimmed: Option<PushCursor>,
}

impl RetainedPushes {
    pub(crate) const fn new(bytes_max: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            open: Vec::new(),
            open_bytes: 0,
            left: 0,
            len: 0,
            bytes: 0,
            bytes_max,
            trimmed: None,
        }
    }

    /// Keeps the pushes of the entry at `index`, and drops the oldest ones past the limit.
    #[inline]
    pub(crate) fn keep(&mut self, index: LogIndex, pushes: &[Push]) {
        for (ordinal, push) in (0u32..).zip(pushes) {
            self.add(RetainedPush { cursor: PushCursor { index, ordinal }, push: push.clone() });
        }
        while self.bytes > self.bytes_max {
            self.drop_oldest();
        }
    }

    fn add(&mut self, push: RetainedPush) {
        let cost = cost(&push.push.payload);
        self.open.push(push);
        self.len += 1;
        self.bytes += cost;
        self.open_bytes += cost;
        if self.open.len() >= CHUNK_PUSHES || self.open_bytes >= CHUNK_BYTES {
            // The next one will be about as long.
            let next = Vec::with_capacity(self.open.len());
            self.chunks.push_back(Arc::new(std::mem::replace(&mut self.open, next)));
            self.open_bytes = 0;
        }
    }

    fn drop_oldest(&mut self) {
        // At once, if no snapshot has it: one allocation goes for each that comes, which is what allocators are quick at.
        let own = match self.chunks.front_mut() {
            None => Some(&mut self.open),
            Some(chunk) => Arc::get_mut(chunk),
        };
        let payload = own.map(|own| std::mem::take(&mut own[self.left].push.payload));
        let oldest = self.chunks.front().map_or(&self.open, |chunk| &**chunk);
        let RetainedPush { cursor, push } = &oldest[self.left];
        self.bytes -= cost(payload.as_ref().unwrap_or(&push.payload));
        self.trimmed = Some(*cursor);
        self.len -= 1;
        self.left += 1;
        if self.left == oldest.len() {
            self.left = 0;
            if self.chunks.pop_front().is_none() {
                self.open.clear();
                self.open_bytes = 0;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &RetainedPush> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).chain(&self.open).skip(self.left)
    }

    /// The first `max` pushes after `after`.
    pub(crate) fn after(&self, after: PushCursor, max: usize) -> Result<Vec<RetainedPush>, CursorExpired> {
        if let Some(trimmed) = self.trimmed.filter(|&trimmed| after < trimmed) {
            return Err(CursorExpired { trimmed });
        }
        // Whole chunks are passed by their last push; those of the first that have left are before any good cursor.
        let is_past = |push: &RetainedPush| push.cursor <= after;
        let first = self.chunks.partition_point(|chunk| chunk.last().is_none_or(is_past));
        let pushes = self.chunks.range(first..).flat_map(|chunk| chunk.iter()).chain(&self.open);
        Ok(pushes.skip_while(|push| is_past(push)).take(max).cloned().collect())
    }

    /// All of it as it is now, for another thread.
    pub(crate) fn snapshot(&self) -> PushesSnapshot {
        PushesSnapshot {
            chunks: self.chunks.iter().map(Arc::clone).collect(),
            open: self.open.clone(),
            left: self.left,
            len: self.len,
            trimmed: self.trimmed,
        }
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The oldest and the newest.
    pub(crate) fn span(&self) -> Option<(PushCursor, PushCursor)> {
        let newest = self.open.last().or_else(|| self.chunks.back().and_then(|chunk| chunk.last()))?;
        Some((self.iter().next()?.cursor, newest.cursor))
    }

    /// Numbers that tell how much there is, and from where on; the pushes themselves are in the running digest.
    pub(crate) fn fingerprint(&self) -> [u64; 4] {
        let trimmed = self.trimmed.unwrap_or_default();
        [self.len as u64, self.bytes, trimmed.index.0, trimmed.ordinal.into()]
    }

    /// The hash of all of it.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        let trimmed = self.trimmed.unwrap_or_default();
        for number in
            [self.len as u64, self.bytes, u64::from(self.trimmed.is_some()), trimmed.index.0, trimmed.ordinal.into()]
        {
            hasher.update(&number.to_le_bytes());
        }
        for RetainedPush { cursor, push } in self.iter() {
            hasher.update(&cursor.index.0.to_le_bytes());
            hasher.update(&cursor.ordinal.to_le_bytes());
            hasher.update(&push.to);
            hasher.update(&(push.payload.len() as u64).to_le_bytes());
            hasher.update(&push.payload);
        }
        hasher.digest()
    }
}

/// The retained pushes at one moment.
#[derive(Debug)]
pub(crate) struct PushesSnapshot {
    chunks: Vec<Arc<Vec<RetainedPush>>>,
    open: Vec<RetainedPush>,
    left: usize,
    len: usize,
    trimmed: Option<PushCursor>,
}

impl PushesSnapshot {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn trimmed(&self) -> Option<PushCursor> {
        self.trimmed
    }
}

fn cost(payload: &Bytes) -> u64 {
    payload.len() as u64 + PUSH_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(text: &'static str) -> Push {
        Push { to: [7; 16], payload: Bytes::from_static(text.as_bytes()) }
    }

    fn cursor(index: u64, ordinal: u32) -> PushCursor {
        PushCursor { index: LogIndex(index), ordinal }
    }

    #[test]
    fn a_cursor_resumes_within_an_entry() {
        let mut kept = RetainedPushes::new(1 << 20);
        kept.keep(LogIndex(3), &[push("a"), push("b")]);
        kept.keep(LogIndex(5), &[push("c")]);
        let texts = |after, max| -> Vec<Bytes> {
            kept.after(after, max).unwrap().into_iter().map(|kept| kept.push.payload).collect()
        };
        assert_eq!(texts(PushCursor::default(), 9), ["a", "b", "c"]);
        assert_eq!(texts(cursor(3, 0), 9), ["b", "c"]);
        assert_eq!(texts(cursor(3, 0), 1), ["b"]);
        assert_eq!(texts(PushCursor::end_of(LogIndex(3)), 9), ["c"]);
        assert!(texts(cursor(5, 0), 9).is_empty());
    }

    #[test]
    fn chunks_don_t_show() {
        let (mut kept, mut plain) = (RetainedPushes::new(1_000 * (PUSH_OVERHEAD_BYTES + 133)), VecDeque::new());
        for index in 1..3_000 {
            let payload = vec![index as u8; [500, 0, 30, 0][index as usize % 4]];
            let pushes = vec![Push { to: [7; 16], payload: payload.into() }; 1 + index as usize % 3];
            kept.keep(LogIndex(index), &pushes);
            plain.extend(
                (0u32..).zip(pushes).map(|(ordinal, push)| RetainedPush { cursor: cursor(index, ordinal), push }),
            );
            while plain.len() > kept.len {
                let trimmed = plain.pop_front().map(|oldest| oldest.cursor);
                assert_eq!(
                    kept.trimmed.filter(|_| plain.len() == kept.len),
                    trimmed.filter(|_| plain.len() == kept.len)
                );
            }
            assert_eq!(kept.bytes, plain.iter().map(|kept| cost(&kept.push.payload)).sum::<u64>());
            assert!(kept.bytes <= kept.bytes_max && kept.iter().eq(&plain));
            let at = (index as usize * 31) % plain.len();
            let expected: Vec<_> = plain.iter().skip(at + 1).take(7).cloned().collect();
            assert_eq!(kept.after(plain[at].cursor, 7).unwrap(), expected);
        }
        assert!(kept.chunks.len() > 1, "there were some");
    }

    #[test]
    fn a_cursor_before_what_was_trimmed_has_expired() {
        let mut kept = RetainedPushes::new(2 * (PUSH_OVERHEAD_BYTES + 1));
        kept.keep(LogIndex(1), &[push("a"), push("b"), push("c")]);
        assert_eq!(kept.after(PushCursor::default(), 9), Err(CursorExpired { trimmed: cursor(1, 0) }));
        assert_eq!(kept.after(cursor(1, 0), 9).unwrap().len(), 2);
        kept.keep(LogIndex(2), &[push("too long to be kept at all: dropped at once, with all before it, and then some more, so that it is more than two")]);
        assert_eq!(kept.after(cursor(1, 2), 9), Err(CursorExpired { trimmed: cursor(2, 0) }));
        assert!(kept.after(cursor(2, 0), 9).unwrap().is_empty());
    }
}
