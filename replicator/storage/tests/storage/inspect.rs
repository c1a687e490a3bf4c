//! Looking at a stopped node's log: what it says is what opening finds, it goes on behind damage, and it changes nothing.

use std::fs;

use replicator_storage::{Log, LogReport, LoggedRecord, NodeDir, NodeReport, RecordKind, StorageError};
use replicator_types::{LogIndex, Position};

use crate::{
    crashed::{Crashed, bits, crashed, flip},
    scratch::{BLOCK, LOG, NODE, append, files, folder, open, records, restore, segments},
};

/// A crashed log whose node has stopped, and its folder.
fn stopped(batches: &[u64]) -> (Crashed, std::path::PathBuf) {
    let mut log = crashed(batches);
    let path = log.dir.path().to_owned();
    // Another one in its place, so that the folder is free.
    log.dir = NodeDir::open(log.scratch.path().join("other"), "other").unwrap();
    (log, path)
}

fn verify(path: &std::path::Path) -> (LogReport, NodeReport) {
    let mut report = NodeDir::verify(path).unwrap();
    (report.logs.remove(0), report)
}

/// The verdict of the inspection and of an opening must be the same; the files are put back after it.
fn assert_agrees(log: &Crashed, path: &std::path::Path, what: &str) -> LogReport {
    let before = files(&log.log_dir);
    let (report, _) = verify(path);
    assert!(files(&log.log_dir) == before, "{what}: looking changes nothing");
    let dir = NodeDir::open(path, NODE).unwrap();
    match open(&dir) {
        Ok((_, opened)) => {
            assert!(report.damages.is_empty(), "{what}: it opens, and yet {:?}", report.damages);
            assert_eq!(report.torn_tail, opened.torn_tail, "{what}");
            assert_eq!(
                report.segments.iter().map(|segment| segment.records).sum::<u64>(),
                opened.records + opened.torn_tail.map_or(0, |tail| tail.records),
                "{what}"
            );
        }
        Err(StorageError::Damaged { path, .. }) => {
            let named =
                |known: &StorageError| matches!(known, StorageError::Damaged { path: known, .. } if *known == path);
            assert!(
                report.damages.iter().any(named),
                "{what}: {} is damaged, and not in {:?}",
                path.display(),
                report.damages
            );
        }
        Err(other) => panic!("{what}: {other}"),
    }
    restore(&log.log_dir, &log.files);
    report
}

#[test]
fn a_whole_log_is_described() {
    let (log, path) = stopped(&[3]);
    let report = assert_agrees(&log, &path, "whole");
    let known = segments(&log.files);
    assert_eq!(report.segments.len(), known.len() + 1, "with the one made ahead");
    for (found, known) in report.segments.iter().zip(&known) {
        assert_eq!((&found.path, found.start), (&known.path, Some(known.start)));
        assert_eq!(found.record_bytes as usize, known.written - BLOCK);
        assert!(found.records > 0 && found.first <= found.last && found.bytes as usize == 2 * BLOCK);
    }
    assert_eq!(report.segments.last().unwrap().start, None);
    assert_eq!((report.purged, report.last), (Some(Position::new(1, 20)), Some(Position::new(3, 122))));
    assert_eq!((report.durable, report.durable_end), (Some(Position::new(3, 119)), log.durable_end));
    assert_eq!(report.torn_tail, None);
}

#[test]
fn flipped_bits_and_lost_ends_get_the_verdict_that_opening_gives() {
    let (log, path) = stopped(&[3]);
    let (mut tried, mut damaged) = (0, 0);
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        for bit in bits(bytes, &segment).into_iter().step_by(61) {
            flip(&segment.path, bytes, bit);
            let report = assert_agrees(&log, &path, &format!("bit {bit} of {}", segment.path.display()));
            (tried, damaged) = (tried + 1, damaged + usize::from(!report.damages.is_empty()));
        }
        for at in (BLOCK..segment.written).step_by(53) {
            let mut lost = bytes.clone();
            lost[at..].fill(0);
            fs::write(&segment.path, lost).unwrap();
            assert_agrees(&log, &path, &format!("{} zero from {at}", segment.path.display()));
        }
        fs::remove_file(&segment.path).unwrap();
        assert_agrees(&log, &path, &format!("without {}", segment.path.display()));
    }
    println!("inspections of a flipped bit: {tried}, {damaged} of them damage");
    assert!(tried > 1000 && damaged > 500 && damaged < tried);
}

