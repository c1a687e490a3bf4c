//! Appends per second of 128-byte records, with 1, 64 and 1,024 of them in flight. `REPLICATOR_BENCH_DIR` says on which disk.

use std::{
    env,
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, Record};
use replicator_types::Position;

const PAYLOAD: [u8; 128] = [7; 128];
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let place = env::var_os("REPLICATOR_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    for depth in [1, 64, 1024] {
        let scratch = tempfile::tempdir_in(&place).expect("the disk takes a folder");
        let dir = NodeDir::open(scratch.path(), "bench").expect("a new folder opens");
        let (log, _) = DiskLog::open(&dir, "log", DiskLogOptions::default()).expect("a new log opens");
        let (appended, took) = run(&log, depth);
        println!("{depth:>5} in flight: {:>8.0} records/s", appended as f64 / took.as_secs_f64());
        drop(log);
        let begun = Instant::now();
        let (_, report) = DiskLog::open(&dir, "log", DiskLogOptions::default()).expect("the log opens again");
        let (records, mib) = (report.records, report.bytes >> 20);
        println!("                 opened {records} records, {mib} MiB, in {:.2?}", begun.elapsed());
    }
}

/// A closed loop: each answer lets the next record go.
fn run(log: &DiskLog, depth: u64) -> (u64, Duration) {
    let (done, answers) = mpsc::channel();
    let begun = Instant::now();
    let mut appended = 0;
    let mut answered = 0;
    while begun.elapsed() < RUN || answered < appended {
        while begun.elapsed() < RUN && appended - answered < depth {
            let record = Record { position: Position::new(1, appended), payload: PAYLOAD.to_vec().into() };
            let done = done.clone();
            log.append(vec![record], Box::new(move |result| done.send(result).expect("the loop waits")))
                .expect("the log takes records");
            appended += 1;
        }
        answers.recv().expect("every append is answered").expect("and is durable");
        answered += 1;
        while let Ok(answer) = answers.try_recv() {
            answer.expect("every append is durable");
            answered += 1;
        }
    }
    (appended, begun.elapsed())
}
