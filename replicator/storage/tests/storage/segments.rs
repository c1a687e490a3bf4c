//! Records and the segments they lie in: borders, sizes, and what is freed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, Record};
use replicator_types::{LogIndex, Position};

use crate::scratch::{
    BLOCK, LOG, NODE, ahead, append, end, files, flush, folder, is_damaged, open, read_all, record, records, segments,
    small,
};

fn sized(index: u64, bytes: usize) -> Record {
    Record { position: Position::new(1, index), payload: vec![(index % 251) as u8 + 1; bytes].into() }
}

#[test]
fn a_segment_is_left_at_each_possible_room() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    // So many bytes are left in the first segment when a record of 104 bytes comes.
    for room in (0..=120).step_by(8) {
        let name = format!("log{room}");
        let (log, _) = DiskLog::open(&dir, &name, small()).unwrap();
        // 15 records of 256 bytes, and what is missing in one or two more.
        let rest = 256 - room;
        let mut written: Vec<_> = (0..15).map(|index| sized(index, 256 - 41)).collect();
        written.push(sized(15, rest - 48));
        if rest > 255 {
            written[15] = sized(15, 256 - 48);
        }
        append(&log, written.clone());
        let log_dir = scratch.path().join(&name);
        let filled = segments(&files(&log_dir))[0].written;
        let next = sized(16, 104 - 41);
        append(&log, vec![next.clone()]);
        written.push(next);
        let found = segments(&files(&log_dir));
        let fits = filled + 104 <= 2 * BLOCK;
        assert_eq!(found.len(), if fits { 1 } else { 2 }, "{} bytes were left", 2 * BLOCK - filled);
        drop(log);
        let (log, report) = DiskLog::open(&dir, &name, small()).unwrap();
        assert_eq!((report.torn_tail, report.records), (None, 17));
        assert_eq!(read_all(&log), written);
        append(&log, vec![sized(17, 200)]);
        drop(log);
        assert_eq!(read_all(&DiskLog::open(&dir, &name, small()).unwrap().0).len(), 18);
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_size() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let options = || DiskLogOptions { record_bytes_max: 3 << 20, ..small() };
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    let mut written = Vec::new();
    for (index, bytes) in
        [10, 5000, 10, 1 << 16, (3 << 20) - 1, 3 << 20, 4096 - 41, 4097 - 41, 0].into_iter().enumerate()
    {
        written.push(sized(index as u64, bytes));
        append(&log, vec![written[index].clone()]);
    }
    assert_eq!(read_all(&log), written);
    drop(log);
    let (log, report) = DiskLog::open(&dir, LOG, options()).unwrap();
    assert_eq!(report.torn_tail, None);
    assert_eq!(read_all(&log), written);
    for (path, bytes) in files(&scratch.path().join(LOG)) {
        assert_eq!(bytes.len() % BLOCK, 0, "{}", path.display());
    }
    append(&log, vec![sized(9, 100)]);
    assert_eq!(log.read(LogIndex(4), LogIndex(10), 1).unwrap(), [written[4].clone()]);
}

#[test]
fn one_batch_may_fill_many_segments() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..2000));
    assert_eq!(read_all(&log), records(1, 0..2000));
    drop(log);
    let (log, report) = open(&dir).unwrap();
    assert_eq!((report.records, report.torn_tail), (2000, None));
    assert_eq!(read_all(&log), records(1, 0..2000));
    assert!(segments(&files(&scratch.path().join(LOG))).len() > 30);
}

#[test]
fn segments_grow_from_a_mebibyte_and_one_is_made_ahead_when_half_is_full() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let options = DiskLogOptions { segment_bytes_max: 3 << 20, ..Default::default() };
    let (log, report) = DiskLog::open(&dir, LOG, options.clone()).unwrap();
    assert!(report.created);
    let sizes =
        || files(&log_dir).into_iter().filter(|(path, _)| !path.ends_with("durable")).map(|(_, b)| b.len() >> 20);
    assert_eq!(sizes().collect::<Vec<_>>(), [1]);
    let kib = |index: u64| sized(index, 1024 - 41);
    append(&log, (0..500).map(kib).collect());
    drop(log);
    assert_eq!(sizes().collect::<Vec<_>>(), [1], "less than half of it is full");
    let (log, _) = DiskLog::open(&dir, LOG, options.clone()).unwrap();
    append(&log, (500..1100).map(kib).collect());
    append(&log, (1100..4000).map(kib).collect());
    assert_eq!(sizes().take(3).collect::<Vec<_>>(), [1, 2, 3]);
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    for (path, bytes) in files(&log_dir).into_iter().filter(|(path, _)| !path.ends_with("durable")) {
        assert!(blocks(&path) >= bytes.len() as u64, "{} has no holes", path.display());
    }
    assert_eq!(read_all(&log).len(), 4000);
}

