//! The session table in an image: a record for each session, and after it one for each of its outcomes.
//!
//! Sessions come in the order of their ids.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use replicator_types::{Digest, Position, SessionId};

use super::{Session, Sessions, SessionsSnapshot, Stored};
use crate::{
    image::frames::{Fields, FrameWriter, Kind},
    limits::Limits,
    outcome::{RequestResult, Trap, TrapKind},
};

/// Bytes of a trap's message, at most: those of a panic, each perhaps replaced by three.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// The result is a reply. A trap is 1, and its kind's number.
const REPLY: u8 = 0;

impl SessionsSnapshot {
    /// Writes all of it.
    pub(crate) fn write(self, frames: &mut FrameWriter<'_>) -> io::Result<()> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        for (id, session) in sorted {
            frames.record(Kind::Sessions, |bytes| session.encode(id, bytes))?;
            for stored in &session.outcomes {
                frames.record(Kind::Sessions, |bytes| stored.encode(bytes))?;
            }
        }
        Ok(())
    }
}

impl Session {
    fn encode(&self, id: &SessionId, bytes: &mut Vec<u8>) {
        let Self { ttl_us, deadline_us, floor, outcomes, result_bytes: _ } = self;
        bytes.extend_from_slice(&id.0);
        for number in [ttl_us, deadline_us, floor] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let count = u32::try_from(outcomes.len()).expect("a window has 2^16 outcomes at most");
        bytes.extend_from_slice(&count.to_le_bytes());
    }
}

impl Stored {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { request_hash, result, position, digest } = self;
        bytes.extend_from_slice(&request_hash.to_le_bytes());
        for number in [position.epoch.0, position.index.0, digest.0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let (tag, text) = match result {
            RequestResult::Reply(reply) => (REPLY, &reply[..]),
            RequestResult::Trap(trap) => (1 + trap.kind as u8, trap.message.as_bytes()),
        };
        bytes.push(tag);
        bytes.extend_from_slice(&u32::try_from(text.len()).expect("at most 256 MiB").to_le_bytes());
        bytes.extend_from_slice(text);
    }

    fn decode(fields: &mut Fields<'_>, limits: &Limits) -> Result<Self, String> {
        let request_hash = fields.u128()?;
        let position = Position::new(fields.u64()?, fields.u64()?);
        let digest = Digest(fields.u64()?);
        let tag = fields.u8()?;
        let text = fields.u32().and_then(|len| fields.bytes(len as usize))?;
        let max = if tag == REPLY { limits.output_bytes as usize } else { MESSAGE_BYTES_MAX };
        if text.len() > max {
            return Err(format!("an outcome of {} bytes, where there may be {max}", text.len()));
        }
        let result = if tag == REPLY {
            RequestResult::Reply(Bytes::copy_from_slice(text))
        } else {
            let kind =
                TrapKind::ALL.get(usize::from(tag) - 1).ok_or_else(|| format!("an outcome of the kind {tag}"))?;
            let message =
                std::str::from_utf8(text).map_err(|error| format!("a trap's message that is no text: {error}"))?;
            RequestResult::Trap(Trap { kind: *kind, message: message.to_owned() })
        };
        Ok(Self { request_hash, result, position, digest })
    }
}

/// A session table that is being read.
pub(crate) struct SessionsReading<'a> {
    limits: &'a Limits,
    /// How many sessions there are to be.
    count: u64,
    sessions: Sessions,
    last: Option<SessionId>,
    /// A session whose outcomes aren't complete, and how many are missing.
    open: Option<(SessionId, Session, u32)>,
}

impl<'a> SessionsReading<'a> {
    pub(crate) fn new(count: u64, limits: &'a Limits) -> Self {
        Self { limits, count, sessions: Sessions::default(), last: None, open: None }
    }

    /// Takes the next record.
    pub(crate) fn record(&mut self, fields: &mut Fields<'_>) -> Result<(), String> {
        let (id, session, missing) = match self.open.take() {
            Some((id, mut session, missing)) => {
                if session.result_bytes >= self.limits.output_bytes.into() {
                    return Err(format!("session {id} has more than a full window"));
                }
                let stored = Stored::decode(fields, self.limits)?;
                session.result_bytes += stored.result.bytes() as u64;
                session.outcomes.push_back(stored);
                (id, session, missing - 1)
            }
            None => self.session(fields)?,
        };
        if missing > 0 {
            self.open = Some((id, session, missing));
        } else {
            self.sessions.insert(id, session);
        }
        Ok(())
    }

    fn session(&mut self, fields: &mut Fields<'_>) -> Result<(SessionId, Session, u32), String> {
        let id = SessionId(fields.array()?);
        if self.last.is_some_and(|last| last >= id) {
            return Err(format!("session {id} isn't in its place"));
        }
        self.last = Some(id);
        let max = self.count.min(self.limits.sessions.into());
        if self.sessions.len() as u64 >= max {
            return Err(format!("more than {max} sessions"));
        }
        let (ttl_us, deadline_us, floor, count) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u32()?);
        if count > self.limits.session_window || floor == 0 || floor.checked_add(count.into()).is_none() {
            return Err(format!("session {id} has {count} outcomes, from {floor} on"));
        }
        Ok((id, Session { ttl_us, deadline_us, floor, outcomes: VecDeque::new(), result_bytes: 0 }, count))
    }

    pub(crate) fn finish(self) -> Result<Sessions, String> {
        match (self.open, self.sessions.len()) {
            (Some((id, ..)), _) => Err(format!("session {id} isn't complete")),
            (None, found) if found as u64 != self.count => Err(format!("{found} sessions instead of {}", self.count)),
            (None, _) => Ok(self.sessions),
        }
    }
}
