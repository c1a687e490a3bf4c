//! A damaged log is mended from a peer: every byte, every file, every cut.

use std::{
    cell::Cell,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use replicator_storage::{
    DiskLog, EntrySource, GivenEntries, Log, MendError, NodeDir, Record, Repair, SnapshotInfo, SnapshotOptions,
    StorageError, Withheld,
};
use replicator_types::{LogIndex, Position};

use crate::{
    crashed::{Crashed, crashed},
    images::{SNAPSHOTS, info},
    scratch::{BLOCK, LOG, ahead, files, flush, is_damaged, open, read_all, record, records, restore, segments},
};

/// A peer's log, all of it in memory.
pub(crate) struct Peer {
    pub(crate) purged: Option<Position>,
    pub(crate) records: Vec<Record>,
    pub(crate) calls: Cell<u64>,
}

impl Peer {
    pub(crate) fn of(log: &Crashed) -> Self {
        Self { purged: Some(Position::new(1, 20)), records: log.all.clone(), calls: Cell::new(0) }
    }

    /// One that has never purged anything.
    fn whole(log: &Crashed) -> Self {
        Self { purged: None, records: [records(1, 0..21), log.all.clone()].concat(), calls: Cell::new(0) }
    }

    fn at(&self, index: u64) -> Option<Position> {
        let held = self.records.iter().map(|record| record.position).chain(self.purged);
        held.into_iter().find(|held| held.index.0 == index)
    }
}

impl EntrySource for &Peer {
    fn entries(&mut self, from: LogIndex, to: LogIndex, anchor: Position) -> Result<GivenEntries, Withheld> {
        self.calls.set(self.calls.get() + 1);
        if self.at(anchor.index.0) != Some(anchor) {
            return Err(Withheld::Never(format!("it has no {anchor}")));
        }
        if from < to && self.purged.is_some_and(|purged| purged.index >= from) {
            return Err(Withheld::Never(format!("{from} is purged")));
        }
        let wanted = self.records.iter().filter(|record| (from..to).contains(&record.position.index));
        // A few at a time, as a peer gives them.
        let records = wanted.take(7).cloned().collect();
        let before = from.0.checked_sub(1).and_then(|before| self.at(before));
        Ok(GivenEntries { from: "b".into(), before, records })
    }
}

pub(crate) fn mend(dir: &NodeDir, mut peer: &Peer) -> Result<Vec<Repair>, MendError> {
    DiskLog::mend(dir, LOG, None, &mut peer)
}

/// The log as it is now is refused, mended and opened, and holds what it held. Puts it back. Whether its segments are the same bytes again.
fn heals(log: &Crashed, peer: &Peer, what: &str) -> bool {
    assert!(is_damaged(&open(&log.dir)), "{what}: not found");
    let repairs = mend(&log.dir, peer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(!repairs.is_empty(), "{what}: nothing is said to be mended");
    let mended = files(&log.log_dir);
    let same = segments(&log.files).iter().all(|segment| mended.get(&segment.path) == Some(&log.files[&segment.path]));
    let (opened, report) = open(&log.dir).unwrap_or_else(|error| panic!("{what}: {error}; after {repairs:?}"));
    assert_eq!(report.torn_tail, None, "{what}");
    let (ends, found) = (opened.ends(), read_all(&opened));
    drop(opened);
    // A lost purge record that nothing proves isn't made up: the log may begin sooner again.
    let after_purge: Vec<_> = found.iter().filter(|record| record.position.index.0 > 20).cloned().collect();
    assert!(after_purge == log.all, "{what}: {repairs:?}");
    assert_eq!(ends.last, log.all.last().map(|record| record.position), "{what}");
    restore(&log.log_dir, &log.files);
    same
}

#[test]
fn every_flipped_byte_of_every_segment_is_mended() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    let (mut tried, mut same) = (0, 0);
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        let header = (0..100).chain((100..BLOCK - 8).step_by(97)).chain(BLOCK - 8..BLOCK);
        for at in header.chain(BLOCK..segment.written) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&segment.path, flipped).unwrap();
            tried += 1;
            same += u64::from(heals(&log, &peer, &format!("byte {at} of {}", segment.path.display())));
        }
    }
    println!("bytes flipped: {tried}, mended to the same bytes: {same}, calls to the peer: {}", peer.calls.get());
    // Entries that were purged or cut off are made up, as no peer has them.
    let gone = (0..=20).chain(51..54).map(|index| record(1, index)).chain(records(2, 109..110));
    let gone: usize = gone.map(|record| (41 + record.payload.len()).next_multiple_of(8)).sum();
    println!("bytes of entries that are in no log any more: {gone}");
    assert!(tried - same <= gone as u64);
}

