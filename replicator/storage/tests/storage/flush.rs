//! Who waits for a flush: together, in order, and every one gets an answer.

use std::{
    fs, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
};

use replicator_storage::{DiskLog, DiskLogOptions, FlushCheck, Log, NodeDir, StorageError};
use replicator_types::{LogIndex, Position};
use tempfile::TempDir;

use crate::scratch::{LOG, NODE, append, flush, folder, open, read_all, record, records, small};

fn open_with(flush_check: FlushCheck) -> (TempDir, NodeDir, DiskLog) {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let options = DiskLogOptions { flush_check: Some(flush_check), ..small() };
    let (log, _) = DiskLog::open(&dir, LOG, options).unwrap();
    (scratch, dir, log)
}

/// A check that says when it is there, and waits for a word each time.
fn gate() -> (FlushCheck, mpsc::Sender<io::Result<()>>, Receiver<()>) {
    let (open, wait) = mpsc::channel();
    let (flushing, flushes) = mpsc::channel();
    let wait: Mutex<Receiver<io::Result<()>>> = Mutex::new(wait);
    let check = move || {
        flushing.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap()
    };
    (Arc::new(check), open, flushes)
}

type Answers = Receiver<(u64, Result<(), StorageError>)>;

/// Appends entries one by one, without waiting; each answer comes with the entry's index.
fn append_each(log: &DiskLog, indexes: std::ops::Range<u64>) -> Answers {
    let (done, answers) = mpsc::channel();
    for index in indexes {
        let done = done.clone();
        log.append(vec![record(1, index)], Box::new(move |result| done.send((index, result)).unwrap())).unwrap();
    }
    answers
}

#[test]
fn those_who_come_during_a_flush_share_the_next_one() {
    let (check, open, flushes) = gate();
    let (_scratch, _dir, log) = open_with(check);
    let first = append_each(&log, 0..1);
    flushes.recv().unwrap();
    let answers = append_each(&log, 1..200);
    assert_eq!(log.ends().last, Some(Position::new(1, 199)));
    assert_eq!(log.ends().durable, None);
    open.send(Ok(())).unwrap();
    assert!(first.recv().unwrap().1.is_ok());
    open.send(Ok(())).unwrap();
    let order: Vec<_> = answers.iter().map(|(index, result)| result.map(|()| index).unwrap()).collect();
    assert_eq!(order, (1..200).collect::<Vec<_>>(), "all of them, in order");
    assert_eq!(flushes.try_iter().count(), 1, "one flush for all others");
    assert_eq!(log.ends().durable, Some(Position::new(1, 199)));
}

