//! A stopped node's folder as a history: what its machine was, and nothing in it is changed.

use std::{collections::BTreeMap, fs, path::Path, sync::mpsc};

use replicator_offline::{Beginning, Folder, History, OfflineError, Replay, Saved};
use replicator_storage::{
    DiskLog, DiskLogOptions, Log, NodeDir, Record, SavedSnapshot, SavedWriter, SnapshotInfo, SnapshotOptions,
    StoppedNode,
};
use replicator_types::{ClusterId, Lineage, LogIndex};

use crate::{
    memory::{Memory, limits},
    notes::V1,
};

/// Every file of a folder and what it holds.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (name, path) = (entry.file_name().into_string().unwrap(), entry.path());
        match path.is_dir() {
            true => found.extend(content(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => drop(found.insert(name, fs::read(path).unwrap())),
        }
    }
    found
}

/// A node's folder with this history, an image of the first half of it included.
fn folder(dir: &Path, log: &mut Memory) {
    let node = NodeDir::open(dir, "n1").unwrap();
    node.modules().unwrap().put(&V1.wasm()).unwrap();
    let mut client = log.open();
    let images = node.snapshots("snapshots", SnapshotOptions { spare_bytes: 0, ..Default::default() }).unwrap();
    for step in 0..60 {
        if step == 30 {
            let image = log.machine.image().unwrap();
            let info = SnapshotInfo {
                position: image.position(),
                lineage: Lineage(7),
                cluster: ClusterId([1; 16]),
                module: image.module(),
                engine: replicator_machine::engine_fingerprint(),
                digest: image.digest().0.into(),
                extra: Vec::new(),
                created_us: 1,
            };
            let mut writer = images.begin(info, 1 << 20).unwrap();
            image.write_to(&mut writer).unwrap();
            writer.finish().unwrap();
        }
        log.send(&mut client, b"atext");
    }
    let (disk, _) = DiskLog::open(&node, "log", DiskLogOptions::default()).unwrap();
    let records = log
        .entries
        .iter()
        .map(|logged| Record { position: logged.position, payload: logged.entry.clone().unwrap_or_default() });
    let (done, durable) = mpsc::channel();
    disk.append(records.collect(), Box::new(move |result| done.send(result).unwrap())).unwrap();
    durable.recv().unwrap().unwrap();
}

fn open(dir: &Path, committed: Option<u64>) -> Folder {
    let node = StoppedNode::open(dir).unwrap();
    let log = node.log("log").unwrap();
    let framing = |record: &Record| Ok(Some(record.payload.clone()).filter(|payload| !payload.is_empty()));
    Folder::new(node, log, framing, committed.map(LogIndex)).unwrap()
}

#[test]
fn folder_is_replayed_and_left_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let mut log = Memory::new(&[&V1.wasm()], limits());
    folder(scratch.path(), &mut log);
    let before = content(scratch.path());

    let folder = open(scratch.path(), None);
    let image = folder.images()[0];
    assert_eq!(folder.committed(), Some(image.index), "an image holds nothing else");
    assert_eq!(open(scratch.path(), Some(50)).committed(), Some(LogIndex(50)));
    let last = folder.last().unwrap().index;
    for (until, begins) in [(LogIndex(20), Beginning::Genesis), (last, Beginning::Image(image))] {
        let mut replay = Replay::begin(&folder, until, folder.modules()).unwrap();
        replay.run_to(until, &mut |_| {}).unwrap();
        assert_eq!((replay.beginning(), replay.machine().applied().unwrap().index), (begins, until));
        if until == last {
            assert_eq!(replay.machine().state_hash(), log.machine.state_hash());
        }
    }
    drop(folder);
    assert!(content(scratch.path()) == before, "something in the folder was changed");
}

#[test]
fn damaged_image_is_passed_over_and_a_missing_module_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut log = Memory::new(&[&V1.wasm()], limits());
    folder(scratch.path(), &mut log);
    let images = scratch.path().join("snapshots");
    let data = fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path());
    let data = data.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "image")).unwrap();
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, bytes).unwrap();
    let history = open(scratch.path(), None);
    let last = history.last().unwrap().index;
    let mut replay = Replay::begin(&history, last, history.modules()).unwrap();
    assert_eq!((replay.beginning(), replay.notes().len()), (Beginning::Genesis, 1));
    replay.run_to(last, &mut |_| {}).unwrap();
    assert_eq!(replay.machine().state_hash(), log.machine.state_hash());

    let module = fs::read_dir(scratch.path().join("modules")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(module).unwrap();
    let mut replay = Replay::begin(&history, last, history.modules()).unwrap();
    assert!(matches!(replay.run_to(last, &mut |_| {}), Err(OfflineError::NoModule(_))));
}

#[test]
fn saved_snapshot_is_its_image() {
    let scratch = tempfile::tempdir().unwrap();
    let mut log = Memory::new(&[&V1.wasm()], limits());
    folder(scratch.path(), &mut log);
    let source = NodeDir::saved(scratch.path(), None, "test", 1).unwrap().unwrap();
    let file = scratch.path().join("saved");
    let mut writer = SavedWriter::begin(&file, false).unwrap();
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), 1 << 20).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let saved = Saved::new(SavedSnapshot::open(&file).unwrap()).unwrap();
    let at = saved.last().unwrap();
    let mut replay = Replay::begin(&saved, at.index, saved.modules()).unwrap();
    replay.run_to(at.index, &mut |_| {}).unwrap();
    assert_eq!(replay.machine().applied(), Some(at));
    assert!(saved.modules().module(&replay.machine().active_module().unwrap()).is_some());
    assert!(matches!(Replay::begin(&saved, LogIndex(3), saved.modules()), Err(OfflineError::Unreachable { .. })));
}