#[test]
fn every_cut_of_a_segment_is_mended() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    let mut tried = 0;
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        for size in (0..segment.written).step_by(53).chain([bytes.len() - 1, BLOCK, BLOCK + 1, 0]) {
            fs::write(&segment.path, &bytes[..size]).unwrap();
            heals(&log, &peer, &format!("{} cut at {size}", segment.path.display()));
            tried += 1;
        }
        fs::write(&segment.path, [bytes, &[7; 100][..]].concat()).unwrap();
        heals(&log, &peer, "a file that is too large");
    }
    println!("cuts mended: {tried}");
}

#[test]
fn every_lost_end_and_block_is_mended() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    for segment in segments(&log.files) {
        let bytes = &log.files[&segment.path];
        for from in (BLOCK..segment.written - 8).step_by(61) {
            for garbage in [0, 0xa5] {
                let mut lost = bytes.clone();
                lost[from..segment.written].fill(garbage);
                fs::write(&segment.path, &lost).unwrap();
                heals(&log, &peer, &format!("{} lost from {from}: {garbage}", segment.path.display()));
                let mut lost = bytes.clone();
                let to = (from + 700).min(segment.written);
                lost[from - 300..to].fill(garbage);
                fs::write(&segment.path, &lost).unwrap();
                heals(&log, &peer, &format!("{} lost around {from}: {garbage}", segment.path.display()));
            }
        }
    }
}

#[test]
fn missing_segments_are_mended_in_every_combination() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    // Nothing is left that tells of a purge: then a peer must have it all.
    let whole = Peer::whole(&log);
    let segments = segments(&log.files);
    for missing in 1_u32..1 << segments.len() {
        for (emptied, made_ahead) in [(false, true), (true, true), (false, false)] {
            for (i, segment) in segments.iter().enumerate().filter(|(i, _)| missing & (1 << i) != 0) {
                let _ = i;
                if emptied {
                    fs::write(&segment.path, b"").unwrap();
                } else {
                    fs::remove_file(&segment.path).unwrap();
                }
            }
            if !made_ahead {
                ahead(&log.files).iter().for_each(|path| fs::remove_file(path).unwrap());
            }
            let all = missing + 1 == 1 << segments.len();
            heals(&log, if all { &whole } else { &peer }, &format!("without {missing:b}, emptied: {emptied}"));
        }
    }
}

#[test]
fn holes_in_several_segments_and_across_two_are_mended() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    let segments = segments(&log.files);
    let spoil = |path: &Path, range: std::ops::Range<usize>| {
        let mut bytes = fs::read(path).unwrap();
        bytes[range].iter_mut().for_each(|byte| *byte ^= 0x42);
        fs::write(path, bytes).unwrap();
    };
    for segment in &segments {
        spoil(&segment.path, BLOCK + 300..BLOCK + 301);
        spoil(&segment.path, segment.written - 400..segment.written - 300);
    }
    heals(&log, &peer, "two holes in each segment");
    for pair in segments.windows(2) {
        spoil(&pair[0].path, pair[0].written - 200..pair[0].written);
        spoil(&pair[1].path, 0..BLOCK + 300);
        heals(&log, &peer, &format!("a hole across two segments, {pair:?}"));
        spoil(&pair[0].path, pair[0].written - 200..pair[0].written);
        spoil(&pair[1].path, 0..BLOCK);
        heals(&log, &peer, "a hole up to the next segment's records");
    }
    for segment in &segments {
        spoil(&segment.path, 0..segment.written);
    }
    heals(&log, &Peer::whole(&log), "all of it");
}

