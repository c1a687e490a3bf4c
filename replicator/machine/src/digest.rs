//! The running digest: xxh3-64 over the last digest, the position, the outcome and the pushes, for every entry.
//!
//! Every entry that is given to the machine folds in, refusals and repeats too: what a replica answered is what it is
//! compared by. Only skipped entries don't, as they reach no module and no client. An executed request folds in without
//! its own `digest` field, which is the fold's result.

use replicator_types::{Digest, Position, codec};

use crate::outcome::{Outcome, Push, RequestResult};

/// The digest so far, and room to fold in.
#[derive(Debug, Default)]
pub(crate) struct RunningDigest {
    digest: Digest,
    scratch: Vec<u8>,
}

impl RunningDigest {
    /// Goes on from a digest.
    pub(crate) const fn after(digest: Digest) -> Self {
        Self { digest, scratch: Vec::new() }
    }

    /// After the last entry.
    pub(crate) const fn get(&self) -> Digest {
        self.digest
    }

    /// Folds an executed request in: now, or at `first`, if it is a repeat.
    #[inline]
    pub(crate) fn fold_executed(
        &mut self,
        at: Position,
        first: Position,
        result: &RequestResult,
        pushes: &[Push],
    ) -> Digest {
        self.start(at);
        self.number(first.epoch.0);
        self.number(first.index.0);
        match result {
            RequestResult::Reply(reply) => {
                self.scratch.push(0);
                self.bytes(reply);
            }
            RequestResult::Trap(trap) => {
                self.scratch.extend([1, trap.kind as u8]);
                self.bytes(trap.message.as_bytes());
            }
        }
        self.finish(pushes)
    }

    /// Folds any outcome in.
    #[inline]
    pub(crate) fn fold(&mut self, at: Position, outcome: &Outcome, pushes: &[Push]) -> Digest {
        if let Outcome::Executed { result, position, .. } = outcome {
            return self.fold_executed(at, *position, result, pushes);
        }
        self.start(at);
        self.scratch.push(2);
        let encoded = codec::encode(outcome.digested().as_ref());
        self.bytes(&encoded);
        self.finish(pushes)
    }

    fn start(&mut self, at: Position) {
        self.scratch.clear();
        self.number(self.digest.0);
        self.number(at.epoch.0);
        self.number(at.index.0);
    }

    fn finish(&mut self, pushes: &[Push]) -> Digest {
        self.number(pushes.len() as u64);
        for push in pushes {
            self.scratch.extend_from_slice(&push.to);
            self.bytes(&push.payload);
        }
        self.digest = Digest(xxhash_rust::xxh3::xxh3_64(&self.scratch));
        self.digest
    }

    fn number(&mut self, number: u64) {
        self.scratch.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.scratch.extend_from_slice(bytes);
    }
}
