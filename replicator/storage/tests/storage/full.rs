//! A disk without room: the log says so in time, waits, and goes on by itself when there is room again.

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use replicator_storage::{DiskLog, DiskLogOptions, Log, LogRoom, NodeDir, Record, StorageError};
use replicator_types::{LogIndex, Position};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::scratch::{LOG, NODE, append, flush, folder, read_all};

const DIR: &str = "REPLICATOR_STORAGE_TEST_FULL";
const PATIENCE: Duration = Duration::from_secs(60);

fn sized(index: u64, bytes: usize) -> Record {
    Record { position: Position::new(1, index), payload: vec![index as u8; bytes - 41].into() }
}

fn kib(index: u64) -> Record {
    sized(index, 1024)
}

fn open(path: &Path) -> DiskLog {
    let dir = NodeDir::open(path, NODE).unwrap();
    DiskLog::open(&dir, LOG, DiskLogOptions { reserve_bytes: 0, ..Default::default() }).unwrap().0
}

/// Waits until the log's room is so.
fn wait_for(log: &DiskLog, what: &str, so: impl Fn(&LogRoom) -> bool) -> LogRoom {
    let begun = Instant::now();
    loop {
        let room = log.room();
        if so(&room) {
            return room;
        }
        assert!(begun.elapsed() < PATIENCE, "never {what}: {room:?}");
        thread::yield_now();
    }
}

fn append_later(log: &DiskLog, record: Record) -> Receiver<Result<(), StorageError>> {
    let (done, wait) = mpsc::channel();
    log.append(vec![record], Box::new(move |result| done.send(result).unwrap())).unwrap();
    wait
}

/// Not a test of its own: what the process does whose files may have 1.5 MiB.
#[test]
fn child_meets_the_limit_of_its_files() {
    let Some(path) = env::var_os(DIR) else { return };
    let log = open(&PathBuf::from(path));
    // The first segment has 1 MiB; the second one, of 2 MiB, is too large.
    append(&log, (0..500).map(kib).collect());
    assert!(log.room().open);
    append(&log, (500..600).map(kib).collect());
    let room = wait_for(&log, "without room", |room| !room.open);
    assert!(!room.stalled && room.reserved_bytes > 300 << 10, "so much is left for what is in flight: {room:?}");
    // Beyond the reserve, smaller segments do.
    append(&log, (600..1500).map(kib).collect());
    assert!(!log.room().open);
    // A record that no segment may hold.
    let waiting = append_later(&log, sized(1500, 2 << 20));
    let after = append_later(&log, kib(1501));
    wait_for(&log, "stalled", |room| room.stalled && !room.open);
    assert_eq!(read_all(&log).len(), 1502, "reads go on");
    assert_eq!(log.ends().durable.map(|durable| durable.index.0), Some(1499));
    assert!(waiting.try_recv().is_err() && after.try_recv().is_err(), "nobody was told");
    let unlimited = Rlimit { current: getrlimit(Resource::Fsize).maximum, maximum: getrlimit(Resource::Fsize).maximum };
    setrlimit(Resource::Fsize, unlimited).unwrap();
    for wait in [waiting, after] {
        wait.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    let room = wait_for(&log, "with room again", |room| room.open);
    assert!(!room.stalled);
    append(&log, (1502..4000).map(kib).collect());
    println!("it went on");
}

/// Not a test of its own: what the process does that is closed while it waits.
#[test]
fn child_is_closed_while_it_waits() {
    let Some(path) = env::var_os(DIR) else { return };
    let log = open(&PathBuf::from(path));
    append(&log, (0..600).map(kib).collect());
    let waiting = append_later(&log, sized(600, 2 << 20));
    wait_for(&log, "stalled", |room| room.stalled);
    // What waits in memory is bounded, and beyond it appends are refused and nothing fails.
    let mut next = 601;
    let error = loop {
        match log.append(vec![sized(next, 8 << 20)], Box::new(|_| ())) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    assert!((8..10).contains(&(next - 601)), "64 MiB: {next}");
    drop(log);
    let error = waiting.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, StorageError::Failed { .. }) && error.to_string().contains("room"), "{error}");
    println!("it was closed");
}

/// Not a test of its own: what the process does whose modules are too large for its disk.
#[test]
fn child_has_no_room_for_a_module() {
    let Some(path) = env::var_os(DIR) else { return };
    let path = PathBuf::from(path);
    let modules = NodeDir::open(&path, NODE).unwrap().modules().unwrap();
    let large = vec![7; 2 << 20];
    let error = modules.put(&large).unwrap_err();
    assert!(matches!(error, StorageError::Full { needed: 2_097_152, .. }) && !error.is_failed_fsync(), "{error}");
    assert_eq!(fs::read_dir(path.join("modules")).unwrap().count(), 0, "what was written takes no room");
    let small = modules.put(b"small").unwrap();
    assert_eq!(modules.list().unwrap(), [small]);
    println!("it goes on without it");
}

