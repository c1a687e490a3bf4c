//! Entries per second when a log is opened and read to its end: 2 million of 128 bytes. `REPLICATOR_BENCH_DIR` says on which disk.

use std::{env, path::PathBuf, sync::mpsc, time::Instant};

use replicator_storage::{DiskLog, DiskLogOptions, Log, NodeDir, Record};
use replicator_types::{LogIndex, Position};

const ENTRIES: u64 = 2_000_000;
const BATCH: u64 = 10_000;
/// What a node that replays its log reads at once.
const READ_BYTES: usize = 1 << 20;

fn main() {
    let place = env::var_os("REPLICATOR_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    let scratch = tempfile::tempdir_in(&place).expect("the disk takes a folder");
    let dir = NodeDir::open(scratch.path(), "bench").expect("a new folder opens");
    let (log, _) = DiskLog::open(&dir, "log", DiskLogOptions::default()).expect("a new log opens");
    for from in (0..ENTRIES).step_by(BATCH as usize) {
        let record = |index| Record { position: Position::new(1, index), payload: vec![index as u8; 128].into() };
        log.append((from..from + BATCH).map(record).collect(), Box::new(|_| ())).expect("the log takes records");
    }
    let (done, wait) = mpsc::channel();
    log.flush(Box::new(move |result| done.send(result).expect("somebody waits"))).expect("the log works");
    wait.recv().expect("it is answered").expect("and durable");
    drop(log);
    for _ in 0..5 {
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let (log, _) = DiskLog::open(&dir, "log", DiskLogOptions::default()).expect("the log opens again");
        let opened = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let mut next = LogIndex(0);
        let mut bytes = 0;
        loop {
            let records = log.read(next, LogIndex(u64::MAX), READ_BYTES).expect("the log is whole");
            let Some(last) = records.last() else { break };
            next = last.position.index.next();
            bytes += records.iter().map(|record| record.payload.len()).sum::<usize>();
        }
        assert_eq!((next.0, bytes as u64), (ENTRIES, ENTRIES * 128));
        let all = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!(
            "opened in {:.2} s (CPU {:.2} s), opened and read in {:.2} s (CPU {:.2} s): {:.0} entries/s, {:.0} per CPU second",
            opened.0,
            opened.1,
            all.0,
            all.1,
            ENTRIES as f64 / all.0,
            ENTRIES as f64 / all.1
        );
    }
}

/// What this process has used of the cores.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
