//! A stopped node's folder that is only looked at: what an opening would read is read, and nothing is changed.

use std::fs;

use replicator_storage::{ReadLog, StoppedNode, StorageError};
use replicator_types::{LogIndex, Position};

use crate::{
    crashed::crashed,
    scratch::{LOG, NODE, files, folder, is_damaged, open, read_all, records, segments},
};

#[test]
fn the_entries_are_those_of_an_opening_and_a_torn_tail_stays() {
    let mut crashed = crashed(&[3]);
    let path = crashed.dir.path().to_owned();
    crashed.dir = replicator_storage::NodeDir::open(crashed.scratch.path().join("other"), "other").unwrap();
    let last = segments(&crashed.files).pop().unwrap();
    let mut bytes = fs::read(&last.path).unwrap();
    let torn = last.written - 20;
    bytes[torn] ^= 1;
    fs::write(&last.path, &bytes).unwrap();
    let before = files(&crashed.log_dir);

    let node = StoppedNode::open(&path).unwrap();
    let log = node.log(LOG).unwrap();
    let found = log.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX).unwrap();
    assert!(log.torn_tail().is_some() && log.ends().durable <= log.ends().last, "{log:?}");
    let one_by_one = (0..).map_while(|at: u64| {
        let next = found.first()?.position.index.0 + at;
        log.read(LogIndex(next), LogIndex(u64::MAX), 0).unwrap().into_iter().next()
    });
    assert!(one_by_one.eq(found.iter().cloned()), "a read of no bytes gives one record");
    assert!(matches!(node.log("other"), Err(StorageError::NotOurs { .. })));
    assert!(node.images().unwrap().is_empty());
    drop(node);
    assert!(files(&crashed.log_dir) == before, "looking changes nothing");

    let dir = replicator_storage::NodeDir::open(&path, NODE).unwrap();
    let (opened, report) = open(&dir).unwrap();
    assert_eq!((read_all(&opened), report.torn_tail.as_ref()), (found, log.torn_tail()));
}

#[test]
fn damage_and_a_running_node_are_refused() {
    let scratch = folder();
    let dir = replicator_storage::NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    crate::scratch::append(&log, records(1, 0..40));
    assert!(matches!(StoppedNode::open(scratch.path()), Err(StorageError::Locked { .. })));
    drop((log, dir));
    let node = StoppedNode::open(scratch.path()).unwrap();
    assert_eq!(node.log(LOG).unwrap().ends().durable, Some(Position::new(1, 39)));
    let first = segments(&files(&scratch.path().join(LOG))).remove(0);
    let mut bytes = fs::read(&first.path).unwrap();
    bytes[first.written / 2 + 2_048] ^= 4;
    fs::write(&first.path, &bytes).unwrap();
    assert!(is_damaged(&node.log(LOG)));
    let blank = folder();
    assert!(matches!(StoppedNode::open(blank.path()), Err(StorageError::NoNode { .. })));
}
