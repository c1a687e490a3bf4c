//! Snapshots written, read, listed, replaced and removed.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use replicator_storage::{
    NodeDir, SnapshotInfo, SnapshotManifest, SnapshotOptions, SnapshotReader, SnapshotStore, StorageError,
};
use replicator_types::{ClusterId, Lineage, ModuleHash, Position};

use crate::scratch::{NODE, folder};

pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const CHUNK: usize = 4096;

pub(crate) fn store(path: &Path) -> SnapshotStore {
    let options = SnapshotOptions { chunk_bytes: CHUNK, spare_bytes: 0 };
    loop {
        match NodeDir::open(path, NODE) {
            // A test beside this one starts a process, and until that is itself it has our files, the dropped lock's too.
            Err(StorageError::Locked { pid, .. }) if pid == Some(std::process::id()) => std::thread::yield_now(),
            opened => return opened.unwrap().snapshots(SNAPSHOTS, options).unwrap(),
        }
    }
}

pub(crate) fn info(index: u64) -> SnapshotInfo {
    SnapshotInfo {
        position: Position::new(3, index),
        lineage: Lineage(4),
        cluster: ClusterId([5; 16]),
        module: ModuleHash([6; 32]),
        engine: "engine 1".into(),
        digest: u128::MAX - 7,
        extra: vec![8, 9],
        created_us: -10,
    }
}

/// Pages that compress and pages that don't, different for each seed.
pub(crate) fn image(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut image = Vec::with_capacity(bytes + 8);
    while image.len() < bytes {
        let text = (image.len() / 1024).is_multiple_of(2);
        let word = if text { u64::from_be_bytes(*b"message ") } else { random() };
        image.extend_from_slice(&word.to_be_bytes());
    }
    image.truncate(bytes);
    image
}

pub(crate) fn write(store: &SnapshotStore, index: u64, image: &[u8]) -> SnapshotManifest {
    let mut writer = store.begin(info(index), image.len() as u64).unwrap();
    for part in image.chunks(1000) {
        writer.write_all(part).unwrap();
    }
    assert_eq!(writer.image_bytes(), image.len() as u64);
    writer.finish().unwrap()
}

pub(crate) fn read(mut reader: SnapshotReader) -> std::io::Result<Vec<u8>> {
    let mut image = Vec::new();
    reader.read_to_end(&mut image).map(|_| image)
}

pub(crate) fn read_at(store: &SnapshotStore, index: u64) -> Vec<u8> {
    read(store.open_image(Position::new(3, index)).unwrap()).unwrap()
}

pub(crate) fn indexes(store: &SnapshotStore) -> Vec<u64> {
    store.list().unwrap().iter().map(|entry| entry.position.index.0).collect()
}

/// The files in the folder of snapshots.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.join(SNAPSHOTS)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The data file of the only snapshot.
pub(crate) fn only_image(path: &Path) -> PathBuf {
    let names = names(path);
    let [name] = &names.iter().filter(|name| name.ends_with(".image")).collect::<Vec<_>>()[..] else {
        panic!("one data file in {names:?}")
    };
    path.join(SNAPSHOTS).join(name)
}

#[test]
fn an_image_of_each_size_is_read_back_and_remembered() {
    let scratch = folder();
    let store = store(scratch.path());
    assert!(store.latest().unwrap().is_none());
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 100_000];
    for (index, bytes) in (0..).zip(sizes) {
        let image = image(index, bytes);
        let manifest = write(&store, index, &image);
        assert_eq!(read_at(&store, index), image, "{bytes} bytes");
        assert_eq!((manifest.image_bytes, &manifest.info), (bytes as u64, &info(index)));
        assert!(manifest.data_bytes < bytes as u64 * 3 / 4 + 200, "{} of {bytes} bytes", manifest.data_bytes);
        assert_eq!(store.latest().unwrap(), Some(manifest));
        store.verify(Position::new(3, index)).unwrap();
    }
    drop(store);
    let store = self::store(scratch.path());
    assert_eq!(indexes(&store), (0..sizes.len() as u64).collect::<Vec<_>>());
    assert_eq!(read_at(&store, 6), image(6, 100_000));
}

#[test]
fn an_image_is_read_from_each_place() {
    let scratch = folder();
    let store = store(scratch.path());
    let image = image(1, 3 * CHUNK + 100);
    let position = write(&store, 1, &image).position();
    for offset in (0..image.len() + 2).step_by(7).chain([CHUNK - 1, CHUNK, CHUNK + 1, image.len()]) {
        let found = read(store.open_image_at(position, offset as u64).unwrap()).unwrap();
        assert!(found == image[offset.min(image.len())..], "from {offset}");
    }
}

#[test]
fn what_is_not_finished_is_gone() {
    let scratch = folder();
    let store = store(scratch.path());
    let mut writer = store.begin(info(1), 10_000).unwrap();
    writer.write_all(&image(1, 10_000)).unwrap();
    assert!(matches!(store.begin(info(1), 0), Err(StorageError::Busy { .. })));
    assert_eq!(indexes(&store), [0; 0]);
    drop(writer);
    assert_eq!(names(scratch.path()), [""; 0]);
    write(&store, 1, b"now");
    assert!(matches!(store.open_image(Position::new(3, 2)), Err(StorageError::NoSnapshot { .. })));
}

