//! A log as a crash may leave it, and what opening it finds after something is done to its files.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use replicator_storage::{DiskLog, Log, NodeDir, OpenReport, Record, StorageError};
use replicator_types::Position;
use tempfile::TempDir;

use crate::scratch::{
    BLOCK, Files, LOG, NODE, Segment, append, end, files, flush, folder, is_damaged, open, read_all, records, restore,
    segments,
};

/// A log as a crash may leave it: the watermark is older than the last batches.
pub(crate) struct Crashed {
    pub(crate) scratch: TempDir,
    pub(crate) dir: NodeDir,
    pub(crate) log_dir: PathBuf,
    /// What is on the disk.
    pub(crate) files: Files,
    /// Up to where the watermark says that it is durable.
    pub(crate) durable_end: u64,
    /// The ends of the batches written after that.
    pub(crate) batch_ends: Vec<u64>,
    pub(crate) durable: Vec<Record>,
    pub(crate) all: Vec<Record>,
}

/// Writes full segments with every kind of record and a last one, then batches of so many more that the
/// watermark doesn't know of.
pub(crate) fn crashed(batches: &[u64]) -> Crashed {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path().join(NODE), NODE).unwrap();
    let log_dir = dir.path().join(LOG);
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..54));
    log.truncate_after(Some(Position::new(1, 50))).unwrap();
    append(&log, records(2, 51..70));
    log.purge_through(Position::new(1, 20)).unwrap();
    append(&log, records(2, 70..110));
    log.truncate_after(Some(Position::new(2, 108))).unwrap();
    append(&log, records(3, 109..120));
    flush(&log);
    let (made_ahead, began) = (log_dir.join("0000000003.seg"), Instant::now());
    while !made_ahead.exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "no segment is made ahead");
        thread::yield_now();
    }
    let before = files(&log_dir);
    let durable = read_all(&log);
    assert_eq!(segments(&before).len(), 3, "two segments are full");
    let mut batch_ends = Vec::new();
    for batch in batches {
        let next = log.ends().last.map_or(0, |last| last.index.0 + 1);
        append(&log, records(3, next..next + batch));
        batch_ends.push(end(&files(&log_dir)));
    }
    let all = read_all(&log);
    drop(log);
    let mut after = files(&log_dir);
    after.insert(log_dir.join("durable"), before[&log_dir.join("durable")].clone());
    restore(&log_dir, &after);
    let durable_end = end(&before);
    Crashed { scratch, dir, log_dir, files: after, durable_end, batch_ends, durable, all }
}

/// Flips a bit of a file.
pub(crate) fn flip(path: &Path, bytes: &[u8], bit: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[bit / 8] ^ 1 << (bit % 8)], bit as u64 / 8).unwrap();
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) tried: u64,
    pub(crate) damaged: u64,
    pub(crate) torn: u64,
    pub(crate) clean: u64,
    pub(crate) torn_records: u64,
}

impl Crashed {
    /// Opens the log as it is now, and puts it back as it was. A log that opens must hold everything durable and nothing wrong.
    pub(crate) fn try_open(&self, counts: &mut Counts) -> Result<OpenReport, StorageError> {
        counts.tried += 1;
        let found = files(&self.log_dir);
        let opened = open(&self.dir);
        if opened.is_err() {
            assert!(is_damaged(&opened), "{:?}", opened.err());
            assert!(files(&self.log_dir) == found, "a refused log is left as it is");
        }
        let report = opened.map(|(log, report)| {
            self.check(&log, &report);
            report
        });
        match &report {
            Err(_) => counts.damaged += 1,
            Ok(OpenReport { torn_tail: Some(tail), .. }) => {
                counts.torn += 1;
                counts.torn_records += tail.records;
            }
            Ok(_) => counts.clean += 1,
        }
        restore(&self.log_dir, &self.files);
        report
    }

    /// Opens the log with a bit flipped. What a refusal changed is found when bits of the next byte are tried.
    pub(crate) fn try_flip(&self, path: &Path, bit: usize, counts: &mut Counts) -> Result<OpenReport, StorageError> {
        let bytes = &self.files[path];
        flip(path, bytes, bit);
        if bit.is_multiple_of(8) {
            return self.try_open(counts);
        }
        match open(&self.dir) {
            Err(error @ StorageError::Damaged { .. }) => {
                (counts.tried, counts.damaged) = (counts.tried + 1, counts.damaged + 1);
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&bytes[bit / 8..][..1], bit as u64 / 8).unwrap();
                Err(error)
            }
            opened => {
                drop(opened);
                restore(&self.log_dir, &self.files);
                flip(path, bytes, bit);
                self.try_open(counts)
            }
        }
    }

    fn check(&self, log: &DiskLog, report: &OpenReport) {
        let found = read_all(log);
        assert!(self.all.starts_with(&found), "{found:?} is no beginning of what was written; {report:?}");
        assert!(found.starts_with(&self.durable), "durable entries are gone: {found:?}; {report:?}");
        assert_eq!(log.ends().last, found.last().map(|record| record.position));
        assert_eq!(log.ends().durable, log.ends().last, "all that is there is durable once it is open");
    }

    /// Whether anything durable, but zeros, is in the segment from this byte on.
    pub(crate) fn holds_durable(&self, segment: &Segment, from: usize) -> bool {
        let end = BLOCK + self.durable_end.saturating_sub(segment.start) as usize;
        self.files[&segment.path][from..end.max(from)].iter().any(|byte| *byte != 0)
    }

    pub(crate) fn last(&self) -> Segment {
        segments(&self.files).pop().unwrap()
    }
}

/// The bits that are flipped in a segment: all of what was written and of the block after it, and a sample of the other zeros.
pub(crate) fn bits(bytes: &[u8], segment: &Segment) -> Vec<usize> {
    let header_end = 100;
    let zeros_end = (segment.written + 1).next_multiple_of(BLOCK).min(bytes.len());
    let sampled = (0..bytes.len() * 8).step_by(1009);
    let all = (0..header_end * 8).chain((BLOCK - 8) * 8..zeros_end * 8);
    let mut bits: Vec<_> = all.chain(sampled).collect();
    bits.sort_unstable();
    bits.dedup();
    bits
}
