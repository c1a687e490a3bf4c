//! Files of a log missing, exchanged, of another log or version: refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use replicator_storage::{Log, NodeDir, StorageError};
use replicator_types::LogIndex;

use crate::{
    crashed::{Counts, Crashed, crashed},
    scratch::{BLOCK, Files, LOG, ahead, is_damaged, open, read_all, restore, segments},
};

#[test]
fn every_missing_segment_is_found() {
    let log = crashed(&[]);
    let segments = segments(&log.files);
    let mut counts = Counts::default();
    for missing in 1_u32..1 << segments.len() {
        for (i, segment) in segments.iter().enumerate() {
            if missing & (1 << i) != 0 {
                fs::remove_file(&segment.path).unwrap();
            }
        }
        let report = log.try_open(&mut counts);
        assert!(report.is_err(), "without the segments {missing:b} of {}: {report:?}", segments.len());
    }
    for path in ahead(&log.files) {
        fs::remove_file(path).unwrap();
        assert_eq!(log.try_open(&mut counts).unwrap().torn_tail, None, "what was made ahead holds nothing");
    }
    fs::remove_dir_all(&log.log_dir).unwrap();
    assert!(is_damaged(&open(&log.dir)), "without the whole folder");
    println!("log, segments missing: {counts:?}");
}

#[test]
fn a_segment_in_the_place_of_another_is_found() {
    let log = crashed(&[]);
    let segments = segments(&log.files);
    let mut counts = Counts::default();
    for one in &segments {
        for other in segments.iter().filter(|other| *other != one) {
            fs::write(&one.path, &log.files[&other.path]).unwrap();
            assert!(log.try_open(&mut counts).is_err(), "{other:?} in the place of {one:?}");
        }
    }
}

#[test]
fn an_older_copy_of_a_segment_is_found() {
    let log = crashed(&[1, 2]);
    let last = log.last();
    // The copies of each block of the log, as it was when less had been written.
    let mut counts = Counts::default();
    for (at, bytes) in (BLOCK..last.written).map(|at| (at, &log.files[&last.path])) {
        let mut older = bytes.clone();
        older[at..].fill(0);
        let found = log.holds_durable(&last, at);
        fs::write(&last.path, older).unwrap();
        if found {
            assert!(log.try_open(&mut counts).is_err(), "as it was at byte {at}");
        } else {
            restore(&log.log_dir, &log.files);
        }
    }
    assert!(counts.tried > 100);
}

#[test]
fn records_of_another_place_or_log_never_count() {
    let (log, theirs) = (crashed(&[]), crashed(&[]));
    let last = log.last();
    let ours = &log.files[&last.path];
    let first = segments(&log.files).remove(0);
    let same_place = &theirs.files[&log_dir_file(&theirs, &last.path)];
    let moved = &log.files[&first.path][BLOCK..BLOCK + 500];
    let again = &ours[BLOCK..BLOCK + 400];
    let mut counts = Counts::default();
    for stale in [moved, again, &same_place[BLOCK..BLOCK + 400]] {
        let mut bytes = ours.clone();
        bytes[last.written..][..stale.len()].copy_from_slice(stale);
        fs::write(&last.path, bytes).unwrap();
        let tail = log.try_open(&mut counts).unwrap().torn_tail.unwrap();
        assert_eq!((tail.offset as usize, tail.records), (last.written, 0));
    }
    // And where their log's records would be at the very place.
    let mut bytes = ours.clone();
    bytes[BLOCK..].copy_from_slice(&same_place[BLOCK..]);
    fs::write(&last.path, bytes).unwrap();
    assert!(log.try_open(&mut counts).is_err());
}

fn log_dir_file(log: &Crashed, path: &Path) -> PathBuf {
    log.log_dir.join(path.file_name().unwrap())
}
#[test]
fn a_log_of_another_folder_is_refused() {
    let (ours, theirs) = (crashed(&[]), crashed(&[]));
    let renamed: Files = theirs
        .files
        .iter()
        .map(|(path, bytes)| (ours.log_dir.join(path.file_name().unwrap()), bytes.clone()))
        .collect();
    restore(&ours.log_dir, &renamed);
    assert!(is_damaged(&open(&ours.dir)), "with their watermark");
    // Their segments below our watermark: equal in every size, and yet not ours.
    restore(&ours.log_dir, &ours.files);
    let first = segments(&renamed).remove(0).path;
    fs::write(&first, &renamed[&first]).unwrap();
    let error = open(&ours.dir).unwrap_err();
    assert!(matches!(&error, StorageError::Damaged { what, .. } if what.contains("another log")), "{error}");
}

#[test]
fn a_log_of_another_version_is_refused_by_its_number() {
    let log = crashed(&[]);
    for (path, at, size) in [(log.log_dir.join("durable"), 7, 64), (log.last().path, 7, BLOCK)] {
        let mut bytes = log.files[&path].clone();
        bytes[at] = 1;
        let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..size - 8]);
        bytes[size - 8..size].copy_from_slice(&checksum.to_be_bytes());
        fs::write(&path, bytes).unwrap();
        let error = open(&log.dir).unwrap_err();
        assert!(matches!(error, StorageError::Version { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains('1') && text.contains('2'), "{text}");
        restore(&log.log_dir, &log.files);
    }
}

#[test]
fn a_log_that_meta_does_not_know_is_refused() {
    let log = crashed(&[]);
    let stranger = NodeDir::open(log.scratch.path().join("b"), "b").unwrap();
    fs::create_dir(stranger.path().join(LOG)).unwrap();
    for (path, bytes) in &log.files {
        fs::write(stranger.path().join(LOG).join(path.file_name().unwrap()), bytes).unwrap();
    }
    assert!(is_damaged(&open(&stranger)));
}

#[test]
fn damage_done_while_the_log_is_open_is_found_by_reading() {
    let log = crashed(&[]);
    let (opened, _) = open(&log.dir).unwrap();
    let path = segments(&log.files).remove(1).path;
    let mut bytes = log.files[&path].clone();
    for byte in bytes.iter_mut().skip(BLOCK + 100) {
        *byte ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    let read = || opened.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX);
    assert!(is_damaged(&read()));
    fs::remove_file(&path).unwrap();
    assert!(is_damaged(&read()));
    fs::write(&path, &log.files[&path]).unwrap();
    assert_eq!(read_all(&opened), log.all);
}

#[test]
fn a_log_is_open_once() {
    let log = crashed(&[]);
    let (opened, _) = open(&log.dir).unwrap();
    assert!(matches!(open(&log.dir), Err(StorageError::Locked { pid: Some(_), .. })));
    drop(opened);
    open(&log.dir).unwrap();
}
