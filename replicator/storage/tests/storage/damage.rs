//! Every bit of a log flipped, every file cut at every byte, files missing: found, or a torn tail that nobody was promised.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use replicator_storage::{DiskLog, Log, NodeDir, OpenReport, Record, StorageError};
use replicator_types::{LogIndex, Position};
use tempfile::TempDir;

use crate::scratch::{
    BLOCK, Files, LOG, NODE, Segment, ahead, append, end, files, flush, folder, is_damaged, open, read_all, record,
    records, restore, segments,
};

/// A log as a crash may leave it: the watermark is older than the last batches.
struct Crashed {
    _scratch: TempDir,
    dir: NodeDir,
    log_dir: PathBuf,
    /// What is on the disk.
    files: Files,
    /// Up to where the watermark says that it is durable.
    durable_end: u64,
    /// The ends of the batches written after that.
    batch_ends: Vec<u64>,
    durable: Vec<Record>,
    all: Vec<Record>,
}

/// Writes full segments with every kind of record and a last one, then batches of so many more that the
/// watermark doesn't know of.
fn crashed(batches: &[u64]) -> Crashed {
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
    Crashed { _scratch: scratch, dir, log_dir, files: after, durable_end, batch_ends, durable, all }
}

/// Flips a bit of a file.
fn flip(path: &Path, bytes: &[u8], bit: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[bit / 8] ^ 1 << (bit % 8)], bit as u64 / 8).unwrap();
}

#[derive(Debug, Default)]
struct Counts {
    tried: u64,
    damaged: u64,
    torn: u64,
    clean: u64,
    torn_records: u64,
}

impl Crashed {
    /// Opens the log as it is now, and puts it back as it was. A log that opens must hold everything durable and nothing wrong.
    fn try_open(&self, counts: &mut Counts) -> Result<OpenReport, StorageError> {
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
    fn try_flip(&self, path: &Path, bit: usize, counts: &mut Counts) -> Result<OpenReport, StorageError> {
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
    fn holds_durable(&self, segment: &Segment, from: usize) -> bool {
        let end = BLOCK + self.durable_end.saturating_sub(segment.start) as usize;
        self.files[&segment.path][from..end.max(from)].iter().any(|byte| *byte != 0)
    }

    fn last(&self) -> Segment {
        segments(&self.files).pop().unwrap()
    }
}

/// The bits that are flipped in a segment: all of what was written and of the block after it, and a sample of the other zeros.
fn bits(bytes: &[u8], segment: &Segment) -> Vec<usize> {
    let header_end = 100;
    let zeros_end = (segment.written + 1).next_multiple_of(BLOCK).min(bytes.len());
    let sampled = (0..bytes.len() * 8).step_by(1009);
    let all = (0..header_end * 8).chain((BLOCK - 8) * 8..zeros_end * 8);
    let mut bits: Vec<_> = all.chain(sampled).collect();
    bits.sort_unstable();
    bits.dedup();
    bits
}

#[test]
fn every_flipped_bit_of_a_full_segment_is_found() {
    let log = crashed(&[3]);
    let mut counts = Counts::default();
    for segment in segments(&log.files).iter().filter(|segment| **segment != log.last()) {
        for bit in bits(&log.files[&segment.path], segment) {
            let report = log.try_flip(&segment.path, bit, &mut counts);
            assert!(report.is_err(), "bit {bit} of {}: {report:?}", segment.path.display());
        }
    }
    println!("full segments, bits flipped: {counts:?}");
    assert!(counts.damaged > 60_000 && counts.damaged == counts.tried, "{counts:?}");
}

#[test]
fn every_flipped_bit_of_the_last_segment_is_found_or_a_torn_tail() {
    let log = crashed(&[3]);
    let segment = log.last();
    let path = &segment.path;
    let mut counts = Counts::default();
    for bit in bits(&log.files[path], &segment) {
        let report = log.try_flip(path, bit, &mut counts);
        let at = bit / 8;
        let durable = segment.offset(at) < log.durable_end;
        match report {
            Err(error) => assert!(durable, "bit {bit}: {error}"),
            Ok(report) => {
                let tail = report.torn_tail.unwrap_or_else(|| panic!("bit {bit}: opened silently"));
                assert!(!durable, "bit {bit}: durable, and cut away");
                assert_eq!(tail.file, *path);
                assert!(tail.offset as usize <= at && at < (tail.offset + tail.bytes) as usize, "{tail:?} has {at}");
            }
        }
    }
    println!("last segment, bits flipped: {counts:?}");
    assert_eq!(counts.clean, 0);
    assert!(counts.damaged > 8_000 && counts.torn > 10_000 && counts.torn_records > 0, "{counts:?}");
}

#[test]
fn a_flipped_bit_of_a_segment_made_ahead_is_a_torn_tail() {
    let log = crashed(&[3]);
    let [path] = &ahead(&log.files)[..] else { panic!("one segment is made ahead") };
    let bytes = &log.files[path];
    let mut counts = Counts::default();
    for bit in (0..bytes.len() * 8).step_by(97) {
        flip(path, bytes, bit);
        let tail = log.try_open(&mut counts).unwrap().torn_tail.unwrap();
        assert_eq!((&tail.file, tail.offset, tail.bytes, tail.records), (path, 0, bit as u64 / 8 + 1, 0));
    }
}

#[test]
fn every_cut_of_a_segment_is_found() {
    let log = crashed(&[3]);
    let mut counts = Counts::default();
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        for size in (0..bytes.len()).filter(|size| *size < 100 || *size >= BLOCK - 8) {
            fs::write(&segment.path, &bytes[..size]).unwrap();
            let report = log.try_open(&mut counts);
            assert!(report.is_err(), "{} cut at {size}: {report:?}", segment.path.display());
        }
        fs::write(&segment.path, [bytes, &[0; BLOCK][..]].concat()).unwrap();
        assert!(log.try_open(&mut counts).is_err(), "{} is larger than it was made", segment.path.display());
    }
    println!("log, files cut: {counts:?}");
}

#[test]
fn every_lost_end_of_what_was_written_is_found_or_nobody_was_told_of_it() {
    let log = crashed(&[3]);
    let last = log.last();
    let mut counts = Counts::default();
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        for size in BLOCK..segment.written {
            if bytes[size] == 0 {
                continue; // The same is lost from the next byte on.
            }
            let mut lost = bytes.clone();
            lost[size..].fill(0);
            fs::write(&segment.path, lost).unwrap();
            let report = log.try_open(&mut counts);
            let may_open = segment == last && !log.holds_durable(&segment, size);
            assert_eq!(report.is_ok(), may_open, "{} zero from {size}: {report:?}", segment.path.display());
        }
    }
    println!("log, ends lost: {counts:?}");
    assert_eq!(counts.clean, 3, "only losses between the three entries that were never durable leave no torn tail");
}

