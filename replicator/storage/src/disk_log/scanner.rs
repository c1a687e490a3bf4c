//! Reads every byte of the log before it is opened, and tells damage from a torn tail.
//!
//! - Below the *floor* everything was durable, and whatever doesn't fit is damage. The floor is the greatest of the watermark, and
//!   the start of the last segment: its header is written only after all of the segment before it is durable.
//! - Above it, what can't be read is a torn tail, unless a whole record after it says that it was written when the log was
//!   durable beyond the tear: the watermark file may be older than the truth after a power loss, and the records know better.
//! - The log ends at a size of zero, and all that follows in the file must be zeros: they were written before the records were.
//! - A whole record that doesn't fit the log is damage wherever it is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use replicator_types::Position;

use super::{
    record::{self, Extent, SIZE_FIELD_BYTES},
    replay::Replay,
    segment::{self, FirstBlock, Header, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, Segment},
    tear::{self, Tear, TornTail},
    watermark::Watermark,
    window::Window,
};
use crate::{StorageError, meta::LogTag};

/// A log that may be opened, after it was repaired.
#[derive(Debug)]
pub(crate) struct Scan {
    /// What the records add up to.
    pub(crate) replay: Replay,
    /// The global offset of the log's end, without the torn tail.
    pub(crate) end: u64,
    /// How many records there are, with purged and truncated ones.
    pub(crate) records: u64,
    /// The segments with records, in order.
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) torn_tail: Option<TornTail>,
    /// The end of what must become zeros in the last segment, as a byte of its file; at most where the records end if nothing must.
    pub(crate) torn_to: u64,
    /// The capacity of the segment made ahead.
    pub(crate) ahead: Option<u64>,
    /// Files to remove, the last one first: of segments that were never begun, or whose header is part of the torn tail.
    pub(crate) removed: Vec<PathBuf>,
}

/// A file after the last one with a header.
#[derive(Debug)]
pub(crate) struct Headless {
    pub(crate) window: Window,
    /// Where what is not zero ends; `None` if all is.
    pub(crate) written_end: Option<u64>,
}

impl Scan {
    /// Reads the log in `dir`. Changes nothing.
    pub(crate) fn read(dir: &Path, tag: LogTag, watermark: Watermark) -> Result<Self, StorageError> {
        let files = Files::read(dir, tag)?;
        let first = files.born.first().map(|(_, header)| *header);
        let mut reader = Reader {
            tag,
            watermark,
            replay: Replay::begin(first.map(|header| header.ends).unwrap_or_default()),
            end: first.map_or(0, |header| header.start),
            records: 0,
        };
        let mut segments = Vec::new();
        let mut tear = None;
        let mut born = files.born.into_iter().peekable();
        while let Some((mut window, header)) = born.next() {
            let Header { sequence, start, capacity, .. } = header;
            let segment = Segment { path: window.path().to_owned(), sequence, start, capacity };
            let next = born.peek().map(|(_, next)| next);
            tear = reader.read_segment(&mut window, &segment, &header, next)?.map(|tear| (window, tear));
            segments.push(Arc::new(segment));
        }
        reader.check_ends(dir, &segments, &files.headless)?;
        let torn_to = tear.as_ref().map_or(0, |(_, tear)| tear.to);
        let torn_tail = tear::judge(tag, reader.end, tear, &files.headless)?;
        let is_ahead = |(i, file): (usize, &Headless)| {
            let bytes = file.window.bytes();
            let whole = bytes >= SEGMENT_BYTES_MIN && bytes.is_multiple_of(SEGMENT_HEADER_BYTES);
            (i == 0 && file.written_end.is_none() && whole).then_some(bytes)
        };
        let ahead = files.headless.iter().enumerate().next().and_then(is_ahead);
        let kept = usize::from(ahead.is_some());
        let removed = files.headless[kept..].iter().rev().map(|file| file.window.path().to_owned()).collect();
        Ok(Self {
            end: reader.end,
            records: reader.records,
            replay: reader.replay,
            segments,
            torn_tail,
            torn_to,
            ahead,
            removed,
        })
    }
}

/// The files of a log.
struct Files {
    born: Vec<(Window, Header)>,
    headless: Vec<Headless>,
}

impl Files {
    fn read(dir: &Path, tag: LogTag) -> Result<Self, StorageError> {
        let mut found = Self { born: Vec::new(), headless: Vec::new() };
        let mut expected = None;
        for (sequence, path) in segment::files(dir)? {
            if expected.is_some_and(|expected| expected != sequence) {
                return Err(StorageError::damaged(path, None, "the segment before it is missing"));
            }
            expected = Some(sequence + 1);
            let mut window = Window::open(&path)?;
            let damaged = |what: String| Err(StorageError::damaged(&path, 0, what));
            match FirstBlock::decode(window.read(0, SEGMENT_HEADER_BYTES as usize)?) {
                FirstBlock::Other(version) => return Err(segment::other_version(&path, version)),
                FirstBlock::None => {
                    let written_end = window.written_end(0)?;
                    found.headless.push(Headless { window, written_end });
                }
                FirstBlock::Whole(header) => {
                    if let Some(lost) = found.headless.first() {
                        let what = "its header can't be read, and the one of a later segment can: so it was durable";
                        return Err(StorageError::damaged(lost.window.path(), 0, what));
                    }
                    if header.tag != tag {
                        return damaged("the segment belongs to another log".into());
                    }
                    if header.sequence != sequence {
                        return damaged(format!("it says that it is segment {}", header.sequence));
                    }
                    if header.capacity != window.bytes() {
                        let (bytes, capacity) = (window.bytes(), header.capacity);
                        return damaged(format!("the file has {bytes} bytes, and was made with {capacity}"));
                    }
                    found.born.push((window, header));
                }
            }
        }
        Ok(found)
    }
}

