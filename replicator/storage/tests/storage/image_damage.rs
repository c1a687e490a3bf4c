//! Every bit of a snapshot flipped, every cut, files missing: found, with the file, and nothing else is lost.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use replicator_storage::{NodeDir, NodeReport, SnapshotStore, StorageError};
use replicator_types::Position;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    images::{CHUNK, SNAPSHOTS, image, only_image, read, read_at, store, write},
    scratch::folder,
};

const INDEX: u64 = 1;

fn position() -> Position {
    Position::new(3, INDEX)
}

fn manifest_path(path: &Path) -> PathBuf {
    path.join(SNAPSHOTS).join(format!("{:020}-{INDEX:020}.manifest", 3))
}

/// Verifying and reading must both find it; the place that is named is in this file.
fn assert_found(store: &SnapshotStore, path: &Path, what: &str) {
    let verified = store.verify(position());
    let Err(StorageError::DamagedSnapshot { path: named, .. }) = &verified else {
        panic!("{what} of {}: {verified:?}", path.display())
    };
    assert_eq!(named, path, "{what}");
    let read = store.open_image(position()).map_err(std::io::Error::other).and_then(read);
    let error = read.expect_err(what);
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<StorageError>());
    assert!(matches!(inner, Some(StorageError::DamagedSnapshot { .. })), "{what}: {error}");
}

#[test]
fn every_flipped_bit_of_a_snapshot_is_found() {
    let scratch = folder();
    let store = store(scratch.path());
    let image = image(1, 2 * CHUNK + 500);
    write(&store, INDEX, &image);
    let mut flips = 0;
    for path in [only_image(scratch.path()), manifest_path(scratch.path())] {
        let bytes = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let at = bit / 8;
            file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64).unwrap();
            assert_found(&store, &path, &format!("bit {bit}"));
            file.write_all_at(&bytes[at..][..1], at as u64).unwrap();
            flips += 1;
        }
    }
    println!("snapshot: {flips} bits flipped, all found");
    assert_eq!(read_at(&store, INDEX), image);
}

#[test]
fn every_cut_and_growth_of_a_snapshot_is_found() {
    let scratch = folder();
    let store = store(scratch.path());
    write(&store, INDEX, &image(1, 2 * CHUNK + 500));
    let mut cuts = 0;
    for path in [only_image(scratch.path()), manifest_path(scratch.path())] {
        let bytes = fs::read(&path).unwrap();
        for size in 0..bytes.len() {
            fs::write(&path, &bytes[..size]).unwrap();
            assert_found(&store, &path, &format!("cut at {size}"));
            cuts += 1;
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert_found(&store, &path, "a byte too many");
        fs::write(&path, &bytes).unwrap();
    }
    println!("snapshot: {cuts} cuts, all found");
    let path = only_image(scratch.path());
    fs::remove_file(&path).unwrap();
    assert_found(&store, &path, "missing");
}

#[test]
fn what_damage_leaves_whole_is_read_from_there() {
    let scratch = folder();
    let store = store(scratch.path());
    let image = image(1, 4 * CHUNK);
    write(&store, INDEX, &image);
    let path = only_image(scratch.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[32 + 32 + 5] ^= 1; // of the first chunk's bytes
    fs::write(&path, &bytes).unwrap();
    let error = store.verify(position()).unwrap_err();
    assert!(matches!(error, StorageError::DamagedSnapshot { offset: Some(32), .. }), "{error}");
    assert!(error.to_string().contains("from a peer"), "{error}");
    let later = read(store.open_image_at(position(), CHUNK as u64).unwrap()).unwrap();
    assert!(later == image[CHUNK..]);
    // Taken again, it is whole.
    write(&store, INDEX, &image);
    store.verify(position()).unwrap();
}

#[test]
fn a_data_file_of_another_snapshot_is_found() {
    let scratch = folder();
    let store = store(scratch.path());
    write(&store, INDEX, &image(1, 10_000));
    let path = only_image(scratch.path());
    write(&store, 2, &image(1, 10_000));
    let entries = fs::read_dir(scratch.path().join(SNAPSHOTS)).unwrap().map(|entry| entry.unwrap().path());
    let mut images: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "image")).collect();
    images.retain(|image| *image != path);
    // The same image in a file with another tag: only the SHA-256 tells.
    fs::copy(&images[0], &path).unwrap();
    assert_found(&store, &path, "the other's");
}

#[test]
fn another_version_is_refused_by_its_number() {
    let scratch = folder();
    let store = store(scratch.path());
    let mut manifest = write(&store, INDEX, b"image");
    let path = only_image(scratch.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] = 9;
    let hash = xxh3_64(&bytes[..24]);
    bytes[24..32].copy_from_slice(&hash.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    let error = store.verify(position()).unwrap_err();
    assert!(matches!(error, StorageError::Version { .. }), "{error}");
    assert!(error.to_string().contains("snapshot image: format version 9, this program reads 1"), "{error}");
    manifest.data_version = 9;
    assert!(matches!(store.receive(manifest), Err(StorageError::Version { .. })));
}

#[test]
fn a_folder_is_verified_without_its_node_and_nothing_is_changed() {
    let scratch = folder();
    let opened = store(scratch.path());
    write(&opened, INDEX, b"one");
    write(&opened, 2, b"two");
    drop(opened);
    let dir = scratch.path().join(SNAPSHOTS);
    fs::write(dir.join("readme"), b"?").unwrap();
    fs::write(dir.join(format!("{:020}-{:020}.image.new", 3, 7)), b"left over").unwrap();
    let verify = || -> NodeReport { NodeDir::verify(scratch.path()).unwrap() };
    let report = verify();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.snapshots.len(), 1);
    assert_eq!((report.snapshots[0].snapshots.len(), report.snapshots[0].foreign.len()), (2, 1));
    fs::write(manifest_path(scratch.path()), b"damaged").unwrap();
    let report = verify();
    assert_eq!(report.damages().count(), 1, "{report:?}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 6);
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_mended_by_taking_it_again_from_a_peer() {
    let (ours, theirs) = (folder(), folder());
    let (our_store, their_store) = (store(ours.path()), store(theirs.path()));
    let image = image(1, CHUNK + 500);
    write(&their_store, INDEX, &image);
    let data = their_store.data_file(position()).unwrap();
    let take = || {
        let mut receiver = our_store.receive(data.manifest().clone()).unwrap();
        receiver.take(&data.read_at(0, usize::MAX).unwrap()).unwrap();
        receiver.finish().unwrap();
    };
    take();
    let paths = [only_image(ours.path()), manifest_path(ours.path())];
    let whole = [fs::read(only_image(theirs.path())).unwrap(), fs::read(manifest_path(theirs.path())).unwrap()];
    let mut mended = 0;
    for (path, bytes) in paths.iter().zip(&whole) {
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(path, flipped).unwrap();
            assert_found(&our_store, path, &format!("byte {at}"));
            our_store.remove(position()).unwrap();
            take();
            assert!(paths.iter().map(|path| fs::read(path).unwrap()).eq(whole.iter().cloned()), "byte {at}");
            mended += 1;
        }
    }
    println!("snapshot: {mended} bytes flipped, all found, and the same again from a peer");
}
