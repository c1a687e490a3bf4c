//! Every bit of a log flipped, every file cut at every byte, files missing: found, or a torn tail that nobody was promised.

use std::{fs, path::PathBuf};

use replicator_storage::{DiskLog, Log, NodeDir, OpenReport, Record, StorageError};
use replicator_types::{LogIndex, Position};
use tempfile::TempDir;

use crate::scratch::{
    Files, LOG, NODE, append, chunks, end, files, flush, folder, is_damaged, open, read_all, record, records, restore,
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

/// Writes closed chunks with every kind of record and an open one, then batches of so many more that the
/// watermark doesn't know of.
fn crashed(batches: &[u64]) -> Crashed {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path().join(NODE), NODE).unwrap();
    let log_dir = dir.path().join(LOG);
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..12));
    log.truncate_after(Some(Position::new(1, 8))).unwrap();
    append(&log, records(2, 9..16));
    log.purge_through(Position::new(1, 3)).unwrap();
    append(&log, records(2, 16..26));
    log.truncate_after(Some(Position::new(2, 24))).unwrap();
    append(&log, records(3, 25..30));
    flush(&log);
    let before = files(&log_dir);
    let durable = read_all(&log);
    assert!(chunks(&before).len() >= 3, "the log has closed chunks");
    let mut batch_ends = Vec::new();
    for batch in batches {
        let next = log.ends().last.map_or(0, |last| last.index.0 + 1);
        append(&log, records(3, next..next + batch));
        batch_ends.push(end(&files(&log_dir)));
    }
    let mut after = files(&log_dir);
    assert_eq!(chunks(&before), chunks(&after), "the batches stay in the open chunk");
    after.insert(log_dir.join("durable"), before[&log_dir.join("durable")].clone());
    let all = read_all(&log);
    drop(log);
    restore(&log_dir, &after);
    let durable_end = end(&before);
    Crashed { _scratch: scratch, dir, log_dir, files: after, durable_end, batch_ends, durable, all }
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
            assert_eq!(files(&self.log_dir), found, "a refused log is left as it is");
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

    fn check(&self, log: &DiskLog, report: &OpenReport) {
        let found = read_all(log);
        assert!(self.all.starts_with(&found), "{found:?} is no beginning of what was written; {report:?}");
        assert!(found.starts_with(&self.durable), "durable entries are gone: {found:?}; {report:?}");
        assert_eq!(log.ends().last, found.last().map(|record| record.position));
        assert_eq!(log.ends().durable, log.ends().last, "all that is there is durable once it is open");
    }

    fn last_chunk(&self) -> (PathBuf, u64) {
        chunks(&self.files).pop().unwrap()
    }
}

#[test]
fn every_flipped_bit_of_a_log_is_found_or_a_torn_tail() {
    let log = crashed(&[3]);
    let mut counts = Counts::default();
    for (path, start) in chunks(&log.files) {
        let bytes = &log.files[&path];
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            let report = log.try_open(&mut counts);
            let at = start + bit as u64 / 8;
            match report {
                Err(error) => assert!(at < log.durable_end, "bit {bit} of {}: {error}", path.display()),
                Ok(report) => {
                    let tail =
                        report.torn_tail.unwrap_or_else(|| panic!("bit {bit} of {} opened silently", path.display()));
                    assert!(at >= log.durable_end, "bit {bit} of {}: durable, and cut away", path.display());
                    assert_eq!(tail.file, path);
                    assert!(start + tail.offset <= at && at < start + tail.offset + tail.bytes, "{tail:?} has {at}");
                }
            }
        }
    }
    println!("log, bits flipped: {counts:?}");
    assert_eq!(counts.clean, 0);
    assert!(counts.damaged > 10_000 && counts.torn > 1_000 && counts.torn_records > 0, "{counts:?}");
}

#[test]
fn every_cut_of_a_log_is_found_or_a_torn_tail() {
    let log = crashed(&[3]);
    let (last, last_start) = log.last_chunk();
    let mut counts = Counts::default();
    for (path, start) in chunks(&log.files) {
        let bytes = &log.files[&path];
        for size in 0..bytes.len() {
            fs::write(&path, &bytes[..size]).unwrap();
            let report = log.try_open(&mut counts);
            let cut_at = start + size as u64;
            let may_open = path == last && cut_at >= log.durable_end;
            assert_eq!(report.is_ok(), may_open, "{} cut at {size}: {report:?}", path.display());
            if let Ok(OpenReport { torn_tail: Some(tail), .. }) = report {
                assert_eq!(last_start + tail.offset + tail.bytes, cut_at);
            }
        }
    }
    println!("log, files cut: {counts:?}");
    assert_eq!(
        counts.clean, 3,
        "only the cuts between the three entries that were never durable open without a torn tail"
    );
}

