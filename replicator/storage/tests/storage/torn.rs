//! The last write reached the disk in part: any of its blocks may be new, and the others as they were before.

use std::{fs, ops::Range};

use replicator_storage::{DiskLog, Log, NodeDir, OpenReport};
use replicator_types::Position;

use crate::scratch::{
    BLOCK, Files, LOG, NODE, append, files, flush, folder, open, read_all, records, restore, segments, small,
};

/// The files before and after a write, and every mix of the blocks in which they differ.
fn mixes<'a>(before: &'a Files, after: &'a Files) -> impl Iterator<Item = Files> + 'a {
    let mut torn = Vec::new();
    for (path, bytes) in after.iter().filter(|(path, _)| path.extension().is_some_and(|ending| ending == "seg")) {
        // A file that wasn't there was made ahead, of zeros, before it was written.
        let blank = vec![0; bytes.len()];
        let old = before.get(path).unwrap_or(&blank);
        for block in (0..bytes.len() / BLOCK).map(|block| block * BLOCK..(block + 1) * BLOCK) {
            if bytes[block.clone()] != old[block.clone()] {
                torn.push((path, block.clone(), &bytes[block.clone()], old[block].to_vec()));
            }
        }
    }
    assert!((1..=12).contains(&torn.len()), "{} blocks were written", torn.len());
    (0..1_u32 << torn.len()).map(move |mix| {
        let mut files = after.clone();
        files.extend(
            before.iter().filter(|(path, _)| path.ends_with("durable")).map(|(path, b)| (path.clone(), b.clone())),
        );
        for (i, (path, block, _, old)) in torn.iter().enumerate() {
            if mix & (1 << i) == 0 {
                files.get_mut(*path).unwrap()[Range::clone(block)].copy_from_slice(old);
            }
        }
        files
    })
}

/// Appends `more` entries in one flush after `fill` ones, and opens every mix. What opens must be a beginning of what was written, with
/// everything that was durable before.
fn every_mix_opens(segment_bytes_max: usize, fill: u64, more: u64) -> u64 {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let options = || replicator_storage::DiskLogOptions { segment_bytes_max, ..small() };
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    append(&log, records(1, 0..fill));
    flush(&log);
    let before = files(&log_dir);
    append(&log, records(2, fill..fill + more));
    let written = read_all(&log);
    drop(log);
    let after = files(&log_dir);
    let mut tried = 0;
    for mix in mixes(&before, &after) {
        restore(&log_dir, &mix);
        let (log, report) = DiskLog::open(&dir, LOG, options()).unwrap();
        let found = read_all(&log);
        assert!(written.starts_with(&found) && found.len() as u64 >= fill, "{} entries; {report:?}", found.len());
        assert_eq!(log.ends().durable, found.last().map(|record| record.position));
        // It goes on where it is cut, and nothing of the torn part comes back.
        let next = found.len() as u64;
        append(&log, records(9, next..next + 3));
        drop(log);
        let (log, OpenReport { torn_tail, .. }) = DiskLog::open(&dir, LOG, options()).unwrap();
        assert_eq!(torn_tail, None);
        assert_eq!(read_all(&log), [found, records(9, next..next + 3)].concat());
        tried += 1;
    }
    tried
}

#[test]
fn every_part_of_a_torn_write_of_several_blocks_opens() {
    // The first write of the log and of its header; and one that begins amid a block.
    assert!(every_mix_opens(1 << 16, 0, 300) >= 32);
    assert!(every_mix_opens(1 << 16, 20, 300) >= 32);
    // Blocks that end where a record does are no special case, whatever the records before.
    for fill in 50..60 {
        assert!(every_mix_opens(1 << 16, fill, 100) >= 4);
    }
}

#[test]
fn every_part_of_a_torn_write_into_a_new_segment_opens() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..20));
    flush(&log);
    let before = files(&log_dir);
    append(&log, records(2, 20..80));
    let written = read_all(&log);
    drop(log);
    let after = files(&log_dir);
    let [first, second] = &segments(&after)[..] else { panic!("the write took two segments") };
    let mut tried = 0;
    for mix in mixes(&before, &after) {
        restore(&log_dir, &mix);
        let opened = open(&dir);
        // The header says that the segment before was durable, so that must be there.
        let begun = mix[&second.path][0] != 0;
        if begun && mix[&first.path] != after[&first.path] {
            assert!(opened.is_err(), "that disk has lost what was durable");
            continue;
        }
        let (log, report) = opened.unwrap();
        let found = read_all(&log);
        assert!(written.starts_with(&found) && found.len() >= 20, "{report:?}");
        tried += 1;
    }
    assert_eq!(tried, 6, "of three blocks, two mixes have the second segment's header without the first one's records");
}

#[test]
fn a_block_of_an_earlier_write_that_went_back_is_damage() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let options = || replicator_storage::DiskLogOptions { segment_bytes_max: 1 << 16, ..small() };
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    append(&log, records(1, 0..20));
    let before = files(&log_dir);
    append(&log, records(1, 20..200));
    drop(log);
    let after = files(&log_dir);
    for (i, mut mix) in mixes(&before, &after).enumerate() {
        mix.insert(log_dir.join("durable"), after[&log_dir.join("durable")].clone());
        let whole = mix == after;
        restore(&log_dir, &mix);
        let opened = DiskLog::open(&dir, LOG, options());
        assert_eq!(opened.is_ok(), whole, "mix {i}");
        drop(opened);
        fs::copy(log_dir.join("durable"), scratch.path().join("durable")).unwrap();
    }
}

#[test]
fn a_record_of_several_blocks_is_whole_or_torn() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log_dir = scratch.path().join(LOG);
    let options =
        || replicator_storage::DiskLogOptions { segment_bytes_max: 1 << 16, record_bytes_max: 1 << 15, ..small() };
    for filled in [0, 7] {
        let large = |index| replicator_storage::Record {
            position: Position::new(1, index),
            payload: vec![filled; 20_000].into(),
        };
        let name = format!("log{filled}");
        let log_dir = log_dir.with_file_name(&name);
        let (log, _) = DiskLog::open(&dir, &name, options()).unwrap();
        append(&log, vec![large(0)]);
        let before = files(&log_dir);
        append(&log, vec![large(1)]);
        drop(log);
        let after = files(&log_dir);
        let mut whole = 0;
        for mix in mixes(&before, &after) {
            restore(&log_dir, &mix);
            let (log, _) = DiskLog::open(&dir, &name, options()).unwrap();
            let found = read_all(&log);
            assert!(found == [large(0)] || found == [large(0), large(1)]);
            whole += u32::from(found.len() == 2);
        }
        // A block of zeros that is lost can't be told from one that isn't, and needn't.
        assert_eq!(whole, 1);
    }
}