#[test]
fn a_flush_with_nothing_to_do_answers_without_an_fsync() {
    let flushes = Arc::new(AtomicUsize::new(0));
    let counter = flushes.clone();
    let (_scratch, _dir, log) = open_with(Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    flush(&log);
    append(&log, records(1, 0..3));
    flush(&log);
    flush(&log);
    assert_eq!(flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn after_a_failed_flush_everybody_gets_the_error_for_ever() {
    let (check, open, _flushes) = gate();
    let (_scratch, dir, log) = open_with(check);
    let answers = append_each(&log, 0..50);
    open.send(Err(io::Error::other("a broken disk"))).unwrap();
    let order: Vec<_> = answers
        .iter()
        .map(|(index, result)| {
            let error = result.unwrap_err();
            assert!(matches!(&error, StorageError::Failed { what } if what.contains("a broken disk")), "{error}");
            index
        })
        .collect();
    assert_eq!(order, (0..50).collect::<Vec<_>>());
    let failed = |result| matches!(result, Err(StorageError::Failed { .. }));
    assert!(failed(log.append(vec![record(1, 50)], Box::new(|_| panic!("an error was returned")))));
    assert!(failed(log.flush(Box::new(|_| panic!("an error was returned")))));
    assert!(failed(log.truncate_after(None)));
    assert!(failed(log.purge_through(Position::new(1, 3))));
    assert_eq!(log.ends().durable, None);
    assert_eq!(log.read(LogIndex(3), LogIndex(5), 1000).unwrap(), records(1, 3..5), "reads go on");
    drop(log);
    // Started again: what was written is there or not, and what is there is durable.
    let (log, _) = open_ok(&dir);
    assert!(records(1, 0..50).starts_with(&read_all(&log)));
    assert_eq!(log.ends().durable, log.ends().last);
}

fn open_ok(dir: &NodeDir) -> (DiskLog, replicator_storage::OpenReport) {
    open(dir).unwrap()
}

#[test]
fn a_panic_of_the_writer_is_an_error_for_everybody() {
    let (_scratch, _dir, log) = open_with(Arc::new(|| panic!("a bug")));
    let answers = append_each(&log, 0..1);
    assert!(matches!(answers.recv().unwrap(), (0, Err(StorageError::Failed { .. }))));
    assert!(matches!(log.flush(Box::new(|_| {})), Err(StorageError::Failed { .. })));
}

#[test]
fn a_segment_that_can_not_be_made_fails_the_log() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path().join(NODE), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    fs::rename(scratch.path().join("a/log"), scratch.path().join("a/elsewhere")).unwrap();
    let (done, answers) = mpsc::channel();
    let mut waiting = 0;
    let error = loop {
        let done = done.clone();
        let index = waiting;
        match log.append(vec![record(1, index)], Box::new(move |result| done.send(result).unwrap())) {
            Ok(()) => waiting += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Failed { .. }), "{error}");
    drop(done);
    assert_eq!(answers.iter().count() as u64, waiting, "everybody who was taken got an answer");
}

#[test]
fn one_who_panics_does_not_leave_the_others_waiting() {
    let (check, open, _flushes) = gate();
    let (_scratch, _dir, log) = open_with(check);
    let first = append_each(&log, 0..1);
    log.append(vec![record(1, 1)], Box::new(|_| panic!("a bug"))).unwrap();
    let rest = append_each(&log, 2..5);
    open.send(Ok(())).unwrap();
    open.send(Ok(())).unwrap();
    assert!(first.recv().unwrap().1.is_ok());
    assert!(rest.iter().all(|(_, result)| result.is_err()));
    assert!(log.flush(Box::new(|_| {})).is_err());
}

#[test]
fn the_last_handle_may_be_dropped_by_who_waited() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let log = Arc::new(open(&dir).unwrap().0);
    let (let_go, wait) = mpsc::channel::<()>();
    let (done, answer) = mpsc::channel();
    let handle = log.clone();
    log.append(
        records(1, 0..3),
        Box::new(move |_| {
            wait.recv().unwrap();
            drop(handle);
            done.send(()).unwrap();
        }),
    )
    .unwrap();
    drop(log);
    let_go.send(()).unwrap();
    answer.recv().unwrap();
}

#[test]
fn dropping_a_log_flushes_it_and_answers_everybody() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    let answers = append_each(&log, 0..100);
    log.truncate_after(Some(Position::new(1, 89))).unwrap();
    drop(log);
    assert_eq!(answers.iter().filter(|(_, result)| result.is_ok()).count(), 100);
    let (log, report) = open(&dir).unwrap();
    assert_eq!(report.torn_tail, None);
    assert_eq!(read_all(&log), records(1, 0..90));
}

#[test]
fn many_appenders_and_readers_at_once() {
    let scratch = folder();
    let dir = NodeDir::open(scratch.path(), NODE).unwrap();
    let (log, _) = open(&dir).unwrap();
    let next = Mutex::new(0_u64);
    let answered = Arc::new(AtomicUsize::new(0));
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let answered = answered.clone();
                    let mut next = next.lock().unwrap();
                    let done = move |result: Result<(), _>| {
                        result.unwrap();
                        answered.fetch_add(1, Ordering::SeqCst);
                    };
                    log.append(vec![record(1, *next)], Box::new(done)).unwrap();
                    *next += 1;
                }
            });
        }
        scope.spawn(|| {
            while !finished.load(Ordering::SeqCst) {
                let ends = log.ends();
                assert!(ends.durable <= ends.last);
                let found = read_all(&log);
                assert_eq!(found, records(1, 0..found.len() as u64));
                if found.len() == 2000 {
                    finished.store(true, Ordering::SeqCst);
                }
            }
        });
    });
    flush(&log);
    assert_eq!(answered.load(Ordering::SeqCst), 2000);
}
