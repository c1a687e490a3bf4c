//! A process killed while it appends: everything that it was told was durable is there when the log is opened again.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use replicator_storage::{Log, NodeDir, Record};

use crate::scratch::{NODE, folder, open, read_all, record};

const DIR: &str = "REPLICATOR_STORAGE_TEST_KILL";

/// Not a test of its own: what the killed process does. Appends one by one, and prints each index that is durable.
#[test]
fn child_appends_until_it_is_killed() {
    let Some(path) = env::var_os(DIR) else { return };
    let dir = NodeDir::open(PathBuf::from(path), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    let first = log.ends().last.map_or(0, |last| last.index.0 + 1);
    for index in first.. {
        let done = move |result: Result<(), _>| {
            result.unwrap();
            // One write per line: libtest's capture is off, and a killed process loses what it buffers.
            std::io::stdout().write_all(format!("durable {index}\n").as_bytes()).unwrap();
        };
        log.append(vec![record(1, index)], Box::new(done)).unwrap();
    }
}

#[test]
fn what_was_durable_survives_a_kill() {
    let scratch = folder();
    let mut durable = None;
    let mut records: Vec<Record> = Vec::new();
    for round in 1..=5_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["kill::child_appends_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, scratch.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        for index in lines.filter_map(|line| line.split_once("durable ")?.1.parse::<u64>().ok()) {
            durable = durable.max(Some(index));
            seen += 1;
            if seen == 300 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let dir = NodeDir::open(scratch.path(), NODE).unwrap();
        let (log, report) = open(&dir).unwrap();
        records = read_all(&log);
        println!("round {round}: {durable:?} durable, {} found, {:?}", records.len(), report.torn_tail);
        assert!(records.len() as u64 > durable.unwrap());
    }
    for (index, found) in (0..).zip(&records) {
        assert_eq!(*found, record(1, index));
    }
}
