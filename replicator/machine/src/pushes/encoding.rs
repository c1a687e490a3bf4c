//! The retained pushes in an image: a record for each, oldest first.

use std::io;

use bytes::Bytes;
use replicator_types::LogIndex;

use super::{PushCursor, PushesSnapshot, RetainedPush, RetainedPushes, cost};
use crate::{
    image::frames::{Fields, FrameWriter, Kind},
    limits::Limits,
    outcome::Push,
};

impl PushesSnapshot {
    /// Writes all of it. Lets go of each chunk as soon as that is written.
    pub(crate) fn write(self, frames: &mut FrameWriter<'_>) -> io::Result<()> {
        let mut left = self.left;
        for chunk in self.chunks {
            for push in chunk.iter().skip(std::mem::take(&mut left)) {
                frames.record(Kind::Pushes, |bytes| push.encode(bytes))?;
            }
        }
        for push in self.open.iter().skip(left) {
            frames.record(Kind::Pushes, |bytes| push.encode(bytes))?;
        }
        Ok(())
    }
}

impl RetainedPush {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { cursor: PushCursor { index, ordinal }, push: Push { to, payload } } = self;
        bytes.extend_from_slice(&index.0.to_le_bytes());
        bytes.extend_from_slice(&ordinal.to_le_bytes());
        bytes.extend_from_slice(to);
        bytes.extend_from_slice(&u32::try_from(payload.len()).expect("at most 256 MiB").to_le_bytes());
        bytes.extend_from_slice(payload);
    }

    fn decode(fields: &mut Fields<'_>, limits: &Limits) -> Result<Self, String> {
        let cursor = PushCursor { index: LogIndex(fields.u64()?), ordinal: fields.u32()? };
        let to = fields.array()?;
        let payload = fields.u32().and_then(|len| fields.bytes(len as usize))?;
        if payload.len() > limits.output_bytes as usize {
            return Err(format!("a push of {} bytes, where there may be {}", payload.len(), limits.output_bytes));
        }
        Ok(Self { cursor, push: Push { to, payload: Bytes::copy_from_slice(payload) } })
    }
}

/// Retained pushes that are being read.
pub(crate) struct PushesReading<'a> {
    limits: &'a Limits,
    /// How many there are to be.
    count: u64,
    pushes: RetainedPushes,
    last: Option<PushCursor>,
}

impl<'a> PushesReading<'a> {
    pub(crate) fn new(count: u64, trimmed: Option<PushCursor>, limits: &'a Limits) -> Self {
        let mut pushes = RetainedPushes::new(limits.retained_push_bytes);
        pushes.trimmed = trimmed;
        Self { limits, count, pushes, last: trimmed }
    }

    /// Takes the next record.
    pub(crate) fn record(&mut self, fields: &mut Fields<'_>) -> Result<(), String> {
        let push = RetainedPush::decode(fields, self.limits)?;
        let PushCursor { index, ordinal } = push.cursor;
        if self.last.is_some_and(|last| last >= push.cursor) {
            return Err(format!("push {ordinal} of entry {index} isn't in its place"));
        }
        self.last = Some(push.cursor);
        let max = self.limits.retained_push_bytes;
        if self.pushes.bytes + cost(&push.push.payload) > max || self.pushes.len as u64 >= self.count {
            return Err(format!("more pushes than {}, or than {max} bytes of them", self.count));
        }
        self.pushes.add(push);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<RetainedPushes, String> {
        let found = self.pushes.len as u64;
        if found != self.count {
            return Err(format!("{found} pushes instead of {}", self.count));
        }
        Ok(self.pushes)
    }
}
