//! Makes a scanned log ready to be appended to: without its torn tail, and durable to its end.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    block_file::{BLOCK_BYTES, BlockBuffer, BlockFile, Durable},
    scanner::Scan,
    segment::{self, Segment},
    watermark::Watermark,
};
use crate::{StorageError, atomic_file};

const REWRITE_BYTES: usize = 1 << 20;

impl Scan {
    /// Overwrites the torn tail with zeros, so that none of it ever comes back, writes everything above the watermark once more, and
    /// removes what was never begun; durable on return.
    pub(crate) fn repair(&self, dir: &Path, watermark: Watermark, direct: bool) -> Result<(), StorageError> {
        for path in self.removed.iter().chain(&segment::unfinished(dir)?) {
            fs::remove_file(path).map_err(StorageError::io("remove", path))?;
        }
        atomic_file::sync_dir(dir)?;
        for (i, segment) in self.segments.iter().enumerate() {
            let next = self.segments.get(i + 1);
            let end = next.map_or(self.end, |next| next.start);
            let torn_to = if next.is_none() { self.torn_to } else { 0 };
            if end > watermark.end || torn_to > 0 {
                rewrite(segment, watermark.end, end, torn_to, direct)?;
            }
        }
        Ok(())
    }
}

/// Writes the segment's bytes between these global offsets once more, and zeros from there to byte `torn_to` of the file. If an earlier
/// process's fsync failed, the system may hold them in memory, marked as clean, and never write them: an fsync alone would then
/// answer that all is well.
fn rewrite(segment: &Segment, from: u64, end: u64, torn_to: u64, direct: bool) -> Result<(), StorageError> {
    let source = File::open(&segment.path).map_err(StorageError::io("open", &segment.path))?;
    let mut file = BlockFile::open(&segment.path, direct, Durable::OnceSynced)?;
    let mut buffer = BlockBuffer::new(REWRITE_BYTES);
    let block = BLOCK_BYTES as u64;
    // With a header that may not be durable either, from that on.
    let mut at = if from > segment.start { segment.byte_of(from) / block * block } else { 0 };
    let kept_to = segment.byte_of(end);
    let to = kept_to.max(torn_to).next_multiple_of(block);
    while at < to {
        let bytes = (to - at).min(REWRITE_BYTES as u64) as usize;
        let kept = kept_to.saturating_sub(at).min(bytes as u64) as usize;
        source.read_exact_at(&mut buffer[..kept], at).map_err(StorageError::io("read", &segment.path))?;
        buffer[kept..bytes].fill(0);
        file.write(&buffer[..bytes], at)?;
        at += bytes as u64;
    }
    file.sync()
}
