//! A log that is only looked at: scanned as an opening scans it, read as an open one is read, and left as it is.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use replicator_types::LogIndex;

use super::{index::Index, reader, scanner::Scan, segment::Segment, tear::TornTail, watermark};
use crate::{LogEnds, ReadLog, Record, StorageError, meta::LogTag};

/// The entries of a stopped node's log. A torn tail, which nobody was told of, is left out; nothing is cut off.
pub struct StoppedLog {
    path: PathBuf,
    tag: LogTag,
    ends: LogEnds,
    index: Index,
    segments: Vec<Arc<Segment>>,
    torn_tail: Option<TornTail>,
}

impl fmt::Debug for StoppedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoppedLog").field("path", &self.path).field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl StoppedLog {
    /// Reads every byte of the log in `dir`. The caller keeps nodes out of it.
    pub(crate) fn read_in(dir: &Path, tag: LogTag) -> Result<Self, StorageError> {
        let watermark = watermark::read(dir, tag)?.1.watermark;
        let scan = Scan::read(dir, tag, watermark)?;
        let (purged, last) = (scan.replay.ends.purged, scan.replay.ends.last);
        // What was durable may have been cut off since, by a record that is not known to be.
        let ends = LogEnds { purged, last, durable: watermark.last.min(last) };
        let (index, segments, torn_tail) = (scan.replay.index, scan.segments, scan.torn_tail);
        Ok(Self { path: dir.to_owned(), tag, ends, index, segments, torn_tail })
    }

    /// What an opening would cut off its end.
    #[must_use]
    pub const fn torn_tail(&self) -> Option<&TornTail> {
        self.torn_tail.as_ref()
    }
}

impl ReadLog for StoppedLog {
    fn ends(&self) -> LogEnds {
        self.ends
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        for (position, slot, _) in self.index.range(from, to) {
            if !wanted.is_empty() && bytes >= bytes_max {
                break;
            }
            bytes += slot.length as usize;
            wanted.push((position, *slot));
        }
        reader::read(&wanted, &self.segments, self.tag)
    }
}
