//! A snapshot on its way from one node to another, cut anywhere.

use std::{fs, os::unix::fs::FileExt};

use bytes::Bytes;
use replicator_storage::{SnapshotManifest, SnapshotPiece, SnapshotStore, StorageError};

use crate::{
    images::{CHUNK, SNAPSHOTS, image, indexes, names, read_at, store, write},
    scratch::folder,
};

/// A snapshot, and the bytes of its data file.
fn sent(bytes: usize) -> (SnapshotManifest, Bytes, Vec<u8>) {
    let scratch = folder();
    let store = store(scratch.path());
    let image = image(5, bytes);
    let manifest = write(&store, 1, &image);
    let data = store.data_file(manifest.position()).unwrap();
    let whole = data.read_at(0, usize::MAX).unwrap();
    assert_eq!(whole.bytes.len() as u64, manifest.data_bytes);
    let parts = (0..manifest.data_bytes).step_by(1000).map(|offset| data.read_at(offset, 1000).unwrap());
    assert_eq!(parts.flat_map(|part| part.bytes).collect::<Vec<_>>(), whole.bytes);
    assert!(data.read_at(manifest.data_bytes + 9, 10).unwrap().bytes.is_empty());
    (manifest, whole.bytes, image)
}

fn piece(data: &Bytes, from: usize, to: usize) -> SnapshotPiece {
    SnapshotPiece::new(from as u64, data.slice(from..to))
}

/// Receives the rest.
fn complete(store: &SnapshotStore, manifest: &SnapshotManifest, data: &Bytes) {
    let mut receiver = store.receive(manifest.clone()).unwrap();
    let from = receiver.resume_at() as usize;
    receiver.take(&piece(data, from, data.len())).unwrap();
    assert_eq!(receiver.finish().unwrap(), *manifest);
}

#[test]
fn a_transfer_cut_at_any_byte_goes_on_after_the_last_whole_chunk() {
    let (manifest, data, image) = sent(130_000);
    assert!(data.len() >= 64 << 10, "{}", data.len());
    let scratch = folder();
    let path = scratch.path().join(SNAPSHOTS).join("receiving.image");
    // Where chunks end: the sizes are in their headers.
    let mut borders = vec![0, 32];
    while let Some(size) = data.get(borders[borders.len() - 1]..).and_then(|rest| rest.first_chunk()) {
        borders.push(borders[borders.len() - 1] + 32 + u32::from_be_bytes(*size) as usize);
    }
    let mut resumed = 0;
    for cut in 0..=data.len() {
        let opened = store(scratch.path());
        let mut receiver = opened.receive(manifest.clone()).unwrap();
        let from = receiver.resume_at() as usize;
        receiver.take(&piece(&data, from, cut)).unwrap();
        drop((receiver, opened));
        let opened = store(scratch.path());
        assert_eq!(indexes(&opened), [0; 0], "nothing is half installed");
        assert_eq!(opened.receiving().as_ref(), Some(&manifest));
        let from = opened.receive(manifest.clone()).unwrap().resume_at() as usize;
        assert_eq!(Some(from), borders.iter().copied().filter(|border| *border <= cut).max(), "cut at {cut}");
        resumed += usize::from(from > 0);
        // Each cut leads to the whole; the file is put back for the next one.
        if cut.is_multiple_of(97) || cut + 40 > data.len() {
            complete(&opened, &manifest, &data);
            assert_eq!(read_at(&opened, 1), image, "cut at {cut}");
            assert_eq!(opened.receiving(), None);
            assert_eq!(names(scratch.path()).len(), 2);
            opened.remove(manifest.position()).unwrap();
            let again = opened.receive(manifest.clone()).unwrap();
            fs::write(&path, &data[..from]).unwrap();
            drop(again);
        }
    }
    println!("transfer of {} bytes cut at each: {resumed} resumed", data.len());
    assert!(resumed > 64 << 10);
}

#[test]
fn pieces_out_of_order_damaged_or_too_many_change_nothing() {
    let (manifest, data, image) = sent(20_000);
    let scratch = folder();
    let store = store(scratch.path());
    let mut receiver = store.receive(manifest.clone()).unwrap();
    assert!(matches!(store.receive(manifest.clone()), Err(StorageError::Busy { .. })));
    receiver.take(&piece(&data, 0, 100)).unwrap();
    for from in [0, 99, 101] {
        let error = receiver.take(&piece(&data, from, 300)).unwrap_err();
        assert!(matches!(error, StorageError::PieceOutOfOrder { wanted: 100, .. }), "{error}");
    }
    for bit in 0..80 {
        let mut bytes = data[100..110].to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = SnapshotPiece { bytes: bytes.into(), ..piece(&data, 100, 110) };
        assert!(matches!(receiver.take(&damaged), Err(StorageError::PieceDamaged { offset: 100 })));
    }
    let beyond = SnapshotPiece::new(100, vec![0; data.len()].into());
    assert!(matches!(receiver.take(&beyond), Err(StorageError::DamagedSnapshot { .. })));
    receiver.take(&piece(&data, 100, data.len() - 1)).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(matches!(error, StorageError::PieceOutOfOrder { wanted, .. } if wanted == manifest.data_bytes - 1));
    assert_eq!(indexes(&store), [0; 0]);
    complete(&store, &manifest, &data);
    assert_eq!(read_at(&store, 1), image);
}

