//! Every bit of a log flipped, every file cut at every byte: found, or a torn tail that nobody was promised.

use std::fs;

use crate::{
    crashed::{Counts, bits, crashed, flip},
    scratch::{BLOCK, ahead, segments},
};

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
