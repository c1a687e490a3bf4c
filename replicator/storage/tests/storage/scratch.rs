//! Folders, logs and records for the tests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, OpenReport, Record, StorageError};
use replicator_types::{LogIndex, Position};
use tempfile::TempDir;

pub(crate) const NODE: &str = "a";
pub(crate) const LOG: &str = "log";

/// A folder that is gone after the test; in memory where there is such a place, as tests fsync a lot.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// What a segment's header takes, and what is written at once.
pub(crate) const BLOCK: usize = 4096;

/// The smallest segments, so that a short test fills several, and no cache, so that it reads them from the disk.
pub(crate) fn small() -> DiskLogOptions {
    DiskLogOptions { segment_bytes_max: 2 * BLOCK, record_bytes_max: 256, cache_bytes_max: 0, ..Default::default() }
}

pub(crate) fn open(dir: &NodeDir) -> Result<(DiskLog, OpenReport), StorageError> {
    DiskLog::open(dir, LOG, small())
}

/// A record whose payload tells which one it is.
pub(crate) fn record(epoch: u64, index: u64) -> Record {
    let mut payload = format!("entry {index} of epoch {epoch} ").into_bytes();
    payload.resize(20 + (index % 7) as usize * 3, b'.');
    Record { position: Position::new(epoch, index), payload: payload.into() }
}

pub(crate) fn records(epoch: u64, indexes: std::ops::Range<u64>) -> Vec<Record> {
    indexes.map(|index| record(epoch, index)).collect()
}

/// Appends, and waits until it is durable.
pub(crate) fn append(log: &DiskLog, records: Vec<Record>) {
    let (done, wait) = mpsc::channel();
    log.append(records, Box::new(move |result| done.send(result).unwrap())).unwrap();
    wait.recv().unwrap().unwrap();
}

/// Waits until everything is durable.
pub(crate) fn flush(log: &DiskLog) {
    append(log, Vec::new());
}

pub(crate) fn read_all(log: &DiskLog) -> Vec<Record> {
    log.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX).unwrap()
}

/// The files of a folder and what they hold.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The files of a log, but for segments that are being made.
pub(crate) fn files(log_dir: &Path) -> Files {
    let entries = fs::read_dir(log_dir).unwrap().map(|entry| entry.unwrap().path());
    let whole = entries.filter(|path| path.extension().is_none_or(|ending| ending != "new"));
    whole.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Makes the folder hold exactly these files.
pub(crate) fn restore(log_dir: &Path, wanted: &Files) {
    for (path, bytes) in files(log_dir) {
        match wanted.get(&path) {
            None => fs::remove_file(path).unwrap(),
            Some(wanted) if *wanted != bytes => fs::write(path, wanted).unwrap(),
            Some(_) => {}
        }
    }
    for (path, bytes) in wanted.iter().filter(|(path, _)| !path.exists()) {
        fs::write(path, bytes).unwrap();
    }
}

/// A segment that holds records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    /// The global offset at which it begins.
    pub(crate) start: u64,
    /// Where its records end in the file.
    pub(crate) written: usize,
}

impl Segment {
    /// The global offset of a byte of the file; that of the first record for the header.
    pub(crate) fn offset(&self, at: usize) -> u64 {
        self.start + at.saturating_sub(BLOCK) as u64
    }

    /// The global offset of its end.
    pub(crate) fn end(&self) -> u64 {
        self.offset(self.written)
    }
}

/// Reads a number of a file, as `docs/formats.md` places it.
pub(crate) fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + BYTES].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The segments with records among the files, in order.
pub(crate) fn segments(files: &Files) -> Vec<Segment> {
    let born =
        files.iter().filter(|(path, bytes)| path.extension().is_some_and(|ending| ending == "seg") && bytes[0] != 0);
    born.map(|(path, bytes)| {
        let mut written = BLOCK;
        while written < bytes.len() && number::<4>(bytes, written) != 0 {
            written += (number::<4>(bytes, written) as usize).next_multiple_of(8);
        }
        Segment { path: path.clone(), start: number::<8>(bytes, 24), written }
    })
    .collect()
}

/// The segments that were made ahead.
pub(crate) fn ahead(files: &Files) -> Vec<PathBuf> {
    let blank =
        files.iter().filter(|(path, bytes)| path.extension().is_some_and(|ending| ending == "seg") && bytes[0] == 0);
    blank.map(|(path, _)| path.clone()).collect()
}

/// The global offset at which the log ends.
pub(crate) fn end(files: &Files) -> u64 {
    segments(files).last().unwrap().end()
}

pub(crate) fn is_damaged<T>(result: &Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Damaged { .. }))
}