#[test]
fn a_damaged_part_that_came_is_fetched_again() {
    let (manifest, data, image) = sent(30_000);
    let scratch = folder();
    let first = store(scratch.path());
    first.receive(manifest.clone()).unwrap().take(&piece(&data, 0, data.len())).unwrap();
    drop(first);
    // As a power loss leaves what was never fsynced: some of it zeros.
    let path = scratch.path().join(SNAPSHOTS).join("receiving.image");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 512], 2 * CHUNK as u64).unwrap();
    let store = store(scratch.path());
    let from = store.receive(manifest.clone()).unwrap().resume_at();
    assert!(from > 0 && from <= 2 * CHUNK as u64, "{from}");
    complete(&store, &manifest, &data);
    assert_eq!(read_at(&store, 1), image);
}

#[test]
fn a_sender_that_lies_is_found_out_and_the_next_one_begins_anew() {
    let (manifest, data, image) = sent(30_000);
    let scratch = folder();
    let store = store(scratch.path());
    let mut receiver = store.receive(manifest.clone()).unwrap();
    let mut lie = data.to_vec();
    lie[10_000] ^= 1;
    receiver.take(&SnapshotPiece::new(0, lie.into())).unwrap();
    assert!(matches!(receiver.finish(), Err(StorageError::DamagedSnapshot { .. })));
    assert_eq!(names(scratch.path()), [""; 0]);
    assert_eq!(store.receive(manifest.clone()).unwrap().resume_at(), 0);
    complete(&store, &manifest, &data);
    assert_eq!(read_at(&store, 1), image);
}

#[test]
fn a_manifest_of_another_position_replaces_what_came() {
    let (manifest, data, image) = sent(30_000);
    let scratch = folder();
    let store = store(scratch.path());
    store.receive(manifest.clone()).unwrap().take(&piece(&data, 0, 9000)).unwrap();
    let mut other = manifest.clone();
    other.info.position.index.0 += 1;
    assert_eq!(store.receive(other.clone()).unwrap().resume_at(), 0);
    assert_eq!(store.receiving(), Some(other));
    assert_eq!(store.receive(manifest.clone()).unwrap().resume_at(), 0, "and back");
    store.receive(manifest.clone()).unwrap().take(&piece(&data, 0, 9000)).unwrap();
    store.forget_receiving().unwrap();
    assert_eq!(names(scratch.path()), [""; 0]);
    complete(&store, &manifest, &data);
    assert_eq!(read_at(&store, 1), image);
}

#[test]
fn a_crash_amid_the_installing_loses_nothing_that_came() {
    let (manifest, data, image) = sent(30_000);
    let scratch = folder();
    let first = store(scratch.path());
    first.receive(manifest.clone()).unwrap().take(&piece(&data, 0, data.len())).unwrap();
    let dir = scratch.path().join(SNAPSHOTS);
    let receiving = fs::read(dir.join("receiving.manifest")).unwrap();
    complete(&first, &manifest, &data);
    drop(first);
    let [image_name, manifest_name] = &names(scratch.path())[..] else { panic!("{:?}", names(scratch.path())) };
    // The data file has its name, and the manifest isn't written yet.
    fs::write(dir.join("receiving.manifest"), &receiving).unwrap();
    let whole = fs::read(dir.join(manifest_name)).unwrap();
    fs::remove_file(dir.join(manifest_name)).unwrap();
    let opened = store(scratch.path());
    assert_eq!(indexes(&opened), [0; 0]);
    assert_eq!(opened.receive(manifest.clone()).unwrap().resume_at(), manifest.data_bytes);
    opened.receive(manifest.clone()).unwrap().finish().unwrap();
    assert_eq!(read_at(&opened, 1), image);
    drop(opened);
    // Installed, and what was received isn't forgotten yet.
    fs::write(dir.join("receiving.manifest"), &receiving).unwrap();
    let opened = store(scratch.path());
    assert_eq!((opened.receiving(), indexes(&opened)), (None, vec![1]));
    assert_eq!(names(scratch.path()), [image_name.clone(), manifest_name.clone()]);
    assert_eq!(fs::read(dir.join(manifest_name)).unwrap(), whole);
}