#[test]
fn another_image_of_the_same_position_takes_its_place() {
    let scratch = folder();
    let store = store(scratch.path());
    write(&store, 1, b"one");
    write(&store, 2, b"beside it");
    let reader = store.open_image(Position::new(3, 1)).unwrap();
    write(&store, 1, b"other");
    assert_eq!(read_at(&store, 1), b"other");
    assert_eq!(read(reader).unwrap(), b"one", "who reads the old one reads it to its end");
    assert_eq!(names(scratch.path()).len(), 4);
}

#[test]
fn retention_keeps_the_newest_and_those_who_read_or_serve_go_on() {
    let scratch = folder();
    let store = store(scratch.path());
    let images: Vec<_> = (0..5).map(|index| image(index, 30_000)).collect();
    for (index, image) in (0..).zip(&images) {
        write(&store, index, image);
    }
    let mut reader = store.open_image(Position::new(3, 1)).unwrap();
    let mut begun = [0; 5000];
    reader.read_exact(&mut begun).unwrap();
    let served = store.data_file(Position::new(3, 0)).unwrap();
    let file = fs::read(scratch.path().join(SNAPSHOTS).join(&names(scratch.path())[0])).unwrap();
    assert_eq!(store.retain(2).unwrap(), [0, 1, 2].map(|index| Position::new(3, index)));
    assert_eq!(indexes(&store), [3, 4]);
    assert_eq!(names(scratch.path()).len(), 4);
    assert_eq!([&begun[..], &read(reader).unwrap()].concat(), images[1]);
    assert_eq!(served.read_at(0, usize::MAX).unwrap().bytes, file);
    assert_eq!(store.retain(2).unwrap(), []);
    store.remove(Position::new(3, 3)).unwrap();
    store.remove(Position::new(3, 3)).unwrap();
    assert_eq!(indexes(&store), [4]);
}

#[test]
fn a_damaged_manifest_does_not_count_as_kept() {
    let scratch = folder();
    let store = store(scratch.path());
    for index in 0..4 {
        write(&store, index, b"x");
    }
    let manifest = |index: u64| scratch.path().join(format!("{SNAPSHOTS}/{:020}-{index:020}.manifest", 3));
    for index in [0, 3] {
        fs::write(manifest(index), b"damaged").unwrap();
    }
    assert!(matches!(store.latest(), Err(StorageError::DamagedSnapshot { .. })));
    assert_eq!(store.retain(2).unwrap(), [Position::new(3, 0)]);
    assert_eq!(indexes(&store), [1, 2, 3]);
    fs::rename(manifest(2), manifest(9)).unwrap();
    let error = store.verify(Position::new(3, 9)).unwrap_err();
    assert!(matches!(&error, StorageError::DamagedSnapshot { what, .. } if what.contains("2@3")), "{error}");
}

#[test]
fn leftovers_are_removed_and_foreign_files_left_alone() {
    let scratch = folder();
    let first = store(scratch.path());
    write(&first, 1, b"one");
    write(&first, 2, b"two");
    drop(first);
    let dir = scratch.path().join(SNAPSHOTS);
    let stem = |index: u64| format!("{:020}-{index:020}", 3);
    let before = names(scratch.path());
    let leftovers = [
        format!("{}.image.new", stem(7)),
        format!("{}.manifest.new", stem(1)),
        format!("{}.0123456789abcdef.image", stem(7)),
        format!("{}.0123456789abcdef.image", stem(1)),
    ];
    for name in &leftovers {
        fs::write(dir.join(name), b"left over").unwrap();
    }
    for name in ["readme", "1-2.manifest", "x.new"] {
        fs::write(dir.join(name), b"foreign").unwrap();
    }
    fs::create_dir(dir.join("folder")).unwrap();
    let opened = store(scratch.path());
    assert_eq!(indexes(&opened), [1, 2]);
    assert_eq!(read_at(&opened, 1), b"one");
    let mut expected = [before, ["readme", "1-2.manifest", "x.new", "folder"].map(String::from).to_vec()].concat();
    expected.sort();
    assert_eq!(names(scratch.path()), expected);
    drop(opened);
    // Beside a damaged manifest, whatever it may have named stays.
    fs::write(dir.join(format!("{}.manifest", stem(1))), b"damaged").unwrap();
    store(scratch.path());
    assert_eq!(names(scratch.path()), expected);
}

#[test]
fn a_store_is_open_once_and_two_have_folders_of_their_own() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let one = dir.snapshots(SNAPSHOTS, SnapshotOptions::default()).unwrap();
    assert!(matches!(dir.snapshots(SNAPSHOTS, SnapshotOptions::default()), Err(StorageError::Locked { .. })));
    let two = dir.snapshots("configuration-snapshots", SnapshotOptions::default()).unwrap();
    let options = SnapshotOptions { spare_bytes: 0, ..Default::default() };
    drop((one, two));
    let [one, two] = ["snapshots", "configuration-snapshots"].map(|name| dir.snapshots(name, options).unwrap());
    write(&one, 1, b"one");
    write(&two, 1, b"two");
    assert_eq!((read_at(&one, 1), read_at(&two, 1)), (b"one".to_vec(), b"two".to_vec()));
}

#[test]
fn a_snapshot_that_the_disk_has_no_room_for_is_not_begun() {
    let scratch = folder();
    let store = store(scratch.path());
    let manifest = write(&store, 1, b"one");
    let error = store.begin(info(2), 1 << 60).unwrap_err();
    assert!(matches!(error, StorageError::Full { needed, free, .. } if needed == 1 << 60 && free > 0), "{error}");
    let huge = SnapshotManifest { data_bytes: 1 << 60, ..manifest };
    assert!(matches!(store.receive(huge), Err(StorageError::Full { .. })));
    assert_eq!(indexes(&store), [1]);
}
