//! A process killed while it writes snapshots, and a disk that fills meanwhile: what was finished is whole, and nothing else is there.

use std::{
    env, fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use replicator_storage::StorageError;
use replicator_types::Position;

use crate::{
    images::{image, indexes, info, names, read_at, store, write},
    scratch::folder,
};

const KILL: &str = "REPLICATOR_STORAGE_TEST_IMAGE_KILL";
const FULL: &str = "REPLICATOR_STORAGE_TEST_IMAGE_FULL";
const BYTES: usize = 200_000;

/// Not a test of its own: what the killed process does. Writes image after image, keeps two, and prints each that is finished.
#[test]
fn child_writes_images_until_it_is_killed() {
    let Some(path) = env::var_os(KILL) else { return };
    let store = store(&PathBuf::from(path));
    let first = indexes(&store).last().map_or(0, |last| last + 1);
    for index in first.. {
        write(&store, index, &image(index, BYTES));
        std::io::stdout().write_all(format!("finished {index}\n").as_bytes()).unwrap();
        store.retain(2).unwrap();
    }
}

#[test]
fn what_was_finished_survives_a_kill_and_nothing_half_written_does() {
    let scratch = folder();
    let mut finished = None;
    for round in 1..=8 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["image_kill::child_writes_images_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(KILL, scratch.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        for index in lines.filter_map(|line| line.split_once("finished ")?.1.parse::<u64>().ok()) {
            finished = finished.max(Some(index));
            seen += 1;
            if seen == 3 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = store(scratch.path());
        let found = indexes(&store);
        println!("round {round}: {finished:?} finished, {found:?} found");
        assert!(found.last() >= finished.as_ref() && (2..=3).contains(&found.len()), "{found:?}");
        for index in &found {
            assert_eq!(read_at(&store, *index), image(*index, BYTES));
        }
        assert_eq!(names(scratch.path()).len(), 2 * found.len());
    }
}

/// Not a test of its own: what the process with the limit does.
#[test]
fn child_has_no_room_for_its_image() {
    let Some(path) = env::var_os(FULL) else { return };
    let path = PathBuf::from(path);
    let store = store(&path);
    write(&store, 1, &image(1, 300_000));
    let mut writer = store.begin(info(2), 0).unwrap();
    // More than waits in memory to be written.
    let big = image(2, 32 << 20);
    let error = writer.write_all(&big).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let full = error.get_ref().and_then(|error| error.downcast_ref::<StorageError>());
    assert!(matches!(full, Some(StorageError::Full { .. })), "{error}");
    assert!(writer.write_all(&[0; 10_000]).is_err(), "what is missing can't be made up for");
    assert!(writer.finish().is_err());
    assert_eq!((indexes(&store), names(&path).len()), (vec![1], 2));
    assert_eq!(read_at(&store, 1), image(1, 300_000));
    println!("it was full");
}

#[test]
fn a_disk_that_fills_amid_an_image_leaves_the_older_one() {
    let scratch = folder();
    // 0.5 MiB, in blocks of 512 bytes. The signal is ignored, so that a write beyond it is an error.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 1024; exec \"$0\" image_kill::child_has_no_room_for_its_image --exact --nocapture",
        ])
        .arg(env::current_exe().unwrap())
        .env(FULL, scratch.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("it was full"), "{text}");
    let store = store(scratch.path());
    write(&store, 2, &image(2, 3 << 20));
    assert_eq!(read_at(&store, 2), image(2, 3 << 20));
    store.remove(Position::new(3, 1)).unwrap();
    assert_eq!(fs::read_dir(scratch.path().join("snapshots")).unwrap().count(), 2);
}
