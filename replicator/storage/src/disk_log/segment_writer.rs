//! Writes batches of records into segments: whole blocks, each write durable before the next.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use super::{
    block_file::{BLOCK_BYTES, BlockBuffer, BlockFile, Durable},
    preparation::{Ahead, Maker},
    record,
    replay::Ends,
    segment::{self, Header, SEGMENT_HEADER_BYTES, Segment},
};
use crate::{StorageError, meta::LogTag};

/// What is written at once, at most.
const WRITE_BYTES: usize = 1 << 20;

/// The end of the log on the disk.
pub(crate) struct SegmentWriter {
    maker: Maker,
    tag: LogTag,
    /// None before the log's first record.
    current: Option<Current>,
    ahead: Ahead,
    /// The last block, as far as it is filled, and then what is to be written.
    buffer: BlockBuffer,
    /// How many bytes of the buffer are filled.
    filled: usize,
    /// The byte of the file at which the buffer belongs: a multiple of the block's size.
    at: u64,
    /// The global offset of the log's end.
    end: u64,
    ends: Ends,
}

/// How much of a batch is on the disk.
#[derive(Default)]
pub(crate) struct Progress {
    /// Bytes of its records.
    written: usize,
    /// The segments that were begun for them.
    pub(crate) begun: Vec<Arc<Segment>>,
}

struct Current {
    segment: Arc<Segment>,
    file: BlockFile,
}

impl SegmentWriter {
    /// Goes on after `last`, at the global offset `end`, where the log has these ends. `ahead` is the capacity of the segment made ahead.
    pub(crate) fn resume(
        maker: Maker,
        tag: LogTag,
        last: Option<&Arc<Segment>>,
        ahead: Option<u64>,
        end: u64,
        ends: Ends,
    ) -> Result<Self, StorageError> {
        let ahead = Ahead::new(maker.clone(), ahead);
        let buffer = BlockBuffer::new(WRITE_BYTES);
        let mut writer = Self { maker, tag, current: None, ahead, buffer, filled: 0, at: 0, end, ends };
        if let Some(segment) = last {
            let byte = segment.byte_of(end);
            writer.filled = (byte % BLOCK_BYTES as u64) as usize;
            writer.at = byte - writer.filled as u64;
            File::open(&segment.path)
                .and_then(|file| file.read_exact_at(&mut writer.buffer[..writer.filled], writer.at))
                .map_err(StorageError::io("read", &segment.path))?;
            let file = BlockFile::open(&segment.path, writer.maker.direct, Durable::EachWrite)?;
            writer.current = Some(Current { segment: segment.clone(), file });
        } else {
            // So that a disk without room says so now.
            let capacity = writer.ahead.obtain(0, None, 0)?;
            writer.ahead = Ahead::new(writer.maker.clone(), Some(capacity));
        }
        writer.gauge_rest();
        Ok(writer)
    }

    /// Writes these records, which were encoded for the log's end, from `progress` on; durable on return. `ends` are the log's after them.
    ///
    /// # Errors
    /// [`StorageError::Full`] if there is no room for the next segment: then `progress` says how far it came, and it may be called again.
    /// Any other: what is on the disk is unknown then, and nothing may be written any more.
    pub(crate) fn write(&mut self, records: &[u8], ends: Ends, progress: &mut Progress) -> Result<(), StorageError> {
        while let Some(rest) = records.get(progress.written..).filter(|rest| !rest.is_empty()) {
            let fitting = self.fitting(rest);
            if fitting == 0 {
                progress.begun.push(self.begin_segment(rest)?);
                continue;
            }
            let (now, later) = rest.split_at(fitting);
            if !later.is_empty() {
                record::walk(now).for_each(|(_, change)| self.ends.apply(change));
            }
            self.write_here(now)?;
            progress.written += fitting;
        }
        self.ends = ends;
        Ok(())
    }

    /// Begins to make the next segment if the current one is half full, or if there was no room for one before: that there is again is
    /// known only when one is there.
    ///
    /// # Errors
    /// If it couldn't be made, and not for want of room.
    pub(crate) fn prepare(&mut self) -> Result<(), StorageError> {
        if let Some(Segment { sequence, capacity, .. }) = self.current.as_ref().map(|current| &*current.segment)
            && (self.byte() > capacity / 2 || self.ahead.is_starved())
        {
            return self.ahead.begin(sequence + 1, *capacity);
        }
        Ok(())
    }

    /// Whether [`Self::prepare`] has more to do some time later, though nothing is written.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.ahead.is_unsettled()
    }

    fn gauge_rest(&self) {
        let rest = self.current.as_ref().map_or(0, |current| current.segment.capacity - self.byte());
        self.maker.gauge.set_rest(rest);
    }

    /// The byte of the current file at which the next record goes.
    fn byte(&self) -> u64 {
        self.at + self.filled as u64
    }

    /// How many bytes of these are whole records that the current segment has room for.
    fn fitting(&self, records: &[u8]) -> usize {
        let room = self.current.as_ref().map_or(0, |current| current.segment.capacity - self.byte());
        if records.len() as u64 <= room {
            return records.len();
        }
        let mut fitting = 0;
        for (taken, _) in record::walk(records) {
            if (fitting + taken) as u64 > room {
                break;
            }
            fitting += taken;
        }
        fitting
    }

    /// Takes the next segment, for the first of these records and what follows it. Its header is written with them.
    fn begin_segment(&mut self, records: &[u8]) -> Result<Arc<Segment>, StorageError> {
        let before = self.current.as_ref().map(|current| &current.segment);
        let sequence = before.map_or(0, |before| before.sequence + 1);
        let need = record::walk(records).next().map_or(0, |(taken, _)| taken);
        let capacity = self.ahead.obtain(sequence, before.map(|before| before.capacity), need)?;
        let path = segment::path(&self.maker.dir, sequence);
        let file = BlockFile::open(&path, self.maker.direct, Durable::EachWrite)?;
        let header = Header { tag: self.tag, sequence, start: self.end, capacity, ends: self.ends };
        self.buffer[..BLOCK_BYTES].copy_from_slice(&header.encode());
        (self.at, self.filled) = (0, SEGMENT_HEADER_BYTES as usize);
        let segment = Arc::new(Segment { path, sequence, start: self.end, capacity });
        self.current = Some(Current { segment: segment.clone(), file });
        Ok(segment)
    }

    /// Writes bytes that the current segment has room for, with what its last block held before.
    fn write_here(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        let Current { file, .. } = self.current.as_mut().expect("only a segment has room");
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.buffer.len() - self.filled);
            self.buffer[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            let blocks = self.filled.next_multiple_of(BLOCK_BYTES);
            self.buffer[self.filled..blocks].fill(0);
            file.write(&self.buffer[..blocks], self.at)?;
            // The last block, if it isn't full, is written again with what comes next.
            let done = self.filled / BLOCK_BYTES * BLOCK_BYTES;
            self.buffer.copy_within(done..self.filled, 0);
            self.filled -= done;
            self.at += done as u64;
            self.end += taken as u64;
            bytes = &bytes[taken..];
        }
        self.gauge_rest();
        Ok(())
    }
}