#[test]
fn every_damaged_segment_is_named_and_what_is_whole_is_counted() {
    let (log, path) = stopped(&[]);
    let known = segments(&log.files);
    let whole = verify(&path).0;
    // A record in the middle of each segment.
    for segment in &known {
        let bytes = &log.files[&segment.path];
        let second =
            BLOCK + (u32::from_be_bytes(bytes[BLOCK..BLOCK + 4].try_into().unwrap()) as usize).next_multiple_of(8);
        flip(&segment.path, bytes, (second + 20) * 8);
    }
    let (report, node) = verify(&path);
    let named: Vec<_> = report
        .damages
        .iter()
        .map(|damage| match damage {
            StorageError::Damaged { path, offset: Some(_), .. } => path.clone(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(named, known.iter().map(|segment| segment.path.clone()).collect::<Vec<_>>());
    for (found, whole) in report.segments.iter().zip(&whole.segments).take(known.len()) {
        assert_eq!(found.records, whole.records - 1, "all but the damaged one");
        assert_eq!(found.last, whole.last);
    }
    assert!(node.meta.is_ok());
}

#[test]
fn a_damaged_meta_and_watermark_do_not_hide_the_log() {
    let (log, path) = stopped(&[]);
    let meta = fs::read(path.join("meta")).unwrap();
    for name in ["meta", "meta.copy"] {
        fs::write(path.join(name), b"damaged").unwrap();
    }
    let mut watermark = log.files[&log.log_dir.join("durable")].clone();
    (watermark[10], watermark[4100]) = (watermark[10] ^ 1, watermark[4100] ^ 1);
    fs::write(log.log_dir.join("durable"), watermark).unwrap();
    let report = NodeDir::verify(&path).unwrap();
    assert_eq!(report.damages().count(), 2, "{report:?}");
    assert!(report.logs[0].segments.iter().map(|segment| segment.records).sum::<u64>() > 100);
    // A log that meta knows of and that isn't there is damage too.
    restore(&log.log_dir, &log.files);
    fs::write(path.join("meta"), &meta).unwrap();
    fs::write(path.join("meta.copy"), meta).unwrap();
    assert!(NodeDir::verify(&path).unwrap().is_whole());
    fs::remove_dir_all(&log.log_dir).unwrap();
    assert!(!NodeDir::verify(&path).unwrap().is_whole());
}

#[test]
fn a_torn_tail_is_told_from_damage_elsewhere() {
    let (log, path) = stopped(&[3]);
    let known = segments(&log.files);
    flip(&known[0].path, &log.files[&known[0].path], (BLOCK + 20) * 8);
    let last = log.last();
    let torn = BLOCK + (log.durable_end - last.start) as usize;
    flip(&last.path, &log.files[&last.path], (torn + 20) * 8);
    let (report, _) = verify(&path);
    assert_eq!(report.damages.len(), 1, "{:?}", report.damages);
    let tail = report.torn_tail.unwrap();
    assert_eq!((tail.offset as usize, tail.records), (torn, 2));
}

#[test]
fn records_are_dumped_from_an_index_on_and_behind_damage() {
    let (log, path) = stopped(&[]);
    let dump = |from| NodeDir::dump(&path, LOG, LogIndex(from)).unwrap();
    let all: Vec<LoggedRecord> = dump(0).map(Result::unwrap).collect();
    let kinds = |kind| all.iter().filter(move |record| record.kind == kind);
    let cuts = [RecordKind::TruncateAfter, RecordKind::PurgeThrough]
        .map(|kind| kinds(kind).map(|record| record.position).collect::<Vec<_>>());
    assert_eq!(cuts, [vec![Position::new(1, 50), Position::new(2, 108)], vec![Position::new(1, 20)]]);
    assert_eq!(kinds(RecordKind::Append).count(), 54 + 19 + 40 + 11);
    for record in kinds(RecordKind::Append) {
        let expected = crate::scratch::record(record.position.epoch.0, record.position.index.0);
        assert_eq!(record.payload, expected.payload);
    }
    assert!(all.is_sorted_by_key(|record| record.offset));
    let later: Vec<_> = dump(60).map(Result::unwrap).collect();
    assert!(later.iter().eq(all.iter().filter(|record| record.position.index.0 >= 60)));
    // Behind damage it goes on.
    let damaged = &all[30];
    let segment = &segments(&log.files)[damaged.segment as usize];
    flip(&segment.path, &log.files[&segment.path], damaged.byte as usize * 8 + 170);
    let items: Vec<_> = dump(0).collect();
    let errors: Vec<_> = items.iter().filter_map(|item| item.as_ref().err()).collect();
    assert!(
        matches!(errors[..], [StorageError::Damaged { offset: Some(at), .. }] if *at == damaged.byte),
        "{errors:?}"
    );
    let rest: Vec<_> = items.into_iter().filter_map(Result::ok).collect();
    assert!(rest.iter().eq(all.iter().filter(|record| *record != damaged)));
    let error = NodeDir::dump(&path, "other", LogIndex(0)).unwrap_err();
    assert!(error.to_string().contains("it has: log"), "{error}");
}

#[test]
fn a_running_node_is_not_looked_at_and_two_may_look_at_once() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..3));
    let locked = |error| matches!(error, StorageError::Locked { pid: Some(_), .. });
    assert!(locked(NodeDir::verify(scratch.path()).unwrap_err()));
    assert!(locked(NodeDir::dump(scratch.path(), LOG, LogIndex(0)).unwrap_err()));
    log.flush(Box::new(|_| ())).unwrap();
    drop((log, dir));
    let dump = NodeDir::dump(scratch.path(), LOG, LogIndex(0)).unwrap();
    assert!(NodeDir::verify(scratch.path()).unwrap().is_whole());
    assert!(NodeDir::open(scratch.path(), NODE).is_err(), "a node can't start meanwhile");
    assert_eq!(dump.count(), 3);
    NodeDir::open(scratch.path(), NODE).unwrap();
    assert!(NodeDir::verify(scratch.path().join("nowhere")).is_err());
}