#[test]
fn whatever_is_damaged_at_random_is_mended_or_refused_and_never_wrong() {
    let log = crashed(&[2]);
    let peer = Peer::whole(&log);
    let segments = segments(&log.files);
    let mut state = 7_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut mended, mut refused, mut harmless) = (0, 0, 0);
    for round in 0..600 {
        for _ in 0..=random(4) {
            let segment = &segments[random(segments.len())];
            let mut bytes = fs::read(&segment.path).unwrap_or_default();
            let from = random(segment.written).min(bytes.len());
            let to = (from + [1, 8, 90, 700, 5_000][random(5)]).min(bytes.len());
            match random(4) {
                0 => bytes[from..to].fill(0),
                1 => bytes.truncate(from),
                _ => bytes[from..to].iter_mut().for_each(|byte| *byte ^= 1 << random(8)),
            }
            fs::write(&segment.path, bytes).unwrap();
        }
        if open(&log.dir).is_ok() {
            harmless += 1; // Of what is not durable.
        } else {
            match mend(&log.dir, &peer) {
                Ok(_) => mended += 1,
                Err(MendError::Storage(StorageError::Damaged { .. })) => refused += 1,
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        if let Ok((opened, report)) = open(&log.dir) {
            let found = read_all(&opened);
            let found: Vec<_> = found.into_iter().filter(|record| record.position.index.0 > 20).collect();
            let right = log.all.starts_with(&found) && found.starts_with(&log.durable);
            assert!(right, "round {round}: {report:?} {:?}", opened.ends());
        }
        restore(&log.log_dir, &log.files);
    }
    println!("damaged at random: {mended} mended, {refused} refused, {harmless} not durable");
    assert!(mended > 500 && refused < 30, "{mended} mended, {refused} refused");
}

#[test]
fn a_segment_of_another_log_or_place_is_mended() {
    let (log, theirs) = (crashed(&[]), crashed(&[]));
    let peer = Peer::of(&log);
    let segments = segments(&log.files);
    for one in &segments {
        for other in segments.iter().filter(|other| *other != one) {
            fs::write(&one.path, &log.files[&other.path]).unwrap();
            heals(&log, &peer, "another segment in its place");
        }
        let foreign = theirs.log_dir.join(one.path.file_name().unwrap());
        fs::write(&one.path, &theirs.files[&foreign]).unwrap();
        heals(&log, &peer, "another log's segment");
    }
}

#[test]
fn mending_that_was_killed_is_gone_on_with() {
    let log = crashed(&[]);
    let peer = Peer::of(&log);
    let segments = segments(&log.files);
    for lost in [None, Some(0), Some(1), Some(2)] {
        let mut damaged = log.files.clone();
        for (i, segment) in segments.iter().enumerate() {
            let bytes = damaged.get_mut(&segment.path).unwrap();
            bytes[BLOCK + 300] ^= 1;
            if lost == Some(i) {
                bytes.fill(0x77);
            }
        }
        restore(&log.log_dir, &damaged);
        mend(&log.dir, &peer).unwrap();
        let mended = files(&log.log_dir);
        for done in 0..=segments.len() {
            restore(&log.log_dir, &damaged);
            for segment in segments.iter().rev().take(done) {
                fs::write(&segment.path, &mended[&segment.path]).unwrap();
            }
            fs::write(segments[0].path.with_added_extension("new"), b"half of it").unwrap();
            mend(&log.dir, &peer).unwrap();
            let (opened, _) = open(&log.dir).unwrap();
            assert!(read_all(&opened).ends_with(&log.all), "{lost:?} lost, and {done} segments were mended");
            drop(opened);
            assert!(!segments[0].path.with_added_extension("new").exists());
        }
    }
}

#[test]
fn an_image_makes_up_for_entries_before_it_without_a_peer() {
    let log = crashed(&[]);
    let silent = Peer { records: Vec::new(), purged: None, calls: Cell::new(0) };
    let image = Position::new(2, 80);
    let store = log.dir.snapshots(SNAPSHOTS, SnapshotOptions { chunk_bytes: 4096, spare_bytes: 0 }).unwrap();
    let mut writer = store.begin(SnapshotInfo { position: image, ..info(80) }, 10).unwrap();
    writer.write_all(b"the state").unwrap();
    writer.finish().unwrap();
    let spoiled = |index: u64| {
        let record = log.all.iter().find(|record| record.position.index.0 == index).unwrap();
        let (path, at) = find(&log, &record.payload);
        let mut bytes = log.files[&path].clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(is_damaged(&open(&log.dir)), "entry {index}");
        DiskLog::mend(&log.dir, LOG, Some(SNAPSHOTS), &mut &silent)
    };
    for index in [21, 30, 60, 79] {
        let repairs = spoiled(index).unwrap();
        let mended = files(&log.log_dir);
        let (opened, _) = open(&log.dir).unwrap();
        assert_eq!(opened.ends().purged, Some(image), "{repairs:?}");
        assert_eq!(read_all(&opened), log.all[60..], "entry {index}: those after 80");
        drop(opened);
        // Killed before the damaged segment was replaced: the purge is there already, and nothing else may be seen.
        restore(&log.log_dir, &log.files);
        assert!(spoiled(index).is_ok());
        let (path, _) = find(&log, &record(3, 119).payload);
        restore(&log.log_dir, &log.files);
        fs::write(&path, &mended[&path]).unwrap();
        let (opened, _) = open(&log.dir).unwrap();
        assert_eq!(opened.ends().purged, Some(image));
        drop(opened);
        restore(&log.log_dir, &log.files);
    }
    for index in [80, 81, 100] {
        let error = spoiled(index).unwrap_err();
        assert!(matches!(error, MendError::Storage(StorageError::Damaged { .. })), "entry {index}: {error}");
        restore(&log.log_dir, &log.files);
    }
    assert!(silent.calls.get() >= 3, "what no image has is asked for");
}

#[test]
fn a_purge_in_a_torn_tail_makes_up_for_nothing() {
    let log = crashed(&[]);
    let last = log.last();
    let (opened, _) = open(&log.dir).unwrap();
    // In one write, as a truncation wakes nobody.
    opened.truncate_after(Some(Position::new(3, 118))).unwrap();
    opened.purge_through(Position::new(2, 80)).unwrap();
    flush(&opened);
    drop(opened);
    // As if the power had gone before anything else was written or deleted, and the first of the two were torn.
    let mut bytes = fs::read(&last.path).unwrap();
    bytes[last.written + 20] ^= 1;
    let mut written = log.files.clone();
    written.insert(last.path.clone(), bytes);
    restore(&log.log_dir, &written);
    let (opened, report) = open(&log.dir).unwrap();
    assert_eq!(report.torn_tail.map(|tail| tail.records), Some(1), "the purge");
    drop(opened);
    restore(&log.log_dir, &written);

    let (path, at) = find(&log, &record(2, 60).payload);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
    let silent = Peer { records: Vec::new(), purged: None, calls: Cell::new(0) };
    assert!(mend(&log.dir, &silent).is_err(), "entry 60 is wanted, as the purge isn't durable");
    mend(&log.dir, &Peer::of(&log)).unwrap();
    let (opened, report) = open(&log.dir).unwrap();
    assert!(report.torn_tail.is_some());
    assert_eq!(read_all(&opened), log.all);
}

/// The segment with these bytes, and where they are.
fn find(log: &Crashed, wanted: &[u8]) -> (PathBuf, usize) {
    let found = segments(&log.files).into_iter().find_map(|segment| {
        let at = log.files[&segment.path].windows(wanted.len()).position(|bytes| bytes == wanted)?;
        Some((segment.path, at))
    });
    found.expect("the bytes are in the log")
}

#[test]
fn a_torn_tail_beyond_the_damage_is_still_told_of() {
    let log = crashed(&[4]);
    let peer = Peer::of(&log);
    let last = log.last();
    let mut bytes = log.files[&last.path].clone();
    bytes[BLOCK + 100] ^= 1;
    let torn = last.written - 20;
    bytes[torn] ^= 1;
    fs::write(&last.path, bytes).unwrap();
    assert!(is_damaged(&open(&log.dir)));
    mend(&log.dir, &peer).unwrap();
    let (opened, report) = open(&log.dir).unwrap();
    let tail = report.torn_tail.expect("a torn tail");
    assert!((tail.offset..tail.offset + tail.bytes).contains(&(torn as u64)), "{tail:?} has {torn}");
    let found = read_all(&opened);
    assert!(found.starts_with(&log.durable) && found.len() + 1 == log.all.len());
}

#[test]
fn a_peer_that_cannot_prove_its_entries_is_not_believed() {
    let log = crashed(&[]);
    let segments = segments(&log.files);
    let mut bytes = log.files[&segments[1].path].clone();
    bytes[BLOCK + 700] ^= 1;
    let refused = |peer: &Peer, why: &str| {
        fs::write(&segments[1].path, &bytes).unwrap();
        let before = files(&log.log_dir);
        let error = mend(&log.dir, peer).unwrap_err();
        assert!(
            matches!(&error, MendError::Storage(StorageError::Damaged { what, .. }) if what.contains(why)),
            "{error}"
        );
        assert!(error.to_string().contains("--rejoin"), "{error}");
        assert!(files(&log.log_dir) == before, "a log that isn't mended is left as it is");
        restore(&log.log_dir, &log.files);
    };
    let short = Peer { records: log.all[..30].to_vec(), ..Peer::of(&log) };
    refused(&short, "it has no");
    let mut others = Peer::of(&log);
    others.records.iter_mut().for_each(|record| record.position.epoch.0 += 1);
    refused(&others, "it has no");
    let purged = Peer { purged: Some(Position::new(2, 100)), ..Peer::of(&log) };
    refused(&purged, "purged");
    // One that claims to have the same entries, with payloads of other sizes.
    let mut liar = Peer::of(&log);
    liar.records.iter_mut().for_each(|record| record.payload = vec![1; 99].into());
    refused(&liar, "bytes");
}

#[test]
fn a_watermark_that_cannot_be_read_is_refused_as_ever() {
    let log = crashed(&[]);
    fs::write(log.log_dir.join("durable"), [0; 8192]).unwrap();
    let error = mend(&log.dir, &Peer::of(&log)).unwrap_err();
    assert!(matches!(error, MendError::Storage(StorageError::Damaged { .. })), "{error}");
}

#[test]
fn a_peer_that_does_not_answer_is_waited_for() {
    struct Silent;
    impl EntrySource for Silent {
        fn entries(&mut self, _: LogIndex, _: LogIndex, _: Position) -> Result<GivenEntries, Withheld> {
            Err(Withheld::NotNow("b is down".into()))
        }
    }
    let log = crashed(&[]);
    let path = &segments(&log.files)[1].path;
    let mut bytes = log.files[path].clone();
    bytes[BLOCK + 700] ^= 1;
    fs::write(path, bytes).unwrap();
    let before = files(&log.log_dir);
    let error = DiskLog::mend(&log.dir, LOG, None, &mut Silent).unwrap_err();
    assert!(matches!(&error, MendError::NotNow { why, .. } if why == "b is down"), "{error}");
    assert!(files(&log.log_dir) == before);
}
