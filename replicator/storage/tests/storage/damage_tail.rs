//! The end of a log after a crash: a torn tail, which nobody was told of, or damage.

use std::fs;

use replicator_storage::{Log, OpenReport};
use replicator_types::Position;

use crate::{
    crashed::{Counts, crashed, flip},
    scratch::{BLOCK, ahead, append, files, flush, is_damaged, open, read_all, record, records, restore, segments},
};

#[test]
fn bytes_after_the_end_are_a_torn_tail_and_in_a_full_segment_damage() {
    let log = crashed(&[]);
    let last = log.last();
    let mut counts = Counts::default();
    for segment in segments(&log.files) {
        for garbage in [&[1; 1][..], &[0xff; 64], &[0, 0, 0, 1], &[0, 0, 0, 0, 0, 0, 0, 0, 5, 1]] {
            let mut bytes = log.files[&segment.path].clone();
            let room = bytes.len() - segment.written;
            if room < garbage.len() {
                continue;
            }
            for at in [segment.written, bytes.len() - garbage.len()] {
                bytes[segment.written..].fill(0);
                bytes[at..at + garbage.len()].copy_from_slice(garbage);
                fs::write(&segment.path, &bytes).unwrap();
                match log.try_open(&mut counts) {
                    Ok(OpenReport { torn_tail: Some(tail), .. }) if segment == last => {
                        assert_eq!(tail.offset as usize, segment.written);
                        assert_eq!(tail.bytes as usize, at + garbage.len() - segment.written);
                    }
                    Err(_) if segment != last => {}
                    other => panic!("{} with {garbage:?} at {at}: {other:?}", segment.path.display()),
                }
            }
        }
    }
    assert!(counts.damaged > 0 && counts.torn > 0, "{counts:?}");
}

#[test]
fn a_torn_tail_never_comes_back() {
    let log = crashed(&[6]);
    let last = log.last();
    // The first of six records is lost, and the five after it are whole.
    let mut bytes = log.files[&last.path].clone();
    let torn_at = BLOCK + (log.durable_end - last.start) as usize;
    bytes[torn_at..torn_at + 8].fill(0);
    fs::write(&last.path, bytes).unwrap();
    let (opened, report) = open(&log.dir).unwrap();
    assert_eq!(report.torn_tail.unwrap().records, 5);
    // One of the same size in its place: the old ones would follow it.
    append(&opened, records(3, 120..121));
    drop(opened);
    let (opened, report) = open(&log.dir).unwrap();
    assert_eq!(report.torn_tail, None);
    assert_eq!(read_all(&opened).last(), Some(&record(3, 120)));
    assert_eq!(opened.ends().last, Some(Position::new(3, 120)));
}

#[test]
fn what_was_being_made_ahead_is_used_or_removed() {
    let log = crashed(&[]);
    let [path] = &ahead(&log.files)[..] else { panic!("one segment is made ahead") };
    let unfinished = log.log_dir.join("0000000004.seg.new");
    let mut counts = Counts::default();
    for (size, stays) in [(0, false), (100, false), (BLOCK, false), (2 * BLOCK, true), (3 * BLOCK, true)] {
        fs::write(path, vec![0; size]).unwrap();
        fs::write(&unfinished, [7; 10]).unwrap();
        let (opened, report) = open(&log.dir).unwrap();
        assert_eq!(report.torn_tail, None);
        assert!(!unfinished.exists());
        assert_eq!(path.exists(), stays, "{size} bytes");
        append(&opened, records(3, 120..300));
        drop(opened);
        let (opened, _) = open(&log.dir).unwrap();
        assert_eq!(read_all(&opened).last(), Some(&record(3, 299)));
        drop(opened);
        restore(&log.log_dir, &log.files);
    }
    // A second one, which nobody would have made.
    fs::write(log.log_dir.join("0000000004.seg"), [0; 2 * BLOCK]).unwrap();
    assert_eq!(log.try_open(&mut counts).unwrap().torn_tail, None);
    for name in ["4.seg", "00000000004.seg", "x.seg"] {
        fs::write(log.log_dir.join(name), [0; 2 * BLOCK]).unwrap();
        assert!(log.try_open(&mut counts).is_err(), "{name}");
    }
}

