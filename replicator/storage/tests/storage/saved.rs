//! Snapshots saved in one file: every flipped bit, cut and addition found with its place; written whole or not at all.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use replicator_storage::{
    NodeDir, SavedHead, SavedOrigin, SavedSnapshot, SavedSource, SavedWriter, SnapshotInfo, SnapshotPiece, StorageError,
};
use replicator_types::{LogIndex, ModuleHash};
use sha2::{Digest, Sha256};

use crate::{
    images::{CHUNK, image, info, read, store},
    scratch::{NODE, folder},
};

const MODULE: &[u8] = b"a module of some bytes";
const BYTES: usize = 2 * CHUNK + 500;

/// A folder with images of 1 and 2, and their module.
fn saved_from(path: &Path) {
    let store = store(path);
    for index in [1, 2] {
        let info = SnapshotInfo { module: ModuleHash(Sha256::digest(MODULE).into()), ..info(index) };
        let mut writer = store.begin(info, 0).unwrap();
        std::io::Write::write_all(&mut writer, &image(index, BYTES)).unwrap();
        writer.finish().unwrap();
    }
    drop(store);
    let dir = NodeDir::open(path, NODE).unwrap();
    dir.modules().unwrap().put(MODULE).unwrap();
}

fn source(path: &Path, index: Option<u64>) -> Result<Option<SavedSource>, StorageError> {
    NodeDir::saved(path, index.map(LogIndex), "0.0.1", 77)
}

/// Copies all of the source, in pieces of up to so many bytes.
fn write(source: &SavedSource, to: &Path, piece: usize, replace: bool) -> Result<SavedHead, StorageError> {
    let mut writer = SavedWriter::begin(to, replace)?;
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), piece)?)?;
    }
    writer.finish()
}

/// A saved snapshot, alone in its folder.
fn saved() -> (tempfile::TempDir, PathBuf) {
    let (node, scratch) = (folder(), folder());
    saved_from(node.path());
    let path = scratch.path().join("saved");
    write(&source(node.path(), None).unwrap().unwrap(), &path, 1 << 20, false).unwrap();
    (scratch, path)
}

fn refusal(path: &Path) -> Option<StorageError> {
    SavedSnapshot::open(path).and_then(|saved| saved.verify()).err()
}

#[test]
fn saved_snapshot_is_read_back_as_it_was_whatever_the_pieces() {
    let (node, scratch) = (folder(), folder());
    saved_from(node.path());
    let newest = source(node.path(), None).unwrap().unwrap();
    assert_eq!(newest.manifest().position().index, LogIndex(2));
    let path = scratch.path().join("saved");
    let head = write(&newest, &path, 1 << 20, false).unwrap();
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, newest.bytes());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "others can read it");
    for piece in [1, 7, CHUNK, whole.len() - 1] {
        write(&newest, &path, piece, true).unwrap();
        assert!(fs::read(&path).unwrap() == whole, "in pieces of {piece}");
    }
    assert!(source(node.path(), Some(3)).unwrap().is_none());
    let older = source(node.path(), Some(1)).unwrap().unwrap();
    assert_eq!(older.manifest().position().index, LogIndex(1));

    let saved = SavedSnapshot::open(&path).unwrap();
    saved.verify().unwrap();
    assert_eq!(saved.head(), &head);
    let origin = SavedOrigin { node: NODE.into(), mode: String::new(), program: "0.0.1".into(), saved_us: 77 };
    assert_eq!((&head.origin, head.modules.len()), (&origin, 1));
    assert_eq!(saved.modules().unwrap(), [Bytes::from_static(MODULE)]);
    assert!(read(saved.image().unwrap()).unwrap() == image(2, BYTES));
    // A store takes it as a peer's, under other facts.
    let other = folder();
    let store = store(other.path());
    let mut manifest = head.manifest.clone();
    manifest.info.cluster.0 = [9; 16];
    let mut receiver = store.receive(manifest.clone()).unwrap();
    receiver.take(&saved.data_file().unwrap().read_at(0, usize::MAX).unwrap()).unwrap();
    assert_eq!(receiver.finish().unwrap(), manifest);
    store.verify(manifest.position()).unwrap();
}