#[test]
fn every_zeroed_or_garbled_block_is_found_or_a_torn_tail() {
    let log = crashed(&[3]);
    let last = log.last();
    let mut counts = Counts::default();
    for segment in segments(&log.files) {
        for block in 0..2 {
            let mut bytes = log.files[&segment.path].clone();
            bytes[block * BLOCK..][..BLOCK].fill(0);
            for garbage in [0, 0xff] {
                bytes[block * BLOCK..][..BLOCK].fill(garbage);
                fs::write(&segment.path, &bytes).unwrap();
                assert!(log.try_open(&mut counts).is_err(), "block {block} of {}", segment.path.display());
            }
            assert!(segment.offset(block * BLOCK) < log.durable_end || segment == last);
        }
    }
}

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
fn every_flipped_bit_and_cut_of_the_watermark_is_found_or_harmless() {
    let log = crashed(&[]);
    let path = log.log_dir.join("durable");
    let bytes = log.files[&path].clone();
    let slots = [0..64, 4096..4160];
    let mut counts = Counts::default();
    for slot in slots.clone() {
        for bit in slot.start * 8..slot.end * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert!(log.try_open(&mut counts).unwrap().watermark_slot_lost, "bit {bit}");
        }
    }
    for size in 0..bytes.len() {
        fs::write(&path, &bytes[..size]).unwrap();
        assert!(log.try_open(&mut counts).is_err(), "cut at {size}");
    }
    let mut both = bytes.clone();
    both[10] ^= 1;
    both[4100] ^= 1;
    fs::write(&path, both).unwrap();
    assert!(log.try_open(&mut counts).is_err(), "neither slot is whole");
    fs::remove_file(&path).unwrap();
    assert!(log.try_open(&mut counts).is_err(), "the file is missing");
    println!("watermark, bits flipped and cuts: {counts:?}");
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
    let stranger = NodeDir::open(log._scratch.path().join("b"), "b").unwrap();
    fs::create_dir(stranger.path().join(LOG)).unwrap();
    for (path, bytes) in &log.files {
        fs::write(stranger.path().join(LOG).join(path.file_name().unwrap()), bytes).unwrap();
    }
    assert!(is_damaged(&open(&stranger)));
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
