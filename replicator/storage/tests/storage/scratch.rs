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

/// Chunks of about 1 KiB, so that a short test closes several, and no cache, so that it reads them from the disk.
pub(crate) fn small() -> DiskLogOptions {
    DiskLogOptions { chunk_bytes_max: 1024, record_bytes_max: 256, cache_bytes_max: 0, ..Default::default() }
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

/// The files of a log, but for raft-log's lock.
pub(crate) fn files(log_dir: &Path) -> Files {
    let entries = fs::read_dir(log_dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with("LOCK")).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
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

/// The global offset at which a chunk's file begins: its name.
pub(crate) fn chunk_start(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix("r-")?.strip_suffix(".wal")?;
    name.replace('_', "").parse().ok()
}

/// The chunks among the files: path and global start, in order.
pub(crate) fn chunks(files: &Files) -> Vec<(PathBuf, u64)> {
    files.keys().filter_map(|path| Some((path.clone(), chunk_start(path)?))).collect()
}

/// The global offset at which the log ends.
pub(crate) fn end(files: &Files) -> u64 {
    let (path, start) = chunks(files).pop().unwrap();
    start + files[&path].len() as u64
}

pub(crate) fn is_damaged<T>(result: &Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Damaged { .. }))
}