#[test]
fn layout_is_the_documented_one() {
    let (_scratch, path) = saved();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[..8], *b"RPLSAVE\n");
    let body = u32::from_be_bytes(*bytes[8..].first_chunk().unwrap()) as usize;
    assert_eq!(bytes[12], 1, "the version");
    let seal = Sha256::digest(&bytes[..12 + body]);
    assert_eq!(bytes[12 + body..][..32], seal[..]);
    let modules_at = 12 + body + 32;
    assert_eq!(&bytes[modules_at..][..MODULE.len()], MODULE);
    assert_eq!(bytes[modules_at + MODULE.len()..][..8], *b"RPLIMAG\x01");
}

#[test]
fn every_flipped_bit_of_a_saved_snapshot_is_found_near_its_place() {
    let (_scratch, path) = saved();
    let bytes = fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let head = 12 + u32::from_be_bytes(*bytes[8..].first_chunk().unwrap()) as usize + 32;
    let data = head + MODULE.len();
    for bit in 0..bytes.len() * 8 {
        let at = bit / 8;
        file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64).unwrap();
        let refused = refusal(&path).unwrap_or_else(|| panic!("bit {bit} was taken"));
        let StorageError::DamagedSave { path: named, offset: Some(offset), .. } = &refused else {
            panic!("bit {bit}: {refused:?}")
        };
        assert_eq!(*named, path);
        // The part that it is in: the head as a whole, the module, a chunk. A damaged length may make the file seem cut.
        let offset = usize::try_from(*offset).unwrap();
        let near = match at {
            8..12 => true,
            _ if at < head => offset == 0,
            _ if at < data => offset == head,
            _ => offset >= data && offset <= at && at - offset < CHUNK + 64,
        };
        assert!(near, "bit {bit} of byte {at} is found at {offset}");
        file.write_all_at(&bytes[at..][..1], at as u64).unwrap();
    }
    assert!(refusal(&path).is_none());
    println!("saved snapshot: {} bits flipped, all found", bytes.len() * 8);
}

#[test]
fn every_cut_and_growth_of_a_saved_snapshot_is_found_where_it_ends() {
    let (_scratch, path) = saved();
    let bytes = fs::read(&path).unwrap();
    for size in 0..bytes.len() {
        fs::write(&path, &bytes[..size]).unwrap();
        let refused = refusal(&path);
        assert!(
            matches!(refused, Some(StorageError::DamagedSave { offset: Some(offset), .. }) if offset == size as u64),
            "cut at {size}: {refused:?}"
        );
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    let refused = refusal(&path).unwrap();
    assert!(
        matches!(refused, StorageError::DamagedSave { offset: Some(at), .. } if at == bytes.len() as u64),
        "{refused}"
    );
    println!("saved snapshot: {} cuts, all found", bytes.len());
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    let (scratch, path) = saved();
    let other = scratch.path().join("other");
    fs::write(&other, MODULE).unwrap();
    let refused = refusal(&other).unwrap().to_string();
    assert!(refused.contains("no saved snapshot") && refused.contains("byte 0"), "{refused}");
    assert!(refusal(scratch.path()).unwrap().to_string().contains("no file"));
    let mut bytes = fs::read(&path).unwrap();
    let seal = 12 + u32::from_be_bytes(*bytes[8..].first_chunk().unwrap()) as usize;
    bytes[12] = 9;
    let sealed = Sha256::digest(&bytes[..seal]);
    bytes[seal..seal + 32].copy_from_slice(&sealed);
    fs::write(&path, bytes).unwrap();
    let refused = refusal(&path).unwrap();
    assert!(matches!(refused, StorageError::Version { .. }), "{refused}");
    assert!(refused.to_string().contains("saved snapshot: format version 9, this program reads 1"), "{refused}");
}

#[test]
fn file_that_is_there_stays_unless_it_may_be_replaced_and_nothing_half_written_does() {
    let (node, scratch) = (folder(), folder());
    saved_from(node.path());
    let source = source(node.path(), None).unwrap().unwrap();
    let path = scratch.path().join("saved");
    let names = || fs::read_dir(scratch.path()).unwrap().count();
    fs::write(&path, b"precious").unwrap();
    assert!(matches!(SavedWriter::begin(&path, false), Err(StorageError::Exists { .. })));
    // Begun before somebody else made it.
    fs::remove_file(&path).unwrap();
    let mut writer = SavedWriter::begin(&path, false).unwrap();
    writer.take(&source.read_at(0, usize::MAX).unwrap()).unwrap();
    let refused = writer.take(&source.read_at(0, 1).unwrap()).unwrap_err();
    assert!(matches!(refused, StorageError::PieceOutOfOrder { offset: 0, .. }), "{refused}");
    let next = source.read_at(writer.written(), 10).unwrap();
    let damaged = SnapshotPiece { checksum: next.checksum ^ 1, ..next };
    assert!(matches!(writer.take(&damaged), Err(StorageError::PieceDamaged { .. })));
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), usize::MAX).unwrap()).unwrap();
    }
    fs::write(&path, b"precious").unwrap();
    assert!(matches!(writer.finish(), Err(StorageError::Exists { .. })));
    assert_eq!((fs::read(&path).unwrap(), names()), (b"precious".to_vec(), 1));
    // Cut off, it is no snapshot, and leaves what was there.
    let mut writer = SavedWriter::begin(&path, true).unwrap();
    writer.take(&source.read_at(0, usize::MAX).unwrap()).unwrap();
    let refused = writer.finish().unwrap_err();
    assert!(matches!(refused, StorageError::DamagedSave { .. }), "{refused}");
    assert_eq!((fs::read(&path).unwrap(), names()), (b"precious".to_vec(), 1));
    write(&source, &path, 1 << 20, true).unwrap();
    assert_eq!((refusal(&path).is_none(), names()), (true, 1));
}