#[test]
fn every_missing_chunk_is_found() {
    let log = crashed(&[]);
    let chunks = chunks(&log.files);
    let mut counts = Counts::default();
    for missing in 1_u32..1 << chunks.len() {
        for (i, (path, _)) in chunks.iter().enumerate() {
            if missing & (1 << i) != 0 {
                fs::remove_file(path).unwrap();
            }
        }
        let report = log.try_open(&mut counts);
        assert!(report.is_err(), "without the chunks {missing:b} of {}: {report:?}", chunks.len());
    }
    fs::remove_dir_all(&log.log_dir).unwrap();
    assert!(is_damaged(&open(&log.dir)), "without the whole folder");
    println!("log, chunks missing: {counts:?}");
}

#[test]
fn bytes_after_the_end_are_a_torn_tail_and_after_a_closed_chunk_damage() {
    let log = crashed(&[]);
    let (last, _) = log.last_chunk();
    let mut counts = Counts::default();
    for (path, _) in chunks(&log.files) {
        for garbage in [&[0; 1][..], &[0; 700], &[0xff; 64], &[0, 0, 0, 1], &[0, 0, 0, 5, 1]] {
            fs::write(&path, [&log.files[&path], garbage].concat()).unwrap();
            let report = log.try_open(&mut counts);
            match report {
                Ok(OpenReport { torn_tail: Some(tail), .. }) if path == last => {
                    assert_eq!(tail.bytes, garbage.len() as u64);
                }
                Err(_) if path != last => {}
                other => panic!("{} with {garbage:?} after it: {other:?}", path.display()),
            }
        }
    }
}

#[test]
fn an_empty_or_torn_chunk_made_ahead_is_a_torn_tail() {
    let log = crashed(&[]);
    let (last, start) = log.last_chunk();
    let next = start + log.files[&last].len() as u64;
    let digits = format!("{next:020}");
    let grouped =
        [&digits[..2], &digits[2..5], &digits[5..8], &digits[8..11], &digits[11..14], &digits[14..17], &digits[17..]];
    let path = log.log_dir.join(format!("r-{}.wal", grouped.join("_")));
    let mut counts = Counts::default();
    for bytes in [&[][..], &[0; 40], &[0, 0, 0, 5, 1, 0]] {
        fs::write(&path, bytes).unwrap();
        let report = log.try_open(&mut counts).unwrap();
        let tail = report.torn_tail.unwrap();
        assert_eq!((tail.file, tail.offset, tail.bytes), (path.clone(), 0, bytes.len() as u64));
    }
}

#[test]
fn damage_above_an_old_watermark_is_found_by_what_later_records_know() {
    let log = crashed(&[1, 1, 1]);
    let (path, start) = log.last_chunk();
    let bytes = &log.files[&path];
    let known = log.batch_ends[1]; // the third batch was written when the second one was durable
    let mut counts = Counts::default();
    for at in log.durable_end..log.batch_ends[2] {
        let at_byte = (at - start) as usize;
        let mut flipped = bytes.clone();
        flipped[at_byte] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        let report = log.try_open(&mut counts);
        assert_eq!(report.is_err(), at < known, "byte {at} of {known}: {report:?}");
    }
    println!("log, damage above an old watermark: {counts:?}");
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
    // Their chunks below our watermark: equal in every size, and yet not ours.
    restore(&ours.log_dir, &ours.files);
    let (path, _) = chunks(&renamed).remove(0);
    fs::write(&path, &renamed[&path]).unwrap();
    assert!(is_damaged(&open(&ours.dir)), "with one of their chunks");
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
fn purged_chunks_may_be_gone_or_still_there() {
    let log = crashed(&[]);
    let (opened, _) = open(&log.dir).unwrap();
    opened.purge_through(Position::new(2, 20)).unwrap();
    flush(&opened);
    drop(opened);
    let purged = files(&log.log_dir);
    let (first, _) = chunks(&log.files).remove(0);
    assert!(!purged.contains_key(&first), "the first chunk is gone");
    let (opened, report) = open(&log.dir).unwrap();
    assert_eq!(report.torn_tail, None);
    assert_eq!(read_all(&opened).first(), Some(&record(2, 21)));
    drop(opened);
    // As if the machine had stopped after the purge and before the removal.
    let mut unremoved = files(&log.log_dir);
    for (path, _) in chunks(&log.files) {
        unremoved.entry(path.clone()).or_insert_with(|| log.files[&path].clone());
    }
    restore(&log.log_dir, &unremoved);
    let (opened, _) = open(&log.dir).unwrap();
    assert_eq!(read_all(&opened).first(), Some(&record(2, 21)));
}

#[test]
fn damage_done_while_the_log_is_open_is_found_by_reading() {
    let log = crashed(&[]);
    let (opened, _) = open(&log.dir).unwrap();
    let (path, _) = chunks(&log.files).remove(1);
    let mut bytes = log.files[&path].clone();
    for byte in bytes.iter_mut().skip(100) {
        *byte ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    assert!(is_damaged(&opened.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX)));
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
