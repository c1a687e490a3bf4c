//! The folder, its lock, meta and modules.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use replicator_storage::{Log, NodeDir, PeerMemory, StorageError};
use replicator_types::{ClusterId, DiskId, Epoch, Incarnation, Lineage, LogIndex};

use crate::scratch::{NODE, append, folder, is_damaged, open, read_all, records};

fn open_dir(path: &Path) -> Result<NodeDir, StorageError> {
    NodeDir::open(path, NODE)
}

#[test]
fn a_new_folder_is_made_once_and_remembers() {
    let scratch = folder();
    let path = scratch.path().join("data/a");
    let dir = open_dir(&path).unwrap();
    assert!(dir.created());
    let disk = dir.meta().disk;
    let peer = PeerMemory { incarnation: Incarnation(7), start: 5, durable: LogIndex(99) };
    dir.update(|meta| {
        meta.cluster = Some((ClusterId([3; 16]), Lineage(5)));
        meta.mode = Some("chain".into());
        meta.vote = Some(vec![1, 2, 3]);
        meta.sealed_epoch = Some(Epoch(4));
        meta.seal_attempt = Some((Epoch(4), 2));
        meta.peers.insert(DiskId(8), peer);
    })
    .unwrap();
    let written = dir.meta();
    assert_eq!(dir.raise_incarnation().unwrap(), Incarnation(1));
    drop(dir);
    let dir = open_dir(&path).unwrap();
    assert!(!dir.created());
    assert_eq!(dir.raise_incarnation().unwrap(), Incarnation(2));
    let mut found = (*dir.meta()).clone();
    found.incarnation = written.incarnation;
    assert_eq!(found, *written);
    assert_eq!(found.disk, disk);
    assert!(dir.free_bytes().unwrap() > 0);
}

#[test]
fn a_second_process_is_kept_out_and_told_who_is_in() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    let error = open_dir(scratch.path()).unwrap_err();
    assert!(matches!(error, StorageError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(matches!(NodeDir::set_aside(scratch.path()), Err(StorageError::Locked { .. })));
    let (log, _) = open(&dir).unwrap();
    drop(dir);
    assert!(open_dir(scratch.path()).is_err(), "an open log holds the lock too");
    drop(log);
    open_dir(scratch.path()).unwrap();
}

#[test]
fn another_nodes_folder_is_refused() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    dir.require_cluster(ClusterId([1; 16])).unwrap();
    dir.update(|meta| meta.cluster = Some((ClusterId([1; 16]), Lineage(1)))).unwrap();
    dir.require_cluster(ClusterId([1; 16])).unwrap();
    assert!(matches!(dir.require_cluster(ClusterId([2; 16])), Err(StorageError::NotOurs { .. })));
    drop(dir);
    let error = NodeDir::open(scratch.path(), "b").unwrap_err();
    assert!(matches!(error, StorageError::NotOurs { .. }), "{error}");
}

#[test]
fn a_folder_without_meta_is_blank_only_if_nothing_else_is_there() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    open(&dir).unwrap();
    drop(dir);
    for name in ["meta", "meta.copy"] {
        fs::rename(scratch.path().join(name), scratch.path().join(format!("{name}.new"))).unwrap();
    }
    assert!(is_damaged(&open_dir(scratch.path())));
    fs::remove_dir_all(scratch.path().join("log")).unwrap();
    assert!(open_dir(scratch.path()).unwrap().created(), "a meta that was never renamed was never promised");
}

#[test]
fn a_folder_set_aside_is_blank_and_nothing_is_deleted() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    let disk = dir.meta().disk;
    let (log, _) = open(&dir).unwrap();
    append(&log, records(1, 0..20));
    drop((log, dir));
    let first = NodeDir::set_aside(scratch.path()).unwrap().unwrap();
    assert_eq!(first, scratch.path().join("set-aside-1"));
    assert_eq!(NodeDir::set_aside(scratch.path()).unwrap(), None);
    let dir = open_dir(scratch.path()).unwrap();
    assert!(dir.created());
    assert_ne!(dir.meta().disk, disk);
    drop(dir);
    assert_eq!(NodeDir::set_aside(scratch.path()).unwrap(), Some(scratch.path().join("set-aside-2")));
    let old = open_dir(&first).unwrap();
    assert_eq!(old.meta().disk, disk);
    assert_eq!(read_all(&open(&old).unwrap().0), records(1, 0..20));
}

