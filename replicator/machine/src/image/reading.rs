//! From an image to the parts of a machine.

use std::{io::Read, sync::Arc};

use replicator_types::codec;

use super::{
    Head, ImageError,
    frames::{FRAME_BYTES, Fields, FrameReader, Kind},
    pages,
};
use crate::{
    application::Application,
    engine::Prepared,
    halt::Halt,
    limits::{Limits, REQUEST_BYTES_MAX},
    pushes::{PushesReading, RetainedPushes},
    sessions::{MESSAGE_BYTES_MAX, Sessions, SessionsReading},
};

/// The first frame's payload, at most: the application's configuration, and what is around it.
const HEAD_BYTES_MAX: usize = REQUEST_BYTES_MAX as usize + (128 << 10);

/// What an image holds.
pub(crate) struct Parts {
    pub(crate) head: Head,
    pub(crate) sessions: Sessions,
    pub(crate) pushes: RetainedPushes,
    pub(crate) application: Application,
}

/// Reads an image to its end. `prepare` has the last word on the genesis and on what became of it, and gives the module.
pub(crate) fn read(
    input: &mut dyn Read,
    prepare: impl FnOnce(&Head) -> Result<Arc<Prepared>, Halt>,
) -> Result<Parts, ImageError> {
    let mut frames = FrameReader::new(input)?;
    let mut payload = Vec::new();
    let (Kind::Head, len) = frames.header(Kind::Head)? else { return Err(frames.malformed("it has no head")) };
    frames.payload(len, HEAD_BYTES_MAX, &mut payload)?;
    let head: Head = codec::decode(&payload).map_err(|error| frames.malformed(error.to_string()))?;
    if head.lineages.is_empty() {
        return Err(frames.malformed("a history without a lineage"));
    }
    head.history.check(&head.genesis, head.position).map_err(|what| frames.malformed(what))?;
    let prepared = prepare(&head)?;
    let limits = &head.genesis.limits;

    let mut header = frames.header(Kind::Sessions)?;
    let mut sessions = SessionsReading::new(head.sessions, limits);
    while let (Kind::Sessions, len) = header {
        take(&mut frames, len, limits, &mut payload, |fields| sessions.record(fields))?;
        header = frames.header(Kind::Sessions)?;
    }
    let sessions = sessions.finish().map_err(|what| frames.malformed(what))?;

    let mut pushes = PushesReading::new(head.pushes, head.trimmed, limits);
    while let (Kind::Pushes, len) = header {
        take(&mut frames, len, limits, &mut payload, |fields| pushes.record(fields))?;
        header = frames.header(Kind::Pushes)?;
    }
    let pushes = pushes.finish().map_err(|what| frames.malformed(what))?;

    drop(payload);
    let application = Application::restore(prepared, &head, |memory| {
        header = pages::read(&mut frames, header, memory)?;
        Ok(())
    })?;
    frames.finish(header.1)?;
    Ok(Parts { head, sessions, pushes, application })
}

/// Reads a frame of whole records.
fn take(
    frames: &mut FrameReader<'_>,
    len: usize,
    limits: &Limits,
    payload: &mut Vec<u8>,
    mut record: impl FnMut(&mut Fields<'_>) -> Result<(), String>,
) -> Result<(), ImageError> {
    // Full, or less one byte and then the longest record.
    let max = FRAME_BYTES + (limits.output_bytes as usize).max(MESSAGE_BYTES_MAX) + 128;
    frames.payload(len, max, payload)?;
    let mut fields = Fields(payload);
    if fields.is_empty() {
        return Err(frames.malformed("a section without records"));
    }
    while !fields.is_empty() {
        record(&mut fields).map_err(|what| frames.malformed(what))?;
    }
    Ok(())
}