#[test]
fn damage_above_an_old_watermark_is_found_by_what_later_records_know() {
    let log = crashed(&[1, 1, 1]);
    let last = log.last();
    let bytes = &log.files[&last.path];
    let known = log.batch_ends[1]; // the third batch was written when the second one was durable
    let mut counts = Counts::default();
    for at in log.durable_end..log.batch_ends[2] {
        flip(&last.path, bytes, (BLOCK + (at - last.start) as usize) * 8 + 3);
        let report = log.try_open(&mut counts);
        assert_eq!(report.is_err(), at < known, "byte {at} of {known}: {report:?}");
    }
    println!("log, damage above an old watermark: {counts:?}");
}

#[test]
fn a_full_segment_above_an_old_watermark_was_durable() {
    let log = crashed(&[60]);
    let [.., full, last] = &segments(&log.files)[..] else { panic!("several segments") };
    assert!(full.end() > log.durable_end, "the watermark is in the segment before the last one");
    let mut counts = Counts::default();
    for at in (BLOCK..full.written).step_by(7) {
        flip(&full.path, &log.files[&full.path], at * 8 + 1);
        assert!(log.try_open(&mut counts).is_err(), "byte {at}");
    }
    // The last segment's header is all that says so, and what follows it says no more than it.
    for at in [0, 8, 30, BLOCK - 1] {
        flip(&last.path, &log.files[&last.path], at * 8);
        let tail = log.try_open(&mut counts).unwrap().torn_tail.unwrap();
        assert_eq!((tail.file, tail.offset), (last.path.clone(), 0));
        assert!(tail.records > 0, "they are found without the header");
    }
    // Both: the segment after the tear was written, so what is torn was durable.
    let mut torn = log.files[&full.path].clone();
    torn[full.written - 9] ^= 1;
    fs::write(&full.path, torn).unwrap();
    flip(&last.path, &log.files[&last.path], 0);
    assert!(log.try_open(&mut counts).is_err());
}

#[test]
fn a_lost_header_is_damage_if_later_records_know_that_it_was_durable() {
    let log = crashed(&[60, 1, 1]);
    let last = log.last();
    let mut counts = Counts::default();
    flip(&last.path, &log.files[&last.path], 0);
    assert!(log.try_open(&mut counts).is_err());
    let mut bytes = log.files[&last.path].clone();
    bytes[..BLOCK].fill(0);
    fs::write(&last.path, bytes).unwrap();
    assert!(log.try_open(&mut counts).is_err());
}

#[test]
fn purged_segments_may_be_gone_or_still_there() {
    let log = crashed(&[]);
    let (opened, _) = open(&log.dir).unwrap();
    opened.purge_through(Position::new(2, 100)).unwrap();
    flush(&opened);
    drop(opened);
    let purged = files(&log.log_dir);
    let old = segments(&log.files);
    assert!(!purged.contains_key(&old[0].path), "the first segment is gone");
    let (opened, report) = open(&log.dir).unwrap();
    assert_eq!(report.torn_tail, None);
    assert_eq!(read_all(&opened).first(), Some(&record(2, 101)));
    drop(opened);
    // As if the machine had stopped after the purge and before the removal, or amid it.
    let mut unremoved = files(&log.log_dir);
    for segment in old.iter().rev() {
        unremoved.entry(segment.path.clone()).or_insert_with(|| log.files[&segment.path].clone());
        restore(&log.log_dir, &unremoved);
        let (opened, _) = open(&log.dir).unwrap();
        assert_eq!(read_all(&opened).first(), Some(&record(2, 101)));
    }
    // What was purged is gone, and what is needed now is missing too.
    restore(&log.log_dir, &purged);
    fs::remove_file(&segments(&purged)[0].path).unwrap();
    assert!(is_damaged(&open(&log.dir)));
}