/// What is known while reading segment after segment.
struct Reader {
    tag: LogTag,
    watermark: Watermark,
    replay: Replay,
    /// The global offset of the end of what was read.
    end: u64,
    records: u64,
}

impl Reader {
    /// Reads one segment. Only the last one, which has no `next`, may have a tear, above the watermark.
    fn read_segment(
        &mut self,
        window: &mut Window,
        segment: &Segment,
        header: &Header,
        next: Option<&Header>,
    ) -> Result<Option<Tear>, StorageError> {
        if header.start != self.end || header.ends != self.replay.ends {
            let (found, known) = (header.ends, self.replay.ends);
            let what = format!(
                "begins at {} of the log with {found:?}, and before are {} with {known:?}",
                header.start, self.end
            );
            return Err(StorageError::damaged(&segment.path, 0, what));
        }
        self.check_last(&segment.path, 0)?;
        let mut at = SEGMENT_HEADER_BYTES;
        let torn = loop {
            match self.read_record(window, &segment.path, at)? {
                Found::Record(taken) => at += taken,
                Found::End => break false,
                Found::Unreadable => break true,
            }
        };
        let written_end = window.written_end(at)?;
        let damaged = |what: String| Err(StorageError::damaged(&segment.path, at, what));
        if let Some(next) = next {
            return match written_end {
                _ if torn => damaged("a durable record can't be read".into()),
                _ if next.start != self.end => {
                    damaged(format!("the records end here, and the next segment begins at {} of the log", next.start))
                }
                Some(end) => Err(StorageError::damaged(&segment.path, end - 1, "not zero, after the last record")),
                None => Ok(None),
            };
        }
        if torn && self.end < self.watermark.end {
            return damaged("a durable record can't be read".into());
        }
        Ok(written_end.filter(|_| self.end >= self.watermark.end).map(|to| Tear { at, to, unreadable: torn }))
    }

    /// Reads the record at this byte of the file, which is where the log ends so far.
    fn read_record(&mut self, window: &mut Window, path: &Path, at: u64) -> Result<Found, StorageError> {
        let offset = self.end;
        let Some(field) = window.read(at, SIZE_FIELD_BYTES)?.first_chunk().copied() else { return Ok(Found::End) };
        let taken = match record::extent(field, self.tag, offset) {
            Extent::Nothing => return Ok(Found::End),
            Extent::Unreadable => return Ok(Found::Unreadable),
            Extent::Record(taken) => taken,
        };
        let bytes = window.read(at, taken)?;
        let decoded = if bytes.len() == taken { record::decode(bytes, self.tag, offset) } else { None };
        let Some(record) = decoded else { return Ok(Found::Unreadable) };
        let damaged = |what: String| StorageError::damaged(path, at, what);
        let end = offset + taken as u64;
        if offset < self.watermark.end && self.watermark.end < end {
            return Err(damaged(format!("durable was the log up to {}, amid this record", self.watermark.end)));
        }
        self.replay.apply(&record, offset).map_err(damaged)?;
        self.records += 1;
        self.end = end;
        self.check_last(path, at)?;
        Ok(Found::Record(taken as u64))
    }

    /// At the watermark, the last entry must be the one that it names.
    fn check_last(&self, path: &Path, at: u64) -> Result<(), StorageError> {
        let (found, known) = (self.replay.ends.last, self.watermark.last);
        if self.end == self.watermark.end && found != known {
            let show = |last: Option<Position>| last.map_or("none".to_owned(), |last| last.to_string());
            let what = format!("the last entry is {} here, and {} was durable", show(found), show(known));
            return Err(StorageError::damaged(path, at, what));
        }
        Ok(())
    }

    fn check_ends(&self, dir: &Path, segments: &[Arc<Segment>], headless: &[Headless]) -> Result<(), StorageError> {
        if self.end < self.watermark.end {
            let missing = self.watermark.end - self.end;
            if let Some(lost) = headless.first().filter(|file| file.written_end.is_some()) {
                let what = format!("its header can't be read, and {missing} durable bytes should follow it");
                return Err(StorageError::damaged(lost.window.path(), 0, what));
            }
            let what = format!("the log ends here, and {missing} durable bytes are missing");
            return Err(match segments.last() {
                Some(last) => StorageError::damaged(&last.path, last.byte_of(self.end), what),
                None => match headless.first() {
                    Some(blank) => StorageError::damaged(blank.window.path(), 0, what),
                    None => StorageError::damaged(dir, None, what),
                },
            });
        }
        let absent = self.replay.absent();
        let begins_late = segments.first().is_some_and(|first| first.sequence > 0 && self.replay.ends.purged.is_none());
        if begins_late || absent.is_some() {
            let absent = absent.unwrap_or_else(|| "its first segments, and nothing was purged".into());
            return Err(StorageError::damaged(dir, None, format!("the log's beginning is missing: {absent}")));
        }
        Ok(())
    }
}

/// What is at a place of the log.
enum Found {
    /// A record of so many bytes.
    Record(u64),
    /// Nothing was written here, or the file is full.
    End,
    Unreadable,
}
