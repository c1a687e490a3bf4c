//! Reads a segment's records one after the other, and goes on behind what can't be read.
//!
//! For looking at a log that may be damaged. That is safe because a record's checks are seeded with its place: what is found behind a gap
//! is a record that was written there, and no bytes that look like one.

use super::{
    record::{self, ALIGNMENT, Decoded, Extent, SIZE_FIELD_BYTES},
    segment::SEGMENT_HEADER_BYTES,
    window::Window,
};
use crate::{StorageError, meta::LogTag};

/// The records of one segment.
#[derive(Debug)]
pub(crate) struct Walk {
    window: Window,
    tag: LogTag,
    /// The global offset of the segment's first record.
    start: u64,
    /// The byte of the file at which to go on.
    at: u64,
    /// Where what was read so far ends.
    written_end: u64,
}

/// What is next in a segment.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// A whole record.
    Record {
        /// The byte of the file at which it begins.
        at: u64,
        /// Its global offset.
        offset: u64,
        /// Its own bytes.
        bytes: u64,
        record: Decoded<'a>,
    },
    /// Something that isn't zeros and isn't a record lies between these bytes of the file.
    Gap { at: u64, to: u64 },
}

impl Walk {
    pub(crate) fn new(window: Window, tag: LogTag, start: u64) -> Self {
        Self { window, tag, start, at: SEGMENT_HEADER_BYTES, written_end: SEGMENT_HEADER_BYTES }
    }

    /// The byte of the file up to which it was read; where the records end, after the last step.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The end of the last byte so far that was a record's or no record and not zero.
    pub(crate) fn written_end(&self) -> u64 {
        self.written_end
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// The global offset of a byte of the file.
    pub(crate) fn offset(&self, at: u64) -> u64 {
        self.start + (at - SEGMENT_HEADER_BYTES)
    }

    /// `None` when nothing but zeros is left.
    pub(crate) fn next(&mut self) -> Result<Option<Step<'_>>, StorageError> {
        let at = self.at;
        if let Some(bytes) = self.whole_record(at)? {
            self.at += bytes;
            self.written_end = self.at;
            let (tag, offset) = (self.tag, self.offset(at));
            let record = record::decode(self.window.read(at, bytes as usize)?, tag, offset);
            let record = record.expect("it was whole a moment ago, and the window holds it still");
            return Ok(Some(Step::Record { at, offset, bytes, record }));
        }
        let Some(written_end) = self.window.written_end(at)? else { return Ok(None) };
        let mut to = at + ALIGNMENT as u64;
        while to < written_end && self.whole_record(to)?.is_none() {
            to += ALIGNMENT as u64;
        }
        self.at = to;
        self.written_end = to.min(written_end);
        Ok(Some(Step::Gap { at, to: self.written_end }))
    }

    /// The size of the whole record at this byte of the file, if there is one.
    fn whole_record(&mut self, at: u64) -> Result<Option<u64>, StorageError> {
        let (tag, offset) = (self.tag, self.offset(at));
        let field = self.window.read(at, SIZE_FIELD_BYTES)?.first_chunk().copied().unwrap_or_default();
        let Extent::Record(taken) = record::extent(field, tag, offset) else { return Ok(None) };
        let bytes = self.window.read(at, taken)?;
        let whole = bytes.len() == taken && record::decode(bytes, tag, offset).is_some();
        Ok(whole.then_some(taken as u64))
    }
}
