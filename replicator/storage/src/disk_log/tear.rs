//! Where a log can't be read any further: a torn tail, or damage?

use std::path::PathBuf;

use super::{
    record::{self, ALIGNMENT, Extent, SIZE_FIELD_BYTES},
    scanner::Headless,
    segment::SEGMENT_HEADER_BYTES,
    window::Window,
};
use crate::{StorageError, meta::LogTag};

/// What was cut off the end of a log: written, but never known to be durable, and so never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file in which it began.
    pub file: PathBuf,
    /// At which byte.
    pub offset: u64,
    /// How many bytes there were, up to the last one that isn't zero, those of the next file included.
    pub bytes: u64,
    /// How many whole records were among them, after the tear.
    pub records: u64,
}

/// The last segment can't be read from `at` to `to`, both bytes of its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tear {
    pub(crate) at: u64,
    pub(crate) to: u64,
    /// Whether there is something that is no record; else there are zeros, and later something else.
    pub(crate) unreadable: bool,
}

/// Describes the torn tail, or finds out that it isn't one. `end` is the global offset where the log ends.
pub(crate) fn judge(
    tag: LogTag,
    end: u64,
    tear: Option<(Window, Tear)>,
    headless: &[Headless],
) -> Result<Option<TornTail>, StorageError> {
    let mut tail: Option<TornTail> = None;
    let mut add = |file: &std::path::Path, at: u64, to: u64, later: Later| {
        let tail = tail.get_or_insert_with(|| TornTail { file: file.to_owned(), offset: at, bytes: 0, records: 0 });
        tail.bytes += to - at;
        tail.records += later.records;
        if later.durable_end > end {
            let what = "the log can't be read from here on, and later records say that it was durable";
            return Err(StorageError::damaged(&tail.file, tail.offset, what));
        }
        Ok(())
    };
    let mut headless = headless.iter().filter_map(|file| Some((file.window.path(), file.written_end?))).peekable();
    if let Some((mut window, Tear { at, to, unreadable })) = tear {
        if headless.peek().is_some() {
            let what = if unreadable { "a record can't be read" } else { "the log ends here, before other bytes" };
            let what = format!("{what}, and the segment after it was written: so it was durable");
            return Err(StorageError::damaged(window.path(), at, what));
        }
        let later = Later::find(&mut window, tag, at, to, end)?;
        add(window.path(), at, to, later)?;
    }
    for (path, to) in headless {
        // The segment before it was durable before this one was begun, so its records begin where that one ends.
        let later = Later::find(&mut Window::open(path)?, tag, SEGMENT_HEADER_BYTES, to, end)?;
        add(path, 0, to, later)?;
    }
    Ok(tail)
}

/// The whole records after a place where the log can't be read.
#[derive(Default)]
struct Later {
    records: u64,
    durable_end: u64,
}

impl Later {
    /// Looks from byte `from` of the file, which has the global offset `offset`, to byte `to`.
    fn find(window: &mut Window, tag: LogTag, from: u64, to: u64, offset: u64) -> Result<Self, StorageError> {
        let mut found = Self::default();
        let mut at = from;
        while at < to {
            let offset = offset + (at - from);
            let field = window.read(at, SIZE_FIELD_BYTES)?.first_chunk().copied().unwrap_or_default();
            let mut step = ALIGNMENT as u64;
            if let Extent::Record(taken) = record::extent(field, tag, offset)
                && let bytes = window.read(at, taken)?
                && bytes.len() == taken
                && let Some(record) = record::decode(bytes, tag, offset)
            {
                found.records += 1;
                found.durable_end = found.durable_end.max(record.durable_end);
                step = taken as u64;
            }
            at += step;
        }
        Ok(found)
    }
}
