//! A logical snapshot as a stream of bytes, which the host carries in chunks cut anywhere.
//!
//! Records `{u32 len; len bytes}`, then the end `{u32 0xffffffff; u64 number of records}`: a stream that lost its tail is
//! refused even if it was cut between records.

use std::mem;

const END: u32 = u32::MAX;
const LEN_BYTES: usize = 4;
const END_BYTES: usize = 12;

/// Writes the stream, one chunk after the other.
pub(crate) struct SnapshotStream<'a> {
    records: Box<dyn Iterator<Item = Vec<u8>> + 'a>,
    /// What comes before the record: its length, or the whole end.
    head: [u8; END_BYTES],
    /// What of `head` is still to be written.
    head_left: std::ops::Range<usize>,
    record: Vec<u8>,
    /// How much of `record` is written.
    record_written: usize,
    count: u64,
    ended: bool,
}

impl<'a> SnapshotStream<'a> {
    pub(crate) fn new(records: impl Iterator<Item = Vec<u8>> + 'a) -> Self {
        Self {
            records: Box::new(records),
            head: [0; END_BYTES],
            head_left: 0..0,
            record: Vec::new(),
            record_written: 0,
            count: 0,
            ended: false,
        }
    }

    /// Fills `chunk` with the next `max` bytes; fewer are the last ones, and none mean that the stream is at its end.
    pub(crate) fn fill(&mut self, chunk: &mut Vec<u8>, max: usize) {
        chunk.clear();
        chunk.reserve_exact(max);
        while chunk.len() < max {
            let room = max - chunk.len();
            if !self.head_left.is_empty() {
                let n = room.min(self.head_left.len());
                chunk.extend_from_slice(&self.head[self.head_left.start..self.head_left.start + n]);
                self.head_left.start += n;
            } else if self.record_written < self.record.len() {
                let n = room.min(self.record.len() - self.record_written);
                chunk.extend_from_slice(&self.record[self.record_written..self.record_written + n]);
                self.record_written += n;
            } else if self.ended {
                break;
            } else {
                self.next_record();
            }
        }
    }

    fn next_record(&mut self) {
        self.record_written = 0;
        if let Some(record) = self.records.next() {
            let len = u32::try_from(record.len()).ok().filter(|len| *len != END);
            let len = len.expect("a record is smaller than the memory");
            self.head[..LEN_BYTES].copy_from_slice(&len.to_le_bytes());
            self.head_left = 0..LEN_BYTES;
            self.record = record;
            self.count += 1;
        } else {
            self.head[..LEN_BYTES].copy_from_slice(&END.to_le_bytes());
            self.head[LEN_BYTES..].copy_from_slice(&self.count.to_le_bytes());
            self.head_left = 0..END_BYTES;
            self.record = Vec::new();
            self.ended = true;
        }
    }
}

/// Reads the stream, one chunk after the other.
#[derive(Debug, Default)]
pub(crate) struct RestoreStream {
    /// The beginning of a record whose end is in a chunk to come.
    partial: Vec<u8>,
    count: u64,
    ended: bool,
}

impl RestoreStream {
    pub(crate) const fn new() -> Self {
        Self { partial: Vec::new(), count: 0, ended: false }
    }

    /// Hands the records of a chunk to `take`.
    ///
    /// # Errors
    /// What `take` says, or how the stream is broken.
    pub(crate) fn feed(
        &mut self,
        mut chunk: &[u8],
        last: bool,
        take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while !chunk.is_empty() {
            if self.partial.is_empty() {
                // The fast way: a whole record is used where it lies.
                match frame_len(chunk)? {
                    Some(len) if len <= chunk.len() => {
                        let (frame, rest) = chunk.split_at(len);
                        self.frame(frame, take)?;
                        chunk = rest;
                    }
                    _ => {
                        self.partial.extend_from_slice(chunk);
                        break;
                    }
                }
            } else {
                let wanted = frame_len(&self.partial)?.unwrap_or(LEN_BYTES);
                let (more, rest) = chunk.split_at(chunk.len().min(wanted - self.partial.len()));
                self.partial.extend_from_slice(more);
                chunk = rest;
                if frame_len(&self.partial)? == Some(self.partial.len()) {
                    let frame = mem::take(&mut self.partial);
                    self.frame(&frame, take)?;
                }
            }
        }
        if last && !self.ended {
            return Err(format!("the snapshot breaks off after {} records", self.count));
        }
        Ok(())
    }

    fn frame(&mut self, frame: &[u8], take: &mut dyn FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        if self.ended {
            return Err("the snapshot goes on after its end".to_owned());
        }
        let Some((len, bytes)) = frame.split_first_chunk() else { return Ok(()) };
        if u32::from_le_bytes(*len) != END {
            self.count += 1;
            return take(bytes);
        }
        let mut count = [0; 8];
        count.copy_from_slice(bytes);
        let count = u64::from_le_bytes(count);
        if count != self.count {
            return Err(format!("the snapshot has {} records and claims {count}", self.count));
        }
        self.ended = true;
        Ok(())
    }
}

/// How long the record or end is that `bytes` begin with, if that can be seen yet.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(len) = bytes.first_chunk() else { return Ok(None) };
    match u32::from_le_bytes(*len) {
        END => Ok(Some(END_BYTES)),
        len => match usize::try_from(len).ok().and_then(|len| len.checked_add(LEN_BYTES)) {
            Some(len) => Ok(Some(len)),
            None => Err(format!("the snapshot has a record of {len} bytes")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Vec<u8>> {
        [0, 1, 3, 4, 5, 100, 0, 7].iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect()
    }

    fn write(records: &[Vec<u8>], max: usize) -> Vec<Vec<u8>> {
        let mut stream = SnapshotStream::new(records.iter().cloned());
        let mut chunk = Vec::new();
        let mut chunks = Vec::new();
        loop {
            stream.fill(&mut chunk, max);
            if chunk.is_empty() {
                return chunks;
            }
            chunks.push(chunk.clone());
        }
    }

    fn read(chunks: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        let mut stream = RestoreStream::new();
        let mut records = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            stream.feed(chunk, i + 1 == chunks.len(), &mut |record| {
                records.push(record.to_vec());
                Ok(())
            })?;
        }
        Ok(records)
    }

    #[test]
    fn records_survive_chunks_of_every_size() {
        for records in [records(), vec![], vec![vec![]]] {
            let whole = write(&records, 1 << 20).concat();
            for max in 1..whole.len() + 2 {
                let chunks = write(&records, max);
                assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() == max));
                assert_eq!(chunks.concat(), whole);
                assert_eq!(read(&chunks), Ok(records.clone()), "chunks of {max} bytes");
            }
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_refused() {
        let whole = write(&records(), 1 << 20).concat();
        for len in 0..whole.len() {
            let error = read(&[whole[..len].to_vec()]).unwrap_err();
            assert!(error.contains("breaks off"), "cut at {len}: {error}");
        }
    }

    #[test]
    fn a_missing_record_is_refused() {
        let mut whole = write(&records(), 1 << 20).concat();
        whole.drain(..4);
        assert_eq!(read(&[whole]), Err("the snapshot has 7 records and claims 8".to_owned()));
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut whole = write(&records(), 1 << 20).concat();
        whole.extend([0, 0, 0, 0]);
        assert_eq!(read(&[whole]), Err("the snapshot goes on after its end".to_owned()));
    }
}