#[test]
fn damaged_running_and_moduleless_folders_are_not_saved() {
    let node = folder();
    saved_from(node.path());
    let held = source(node.path(), None).unwrap().unwrap();
    assert!(matches!(NodeDir::open(node.path(), NODE), Err(StorageError::Locked { .. })), "a node could start there");
    drop(held);
    let dir = loop {
        match NodeDir::open(node.path(), NODE) {
            Err(StorageError::Locked { pid, .. }) if pid == Some(std::process::id()) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    assert!(matches!(source(node.path(), None), Err(StorageError::Locked { .. })));
    let modules = dir.modules().unwrap();
    modules.remove(ModuleHash(Sha256::digest(MODULE).into())).unwrap();
    drop((modules, dir));
    assert!(matches!(source(node.path(), None), Err(StorageError::NoModule { .. })));
    let images = fs::read_dir(node.path().join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let mut images: Vec<_> = images.filter(|path| path.extension().is_some_and(|ending| ending == "image")).collect();
    images.sort();
    fs::write(images.last().unwrap(), b"damaged").unwrap();
    assert!(matches!(source(node.path(), None), Err(StorageError::DamagedSnapshot { .. })));
    assert!(matches!(source(folder().path(), None), Err(StorageError::NoNode { .. })));
}

#[test]
fn folder_of_a_restore_is_made_once_of_nothing_and_is_no_nodes_until_that_ends() {
    let scratch = folder();
    let path = scratch.path().join("new/node");
    let open = |plan: &[u8]| NodeDir::open_for_restore(&path, NODE, |_| plan.to_vec());
    let dir = open(b"first").unwrap();
    assert!(dir.created() && dir.meta().recovery.as_deref() == Some(b"first"));
    let disk = dir.meta().disk;
    drop(dir);
    let refused = loop {
        match NodeDir::open(&path, NODE).unwrap_err() {
            StorageError::Locked { .. } => std::thread::yield_now(),
            refused => break refused,
        }
    };
    assert!(matches!(refused, StorageError::Recovering { .. }), "{refused}");
    assert!(refused.to_string().contains("snapshot restore"), "{refused}");
    let dir = open(b"second").unwrap();
    assert_eq!((dir.created(), dir.meta().recovery.as_deref(), dir.meta().disk), (false, Some(&b"first"[..]), disk));
    dir.update(|meta| {
        meta.recovery = None;
        meta.disk.0 ^= 1;
        meta.cluster = Some(Default::default());
    })
    .unwrap();
    drop(dir);
    let refused = open(b"third").unwrap_err();
    assert!(matches!(&refused, StorageError::NotEmpty { what, .. } if what.contains(NODE)), "{refused}");
    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("letter"), b"").unwrap();
    let refused = NodeDir::open_for_restore(&other, NODE, |_| Vec::new()).unwrap_err();
    assert!(matches!(&refused, StorageError::NotEmpty { what, .. } if what == "letter"), "{refused}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "a refusal left something");
}