#[test]
fn purged_segments_are_freed_and_the_current_one_stays() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let (mut log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..500));
    let before = segments(&files(&log_dir)).len();
    let mut last_count = before;
    for through in [0, 60, 61, 200, 499] {
        log.purge_through(Position::new(1, through)).unwrap();
        flush(&log);
        drop(log); // Segments are removed after those who wait were called.
        let left = segments(&files(&log_dir));
        assert!(left.len() <= last_count && !left.is_empty());
        last_count = left.len();
        log = open(&dir).unwrap().0;
        assert_eq!(read_all(&log), records(1, through + 1..500));
        assert_eq!(log.ends().purged, Some(Position::new(1, through)));
    }
    assert_eq!(last_count, 1, "all but the current one");
    // An image beyond the log's end, and then the log goes on after it.
    log.purge_through(Position::new(4, 900)).unwrap();
    append(&log, records(4, 901..1000));
    drop(log);
    let (log, _) = open(&dir).unwrap();
    assert_eq!(read_all(&log), records(4, 901..1000));
}

#[test]
fn truncations_across_segments_hold_after_each_opening() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (mut log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..400));
    for (epoch, kept) in (2..).zip([300_u64, 120, 119, 40, 0]) {
        log.truncate_after(Some(record_position(&log, kept))).unwrap();
        flush(&log);
        drop(log);
        log = open(&dir).unwrap().0;
        assert_eq!(log.ends().last.map(|last| last.index.0), Some(kept));
        append(&log, records(epoch, kept + 1..kept + 70));
        drop(log);
        log = open(&dir).unwrap().0;
        let found = read_all(&log);
        assert_eq!(found[..=kept as usize], *records_before(kept, &found));
        assert_eq!(found[kept as usize + 1..], records(epoch, kept + 1..kept + 70));
    }
    log.truncate_after(None).unwrap();
    append(&log, records(9, 0..70));
    drop(log);
    let (log, _) = open(&dir).unwrap();
    assert_eq!(read_all(&log), records(9, 0..70));
    assert!(segments(&files(&scratch.path().join(LOG)))[0].path.ends_with("0000000000.seg"), "nothing was purged");
}

fn record_position(log: &DiskLog, index: u64) -> Position {
    log.read(LogIndex(index), LogIndex(index + 1), 0).unwrap()[0].position
}

/// The entries up to `kept`, each with the payload that its position says.
fn records_before(kept: u64, found: &[Record]) -> Vec<Record> {
    found[..=kept as usize].iter().map(|found| record(found.position.epoch.0, found.position.index.0)).collect()
}

#[test]
fn a_log_whose_purged_beginning_is_needed_again_is_damaged() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..300));
    drop(log);
    let all = segments(&files(&log_dir));
    for segment in &all[..all.len() - 1] {
        fs::remove_file(&segment.path).unwrap();
        assert!(is_damaged(&open(&dir)), "{} is missing", segment.path.display());
    }
}

#[test]
fn readers_and_purges_at_once_see_whole_entries() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..3000));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for through in (100..3000).step_by(50) {
                log.purge_through(Position::new(1, through)).unwrap();
                flush(&log);
            }
        });
        scope.spawn(|| {
            while log.ends().purged.is_none_or(|purged| purged.index.0 < 2950) {
                let found = log.read(LogIndex(0), LogIndex(3000), 5000).unwrap();
                let first = found[0].position.index.0;
                assert_eq!(found, records(1, first..first + found.len() as u64));
            }
        });
    });
}

#[test]
fn with_a_cache_or_without_and_direct_or_not_the_log_is_the_same() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    for (direct, cache_bytes_max) in [(true, 1 << 20), (false, 0), (false, 2000)] {
        let name = format!("log-{direct}-{cache_bytes_max}");
        let options = || DiskLogOptions { direct, cache_bytes_max, ..small() };
        let (log, _) = DiskLog::open(&dir, &name, options()).unwrap();
        for from in (0..600).step_by(50) {
            append(&log, records(1, from..from + 50));
            assert_eq!(read_all(&log), records(1, 0..from + 50));
        }
        log.truncate_after(Some(Position::new(1, 580))).unwrap();
        append(&log, records(2, 581..590));
        drop(log);
        // What one way of writing left, the other one reads and goes on with.
        let other = DiskLogOptions { direct: !direct, ..options() };
        let (log, _) = DiskLog::open(&dir, &name, other).unwrap();
        append(&log, records(2, 590..700));
        drop(log);
        let (log, _) = DiskLog::open(&dir, &name, options()).unwrap();
        assert_eq!(read_all(&log), [records(1, 0..581), records(2, 581..700)].concat());
        assert_eq!(
            end(&files(&scratch.path().join(&name))),
            segments(&files(&scratch.path().join(&name))).last().unwrap().end()
        );
        assert!(ahead(&files(&scratch.path().join(&name))).len() <= 1);
    }
}
