//! The two files of `meta`: one makes up for the other, and an update is in both before it returns.

use std::{
    fs,
    path::{Path, PathBuf},
};

use replicator_storage::{Meta, NodeDir, NodeReport, StorageError};
use replicator_types::Incarnation;
use tempfile::TempDir;

use crate::scratch::{NODE, folder, is_damaged};

const NAMES: [&str; 2] = ["meta", "meta.copy"];

fn open_dir(path: &Path) -> Result<NodeDir, StorageError> {
    loop {
        match NodeDir::open(path, NODE) {
            // A test beside this one starts a process, and until that is itself it has our files, the dropped lock's too.
            Err(StorageError::Locked { pid, .. }) if pid == Some(std::process::id()) => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

fn verify(path: &Path) -> NodeReport {
    loop {
        match NodeDir::verify(path) {
            Err(StorageError::Locked { pid, .. }) if pid == Some(std::process::id()) => std::thread::yield_now(),
            report => return report.unwrap(),
        }
    }
}

/// A closed folder with a vote, and both files.
fn closed() -> (TempDir, [PathBuf; 2], Meta) {
    let scratch = folder();
    let dir = open_dir(scratch.path()).unwrap();
    dir.update(|meta| meta.vote = Some(vec![7; 40])).unwrap();
    let meta = (*dir.meta()).clone();
    drop(dir);
    let paths = NAMES.map(|name| scratch.path().join(name));
    (scratch, paths, meta)
}

/// The folder opens with this meta, has mended so many files, and has two whole ones again.
fn heals(path: &Path, meta: &Meta, mended: usize, what: &str) {
    let verified = verify(path);
    assert_eq!(verified.damages().count(), mended, "{what}: {verified:?}");
    let dir = open_dir(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(*dir.meta(), *meta, "{what}");
    assert_eq!(dir.mended().len(), mended, "{what}");
    drop(dir);
    assert!(verify(path).is_whole(), "{what}");
    let [one, other] = NAMES.map(|name| fs::read(path.join(name)).unwrap());
    assert!(one == other, "{what}");
}

#[test]
fn every_flipped_bit_and_cut_of_one_meta_is_mended_from_the_other() {
    let (scratch, paths, meta) = closed();
    let (mut flips, mut cuts) = (0, 0);
    for path in &paths {
        for at in 0..fs::read(path).unwrap().len() {
            let mut flipped = fs::read(path).unwrap();
            flipped[at] ^= 1 << (at % 8);
            fs::write(path, flipped).unwrap();
            heals(scratch.path(), &meta, 1, &format!("byte {at} of {}", path.display()));
            flips += 1;
            let whole = fs::read(path).unwrap();
            fs::write(path, &whole[..at]).unwrap();
            heals(scratch.path(), &meta, 1, &format!("{} cut at {at}", path.display()));
            cuts += 1;
        }
        fs::remove_file(path).unwrap();
        heals(scratch.path(), &meta, 1, "one is missing");
        fs::write(path, [&fs::read(path).unwrap()[..], &[0]].concat()).unwrap();
        heals(scratch.path(), &meta, 1, "a byte too many");
    }
    println!("meta: {flips} flips and {cuts} cuts, all found and mended");
    let verified = verify(scratch.path());
    assert_eq!(verified.repairs.len(), 100, "the last hundred are told of");
    assert!(verified.repairs[99].contains("meta.copy") && verified.repairs[99].contains("written again"));
    let flipped_at = 17;
    let mut flipped = fs::read(&paths[0]).unwrap();
    flipped[flipped_at] ^= 1;
    fs::write(&paths[0], flipped).unwrap();
    let verified = verify(scratch.path());
    let named = verified.damages().next();
    assert!(matches!(named, Some(StorageError::Damaged { offset: Some(17), .. })), "{named:?}");
}

#[test]
fn two_damaged_metas_are_refused() {
    let (scratch, paths, _) = closed();
    let whole = fs::read(&paths[0]).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        paths.iter().for_each(|path| fs::write(path, &flipped).unwrap());
        let opened = open_dir(scratch.path());
        assert!(is_damaged(&opened), "bit {bit}");
        assert_eq!(fs::read(&paths[0]).unwrap(), flipped, "what is refused is left as it is");
    }
    fs::remove_file(&paths[0]).unwrap();
    assert!(is_damaged(&open_dir(scratch.path())), "one damaged, one missing");
}

#[test]
fn an_interrupted_update_is_in_both_files_or_in_none() {
    let (scratch, paths, before) = closed();
    let old = fs::read(&paths[0]).unwrap();
    let dir = open_dir(scratch.path()).unwrap();
    dir.raise_incarnation().unwrap();
    let after = (*dir.meta()).clone();
    drop(dir);
    let new = fs::read(&paths[0]).unwrap();
    for one in [0, 1] {
        fs::write(&paths[one], &old).unwrap();
        fs::write(&paths[1 - one], &new).unwrap();
        heals(scratch.path(), &after, 0, "one has it");
        // And the one that doesn't is damaged: what was never promised may be there or not.
        fs::write(&paths[one], &old).unwrap();
        fs::write(&paths[1 - one], b"damaged").unwrap();
        heals(scratch.path(), &before, 1, "the one that has it is damaged");
    }
}

#[test]
fn an_older_copy_of_one_meta_is_found_and_replaced() {
    let (scratch, paths, _) = closed();
    let old = fs::read(&paths[0]).unwrap();
    let dir = open_dir(scratch.path()).unwrap();
    for _ in 0..3 {
        dir.raise_incarnation().unwrap();
    }
    let after = (*dir.meta()).clone();
    assert_eq!(after.incarnation, Incarnation(3));
    drop(dir);
    for path in &paths {
        fs::write(path, &old).unwrap();
        heals(scratch.path(), &after, 1, "an older copy");
    }
}

#[test]
fn a_meta_of_another_disk_beside_ours_is_refused() {
    let (ours, paths, _) = closed();
    let (_theirs, their_paths, _) = closed();
    for one in [0, 1] {
        let whole = fs::read(&paths[one]).unwrap();
        fs::copy(&their_paths[one], &paths[one]).unwrap();
        let error = open_dir(ours.path()).unwrap_err();
        assert!(matches!(&error, StorageError::Damaged { what, .. } if what.contains("contradict")), "{error}");
        fs::write(&paths[one], whole).unwrap();
    }
}
