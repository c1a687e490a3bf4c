//! All records of a log, one after the other, without opening it.

use std::{
    path::{Path, PathBuf},
    vec,
};

use bytes::Bytes;
use replicator_types::{LogIndex, Position};

use super::{
    record::Change,
    segment::{self, FirstBlock, SEGMENT_HEADER_BYTES},
    walk::{Step, Walk},
    window::Window,
};
use crate::{StorageError, lock::DirLock, meta::LogTag};

/// What a record does to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Adds the entry that the record carries.
    Append,
    /// Drops all entries after the record's position.
    TruncateAfter,
    /// Drops all entries up to the record's position.
    PurgeThrough,
    /// Drops all entries of a log that was never purged.
    TruncateAll,
}

/// A record as it lies in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRecord {
    /// The number of the segment that it is in.
    pub segment: u64,
    /// The byte of the segment's file at which it begins.
    pub byte: u64,
    /// The byte in the row of all records at which it begins.
    pub offset: u64,
    /// What it does.
    pub kind: RecordKind,
    /// The entry that it adds, or after which, or through which it cuts; zeros for [`RecordKind::TruncateAll`].
    pub position: Position,
    /// The byte in the row of all records up to which the log was known to be durable when this was written.
    pub durable_end: u64,
    /// The entry, in the strategy's encoding; empty for other kinds.
    pub payload: Bytes,
}

/// Iterates over the records of a stopped node's log in the order in which they were written, with purged and truncated ones as far as
/// their segments are still there. It holds the folder's lock.
///
/// What can't be read is an item too, an error with its place; the records behind it follow. Whether it is damage or a torn tail, that
/// [`crate::NodeDir::verify`] says.
#[derive(Debug)]
pub struct LogDump {
    tag: LogTag,
    from: LogIndex,
    files: vec::IntoIter<(u64, PathBuf)>,
    current: Option<(u64, Walk)>,
    _lock: Option<DirLock>,
}

impl LogDump {
    pub(crate) fn open(dir: &Path, tag: LogTag, from: LogIndex, lock: Option<DirLock>) -> Result<Self, StorageError> {
        Ok(Self { tag, from, files: segment::files(dir)?.into_iter(), current: None, _lock: lock })
    }

    fn step(&mut self) -> Result<Option<LoggedRecord>, StorageError> {
        loop {
            let Some((segment, walk)) = &mut self.current else {
                let Some((sequence, path)) = self.files.next() else { return Ok(None) };
                self.current = begin(&path, self.tag)?.map(|walk| (sequence, walk));
                continue;
            };
            let path = walk.window().path().to_owned();
            match walk.next()? {
                None => self.current = None,
                Some(Step::Gap { at, to }) => {
                    let what = format!("{} bytes from here on are no records", to - at);
                    return Err(StorageError::damaged(path, at, what));
                }
                Some(Step::Record { at, offset, record, .. }) => {
                    let (kind, position) = match record.change {
                        Change::Append(position) => (RecordKind::Append, position),
                        Change::TruncateAfter(Some(position)) => (RecordKind::TruncateAfter, position),
                        Change::TruncateAfter(None) => (RecordKind::TruncateAll, Position::default()),
                        Change::PurgeThrough(position) => (RecordKind::PurgeThrough, position),
                    };
                    if kind == RecordKind::TruncateAll || position.index >= self.from {
                        return Ok(Some(LoggedRecord {
                            segment: *segment,
                            byte: at,
                            offset,
                            kind,
                            position,
                            durable_end: record.durable_end,
                            payload: Bytes::copy_from_slice(record.payload),
                        }));
                    }
                }
            }
        }
    }
}

impl Iterator for LogDump {
    type Item = Result<LoggedRecord, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if matches!(step, Err(StorageError::Io { .. })) {
            self.current = None; // reading there again would fail again, and for ever
        }
        step.transpose()
    }
}

/// The records of a file; none if it was made ahead.
fn begin(path: &Path, tag: LogTag) -> Result<Option<Walk>, StorageError> {
    let mut window = Window::open(path)?;
    match FirstBlock::decode(window.read(0, SEGMENT_HEADER_BYTES as usize)?) {
        FirstBlock::Whole(header) if header.tag == tag => Ok(Some(Walk::new(window, tag, header.start))),
        FirstBlock::Whole(_) => Err(StorageError::damaged(path, 0, "the segment belongs to another log")),
        FirstBlock::Other(version) => Err(segment::other_version(path, version)),
        FirstBlock::None if window.written_end(0)?.is_none() => Ok(None),
        FirstBlock::None => Err(StorageError::damaged(path, 0, "the segment's header can't be read")),
    }
}