#[test]
fn everything_is_private_to_its_owner() {
    let scratch = folder();
    let path = scratch.path().join(NODE);
    let dir = open_dir(&path).unwrap();
    dir.modules().unwrap().put(b"module").unwrap();
    open(&dir).unwrap();
    let mut folders = vec![path];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                seen += 1;
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
            }
        }
    }
    assert!(seen >= 5, "lock, meta, a module, the watermark, a segment");
}

#[test]
#[should_panic(expected = "sealed epoch")]
fn a_sealed_epoch_never_goes_back() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    dir.update(|meta| meta.sealed_epoch = Some(Epoch(4))).unwrap();
    let _ = dir.update(|meta| meta.sealed_epoch = Some(Epoch(3)));
}

#[test]
fn a_meta_that_can_not_be_written_fails_for_good() {
    let scratch = folder();
    let path = scratch.path().join(NODE);
    let dir = open_dir(&path).unwrap();
    let before = dir.meta();
    let blocked = path.join("meta.new");
    fs::create_dir(&blocked).unwrap();
    assert!(matches!(dir.update(|meta| meta.mode = Some("chain".into())), Err(StorageError::Io { .. })));
    fs::remove_dir(&blocked).unwrap();
    assert!(matches!(dir.raise_incarnation(), Err(StorageError::Failed { .. })));
    assert_eq!(dir.meta(), before);
}

#[test]
fn modules_are_kept_by_their_hash() {
    let scratch = folder();
    let modules = open_dir(scratch.path()).unwrap().modules().unwrap();
    let one = modules.put(b"one").unwrap();
    let two = modules.put(b"two").unwrap();
    assert_eq!(modules.put(b"one").unwrap(), one);
    let mut both = vec![one, two];
    both.sort();
    assert_eq!(modules.list().unwrap(), both);
    assert_eq!(modules.get(one).unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(modules.bytes(one).unwrap(), Some(3));
    modules.remove(one).unwrap();
    modules.remove(one).unwrap();
    assert_eq!(modules.get(one).unwrap(), None);
    assert_eq!(modules.bytes(one).unwrap(), None);
    assert_eq!(modules.list().unwrap(), [two]);
}

#[test]
fn every_flipped_bit_and_cut_of_a_module_is_found_and_repaired_by_putting_it_again() {
    let scratch = folder();
    let modules = open_dir(scratch.path()).unwrap().modules().unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let hash = modules.put(&bytes).unwrap();
    let path = scratch.path().join(format!("modules/{hash}.wasm"));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        assert!(is_damaged(&modules.get(hash)), "bit {bit}");
    }
    for size in 0..bytes.len() {
        fs::write(&path, &bytes[..size]).unwrap();
        assert!(is_damaged(&modules.get(hash)), "cut at {size}");
    }
    modules.put(&bytes).unwrap();
    assert_eq!(modules.get(hash).unwrap().unwrap(), bytes);
    println!("module: {} flips and {} cuts, all found", bytes.len() * 8, bytes.len());
}

#[test]
fn half_written_modules_are_removed_and_strange_names_refused() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    dir.modules().unwrap();
    let half = scratch.path().join("modules/00.wasm.new");
    fs::write(&half, b"half").unwrap();
    let modules = dir.modules().unwrap();
    assert!(!half.exists());
    fs::write(scratch.path().join("modules/readme"), b"?").unwrap();
    assert!(is_damaged(&modules.list()));
}

#[test]
fn two_logs_live_in_one_folder() {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    let (one, _) = replicator_storage::DiskLog::open(&dir, "log", crate::scratch::small()).unwrap();
    let (two, _) = replicator_storage::DiskLog::open(&dir, "group", crate::scratch::small()).unwrap();
    append(&one, records(1, 0..3));
    append(&two, records(2, 0..5));
    assert_eq!(one.ends().last, Some(records(1, 2..3)[0].position));
    assert_eq!(read_all(&two), records(2, 0..5));
}

#[test]
fn folder_of_something_else_is_refused_and_left_as_it_is() {
    let scratch = folder();
    let path = scratch.path().join("home");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for n in 0..10 {
        fs::write(path.join(format!("letter-{n}")), "dear").unwrap();
    }
    for refused in [NodeDir::open(&path, "n1").map(drop), NodeDir::set_aside(&path).map(drop)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("letter-0, letter-1") && error.to_string().contains("2 more"), "{error}");
    }
    let names = fs::read_dir(&path).unwrap().count();
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!((names, mode), (10, 0o755), "the folder was touched");
    for error in [NodeDir::verify(&path).map(drop), NodeDir::dump(&path, "log", LogIndex(0)).map(drop)] {
        let error = error.unwrap_err();
        assert!(matches!(error, StorageError::NoNode { .. }), "{error}");
    }
}