/// Runs a test above with files of 1.5 MiB at most.
fn limited(path: &Path, test: &str) -> String {
    // In blocks of 512 bytes. The signal is ignored, so that a write beyond the limit is an error.
    let script = format!("trap '' XFSZ; ulimit -S -f 3072; exec \"$0\" full::{test} --exact --nocapture");
    let output =
        Command::new("sh").args(["-c", &script]).arg(env::current_exe().unwrap()).env(DIR, path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn module_without_room_is_refused_and_leaves_nothing_behind() {
    let folder = folder();
    assert!(limited(folder.path(), "child_has_no_room_for_a_module").contains("it goes on without it"));
}

#[test]
fn a_log_without_room_waits_and_goes_on_when_there_is_some() {
    let scratch = folder();
    let text = limited(scratch.path(), "child_meets_the_limit_of_its_files");
    assert!(text.contains("it went on"), "{text}");
    let log = open(scratch.path());
    let found = read_all(&log);
    assert_eq!(found.len(), 4000);
    assert!(found.iter().zip(0..).all(|(found, index)| index == 1500 || *found == kib(index)));
}

#[test]
fn a_log_that_is_closed_while_it_waits_lost_nothing_that_was_durable() {
    let scratch = folder();
    let text = limited(scratch.path(), "child_is_closed_while_it_waits");
    assert!(text.contains("it was closed"), "{text}");
    let log = open(scratch.path());
    assert_eq!(read_all(&log), (0..600).map(kib).collect::<Vec<_>>());
    append(&log, (600..3000).map(kib).collect());
}

/// A disk in memory of so many MiB; `None`, and it says so, where none can be made.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let scratch = folder();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(scratch.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(scratch));
        }
        println!("SKIPPED: only root can mount a small disk");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_small_disk_is_filled_and_emptied_and_nothing_is_lost() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let path = disk.0.path().to_owned();
    let dir = NodeDir::open(path.join(NODE), NODE).unwrap();
    let options = || DiskLogOptions {
        segment_bytes_max: 1 << 20,
        reserve_bytes: 3 << 20,
        cache_bytes_max: 0,
        ..Default::default()
    };
    let (log, _) = DiskLog::open(&dir, LOG, options()).unwrap();
    fs::write(path.join("other"), vec![1; 6 << 20]).unwrap();
    let mut next = 0;
    let mut entry = || {
        next += 1;
        sized(next - 1, 64 << 10)
    };
    while log.room().open {
        append(&log, vec![entry()]);
    }
    // What was in flight when it closed: two thirds of the reserve, as segments have headers and ends that no entry fits in.
    for _ in 0..32 {
        append(&log, vec![entry()]);
    }
    let mut hog = File::create(path.join("hog")).unwrap();
    while hog.write_all(&[1; 4096]).is_ok() {}
    let waiting: Vec<_> = (0..48).map(|_| append_later(&log, entry())).collect();
    wait_for(&log, "stalled", |room| room.stalled && !room.open);
    let so_far = log.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX).unwrap();
    assert!(so_far.iter().zip(0..).all(|(found, index)| *found == sized(index, 64 << 10)));
    drop(hog);
    fs::remove_file(path.join("hog")).unwrap();
    fs::remove_file(path.join("other")).unwrap();
    for wait in waiting {
        wait.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    // The log's own room comes back with a purge.
    let last = log.ends().last.unwrap();
    log.purge_through(Position::new(1, last.index.0 - 16)).unwrap();
    flush(&log);
    wait_for(&log, "open after a purge", |room| room.open);
    for _ in 0..16 {
        append(&log, vec![entry()]);
    }
    drop(log);
    let (log, report) = DiskLog::open(&dir, LOG, options()).unwrap();
    assert_eq!((read_all(&log).len(), report.torn_tail), (32, None));
}

#[test]
fn a_start_is_made_durable_on_a_full_disk_in_the_room_that_was_kept() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let path = disk.0.path().to_owned();
    let dir = NodeDir::open(path.join(NODE), NODE).unwrap();
    dir.keep_spare_room().unwrap();
    let mut hog = File::create(path.join("hog")).unwrap();
    while hog.write_all(&[1; 4096]).is_ok() {}
    for start in 1..=100 {
        assert_eq!(dir.raise_incarnation().unwrap().0, start);
    }
    drop(dir);
    let dir = NodeDir::open(path.join(NODE), NODE).unwrap();
    assert_eq!(dir.meta().incarnation.0, 100);
    // What was given up is kept again when there is room, and only then.
    dir.keep_spare_room().unwrap();
    while hog.write_all(&[1; 4096]).is_ok() {}
    let error = dir.raise_incarnation().unwrap_err();
    assert!(matches!(&error, StorageError::Full { .. } | StorageError::Io { .. }), "{error}");
    drop(dir);
    drop(hog);
    fs::remove_file(path.join("hog")).unwrap();
    let dir = NodeDir::open(path.join(NODE), NODE).unwrap();
    assert_eq!(dir.raise_incarnation().unwrap().0, 101);
    dir.keep_spare_room().unwrap();
    assert_eq!(fs::metadata(path.join(NODE).join("spare")).unwrap().len(), 256 << 10);
}
