//! What can be read of a damaged log's segments, and what that tells of the places in between.

use std::path::{Path, PathBuf};

use replicator_types::Position;

use super::super::{
    record::Change,
    segment::{self, FirstBlock, Header, SEGMENT_HEADER_BYTES},
    walk::{Step, Walk},
    watermark::Watermark,
    window::Window,
};
use crate::{StorageError, meta::LogTag};

/// What follows a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// This entry is appended: the one before it is the last of the hole.
    Entry(Position),
    /// This is the log's last entry there, purged or not.
    Last(Option<Position>),
    /// The log is cut after this entry, whatever else is in it.
    Cut(Option<Position>),
}

/// A segment's file.
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    /// 0 if it is missing.
    pub(super) bytes: u64,
    pub(super) header: Option<Header>,
    pub(super) exists: bool,
    /// Whether not all of it is zero.
    pub(super) written: bool,
}

impl Found {
    pub(super) fn missing(dir: &Path, sequence: u64) -> Self {
        Self { sequence, path: segment::path(dir, sequence), bytes: 0, header: None, exists: false, written: false }
    }

    pub(super) fn following(&self) -> Self {
        Self::missing(self.path.parent().expect("a segment is in a folder"), self.sequence + 1)
    }
}

/// The segments' files in order, missing ones between them included; one that is missing if there is none.
pub(super) fn files(dir: &Path, tag: LogTag) -> Result<Vec<Found>, StorageError> {
    let mut found: Vec<Found> = Vec::new();
    for (sequence, path) in segment::files(dir)? {
        while let Some(before) = found.last().filter(|before| before.sequence + 1 < sequence) {
            let missing = before.following();
            found.push(missing);
        }
        let mut window = Window::open(&path)?;
        let bytes = window.bytes();
        let header = match FirstBlock::decode(window.read(0, SEGMENT_HEADER_BYTES as usize)?) {
            FirstBlock::Other(version) => return Err(segment::other_version(&path, version)),
            FirstBlock::Whole(header) => Some(header).filter(|header| header.tag == tag && header.sequence == sequence),
            FirstBlock::None => None,
        };
        let written = header.is_some() || window.written_end(0)?.is_some();
        found.push(Found { sequence, path, bytes, header, exists: true, written });
    }
    if found.is_empty() {
        found.push(Found::missing(dir, 0));
    }
    Ok(found)
}

/// The whole records of one segment.
pub(super) struct Read {
    pub(super) start: u64,
    /// Bytes of the file that are no records, the last perhaps without a record behind it.
    pub(super) gaps: Vec<(u64, u64)>,
    /// What is seen from the segment's beginning on, and from the end of each gap on, up to the next gap.
    pub(super) looks: Vec<Look>,
    /// The byte of the file behind the last whole record.
    pub(super) end: u64,
    pub(super) records: u64,
    /// The greatest durable end that a record tells.
    pub(super) durable_end: u64,
    /// Purges and truncations, by their global offsets.
    pub(super) purges: Vec<(u64, Position)>,
    pub(super) cuts: Vec<(u64, Option<Position>)>,
}

#[derive(Default)]
pub(super) struct Look {
    pub(super) after: Option<After>,
    pub(super) purges: bool,
    pub(super) durable_end: Option<u64>,
}

impl Read {
    pub(super) fn new(
        file: &Found,
        tag: LogTag,
        start: u64,
        watermark: Watermark,
        named: &mut Vec<Position>,
    ) -> Result<Self, StorageError> {
        let mut read = Self {
            start,
            gaps: Vec::new(),
            looks: vec![Look::default()],
            end: SEGMENT_HEADER_BYTES,
            records: 0,
            durable_end: 0,
            purges: Vec::new(),
            cuts: Vec::new(),
        };
        if file.bytes == 0 {
            return Ok(read);
        }
        let mut walk = Walk::new(Window::open(&file.path)?, tag, start);
        while let Some(step) = walk.next()? {
            match step {
                Step::Gap { at, to } => {
                    read.gaps.push((at, to));
                    read.looks.push(Look::default());
                }
                Step::Record { at, offset, bytes, record } => {
                    (read.end, read.records) = (at + bytes, read.records + 1);
                    read.durable_end = read.durable_end.max(record.durable_end);
                    let look = read.looks.last_mut().expect("there is one from the beginning");
                    look.durable_end.get_or_insert(record.durable_end);
                    match record.change {
                        Change::Append(position) => {
                            look.after.get_or_insert(After::Entry(position));
                        }
                        Change::TruncateAfter(last) => {
                            look.after.get_or_insert(After::Cut(last));
                            read.cuts.push((offset, last));
                        }
                        Change::PurgeThrough(through) => {
                            look.purges = true;
                            named.push(through);
                            read.purges.push((offset, through));
                        }
                    }
                    if offset + bytes == watermark.end {
                        look.after.get_or_insert(After::Last(watermark.last));
                    }
                }
            }
        }
        Ok(read)
    }

    fn offset(&self, byte: u64) -> u64 {
        self.start + (byte - SEGMENT_HEADER_BYTES)
    }

    /// The global offset behind the last whole record.
    pub(super) fn end(&self) -> u64 {
        self.offset(self.end)
    }

    /// The gap that no record follows.
    pub(super) fn trailing(&self) -> Option<(u64, u64)> {
        self.gaps.last().copied().filter(|(at, _)| *at >= self.end)
    }

    /// The gaps by global offsets, each with the place in `looks` of what follows it. The one that nothing follows goes on to `end`.
    pub(super) fn holes(&self, end: u64) -> Vec<(u64, u64, usize)> {
        let gaps = self.gaps.iter().enumerate().filter_map(|(i, &(at, to))| {
            let (from, to) = (self.offset(at), self.offset(to));
            if at < self.end { Some((from, to, i + 1)) } else { (from < end).then_some((from, end, i + 1)) }
        });
        gaps.collect()
    }
}
