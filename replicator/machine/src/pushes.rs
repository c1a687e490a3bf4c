//! Retained pushes: the newest pushes, kept for subscribers that come back (safety rule 23).
//!
//! They are replicated state: which are kept follows from the entries and the limits alone, so a cursor resumes at any
//! replica. A push leaves when newer ones need its room; a cursor before the newest one that left has expired.

use std::collections::VecDeque;

use bytes::Bytes;
use replicator_types::LogIndex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::outcome::Push;

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
    pushes: VecDeque<RetainedPush>,
    bytes: u64,
    bytes_max: u64,
    trimmed: Option<PushCursor>,
}

impl RetainedPushes {
    pub(crate) const fn new(bytes_max: u64) -> Self {
        Self { pushes: VecDeque::new(), bytes: 0, bytes_max, trimmed: None }
    }

    /// Keeps the pushes of the entry at `index`, and drops the oldest ones past the limit.
    pub(crate) fn keep(&mut self, index: LogIndex, pushes: &[Push]) {
        for (ordinal, push) in (0u32..).zip(pushes) {
            self.bytes += cost(&push.payload);
            self.pushes.push_back(RetainedPush { cursor: PushCursor { index, ordinal }, push: push.clone() });
        }
        while self.bytes > self.bytes_max {
            let oldest = self.pushes.pop_front().expect("bytes are the sum over the pushes, so there is one");
            self.bytes -= cost(&oldest.push.payload);
            self.trimmed = Some(oldest.cursor);
        }
    }

    /// The first `max` pushes after `after`.
    pub(crate) fn after(&self, after: PushCursor, max: usize) -> Result<Vec<RetainedPush>, CursorExpired> {
        if let Some(trimmed) = self.trimmed.filter(|&trimmed| after < trimmed) {
            return Err(CursorExpired { trimmed });
        }
        let start = self.pushes.partition_point(|kept| kept.cursor <= after);
        Ok(self.pushes.range(start..).take(max).cloned().collect())
    }

    /// The hash of all of it.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        let trimmed = self.trimmed.unwrap_or_default();
        for number in [
            self.pushes.len() as u64,
            self.bytes,
            u64::from(self.trimmed.is_some()),
            trimmed.index.0,
            trimmed.ordinal.into(),
        ] {
            hasher.update(&number.to_le_bytes());
        }
        for RetainedPush { cursor, push } in &self.pushes {
            hasher.update(&cursor.index.0.to_le_bytes());
            hasher.update(&cursor.ordinal.to_le_bytes());
            hasher.update(&push.to);
            hasher.update(&(push.payload.len() as u64).to_le_bytes());
            hasher.update(&push.payload);
        }
        hasher.digest()
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
