//! A disk without room for the next segment, here a limit on the size of files.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, Record, StorageError};
use replicator_types::Position;

use crate::scratch::{LOG, NODE, append, folder, read_all};

const DIR: &str = "REPLICATOR_STORAGE_TEST_FULL";

fn kib(index: u64) -> Record {
    Record { position: Position::new(1, index), payload: vec![index as u8; 1024 - 41].into() }
}

fn open(path: &Path) -> DiskLog {
    let dir = NodeDir::open(path, NODE).unwrap();
    DiskLog::open(&dir, LOG, DiskLogOptions::default()).unwrap().0
}

/// Not a test of its own: what the process with the limit does. The first segment has 1 MiB, and the second one, of 2 MiB, is too large.
#[test]
fn child_fills_its_disk() {
    let Some(path) = env::var_os(DIR) else { return };
    let log = open(&PathBuf::from(path));
    // Beyond the half, so that the segment ahead can't be made, and that is no error yet.
    for index in 0..1000 {
        append(&log, vec![kib(index)]);
    }
    let (done, answers) = mpsc::channel();
    let mut errors = 0;
    for index in 1000..1100 {
        let done = done.clone();
        if log.append(vec![kib(index)], Box::new(move |result| done.send(result).unwrap())).is_err() {
            errors += 1;
            continue;
        }
        match answers.recv().unwrap() {
            Ok(()) => println!("durable {index}"),
            Err(error) => {
                errors += 1;
                let text = error.to_string();
                assert!(matches!(error, StorageError::Failed { .. }), "{text}");
                assert!(text.contains("2097152 bytes"), "the room needed is named: {text}");
            }
        }
    }
    assert!(errors > 50, "{errors}");
    assert!(matches!(log.truncate_after(None), Err(StorageError::Failed { .. })));
    assert_eq!(log.read(replicator_types::LogIndex(0), replicator_types::LogIndex(5), 9999).unwrap().len(), 5);
}

#[test]
fn a_full_disk_is_an_error_only_when_the_room_is_needed_and_nothing_durable_is_lost() {
    let scratch = folder();
    // 1.5 MiB, in blocks of 512 bytes. The signal is ignored, so that a write beyond it is an error.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 3072; exec \"$0\" full::child_fills_its_disk --exact --nocapture --test-threads=1",
        ])
        .arg(env::current_exe().unwrap())
        .env(DIR, scratch.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let durable = text.lines().filter_map(|line| line.split_once("durable ")?.1.parse::<u64>().ok()).max();
    // With room again, it goes on.
    let log = open(scratch.path());
    let found = read_all(&log);
    assert!(found.len() as u64 > durable.unwrap_or(999));
    assert!(found.iter().zip(0..).all(|(found, index)| *found == kib(index)));
    let next = found.len() as u64;
    append(&log, (next..next + 1000).map(kib).collect());
    drop(log);
    assert_eq!(read_all(&open(scratch.path())).len() as u64, next + 1000);
}
