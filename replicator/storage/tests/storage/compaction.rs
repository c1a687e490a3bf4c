//! What purges free, and when: the log's folder stays bounded, and what is left opens quickly.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, Record};
use replicator_types::{LogIndex, Position};

use crate::scratch::{LOG, NODE, append, flush, folder};

const SEGMENT: u64 = 1 << 20;
/// What a record of 64 bytes takes.
const RECORD: u64 = 112;

fn options() -> DiskLogOptions {
    DiskLogOptions { segment_bytes_max: SEGMENT as usize, cache_bytes_max: 1 << 20, ..Default::default() }
}

fn entries(indexes: std::ops::Range<u64>) -> Vec<Record> {
    let record = |index| Record { position: Position::new(1, index), payload: vec![index as u8; 64].into() };
    indexes.map(record).collect()
}

/// What the folder takes on the disk.
fn disk_bytes(log_dir: &Path) -> u64 {
    let entries = fs::read_dir(log_dir).unwrap().map(|entry| entry.unwrap().metadata());
    entries.filter_map(Result::ok).map(|metadata| metadata.blocks() * 512).sum() // one may be removed meanwhile
}

/// The bound that `docs/formats.md` states: what isn't purged, three segments, and the watermark.
fn bound(entries: u64) -> u64 {
    entries * RECORD + 3 * SEGMENT + 64 * 1024
}

#[test]
fn a_million_entries_with_purges_between_them_take_bounded_room() {
    const STEP: u64 = 50_000;
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    let mut most = 0;
    for from in (0..1_000_000).step_by(STEP as usize) {
        for from in (from..from + STEP).step_by(5000) {
            append(&log, entries(from..from + 5000));
            most = most.max(disk_bytes(&log_dir));
        }
        log.purge_through(Position::new(1, from + STEP - 1)).unwrap();
    }
    println!("1,000,000 entries of {} MiB took at most {} KiB", (RECORD * 1_000_000) >> 20, most >> 10);
    // A purge frees behind those who wait for it, so two steps may be there at once.
    assert!(most <= bound(2 * STEP), "{most} bytes, more than {}", bound(2 * STEP));
    drop(log);
    assert!(disk_bytes(&log_dir) <= bound(0), "{}", disk_bytes(&log_dir));
}

#[test]
fn a_purge_frees_an_idle_logs_room_without_anybody_asking() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    append(&log, entries(0..100_000));
    assert!(disk_bytes(&log_dir) > 10 * SEGMENT);
    log.purge_through(Position::new(1, 99_000)).unwrap();
    let begun = Instant::now();
    while disk_bytes(&log_dir) > bound(1000) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} bytes", disk_bytes(&log_dir));
        thread::yield_now();
    }
}

#[test]
fn a_log_whose_beginning_is_purged_reads_only_what_is_left_when_it_opens() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    append(&log, entries(0..200_000));
    log.purge_through(Position::new(1, 198_999)).unwrap();
    flush(&log);
    drop(log);
    let (log, report) = DiskLog::open(&dir, LOG, options()).unwrap();
    assert!(report.bytes < 2 * SEGMENT, "{report:?}");
    assert_eq!(log.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX).unwrap(), entries(199_000..200_000));
}
