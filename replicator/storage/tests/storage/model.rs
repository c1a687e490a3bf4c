//! The log against the plainest model of one, a vector, with small segments so that everything crosses their borders.

use std::{env, fs, io, os::unix::fs::FileExt, path::Path};

use proptest::prelude::*;
use replicator_storage::{DiskLog, Log, NodeDir, Record, StorageError};
use replicator_types::{Epoch, LogIndex, Position};

use crate::scratch::{BLOCK, Files, LOG, NODE, append, flush, folder, open, read_all, restore};

#[derive(Debug, Clone)]
enum Step {
    /// So many records of so many bytes; whether in a new epoch, and whether to wait.
    Append {
        count: u64,
        size: usize,
        new_epoch: bool,
        wait: bool,
    },
    /// Cut off after this share (of 255) of the log.
    Truncate {
        share: u8,
    },
    /// Cut off before this share of the log.
    Purge {
        share: u8,
    },
    /// An image this far beyond the end, or over another history.
    Install {
        beyond: u64,
        share: Option<u8>,
    },
    Flush,
    Reopen,
    /// The process is killed now, and what it leaves is opened elsewhere.
    Kill,
    /// Reads a share of the log, up to so many bytes.
    Read {
        from: u8,
        to: u8,
        bytes_max: usize,
    },
    /// What must be refused.
    Misfit {
        gap: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..8_u64, 0..256_usize, any::<bool>(), any::<bool>())
            .prop_map(|(count, size, new_epoch, wait)| Step::Append { count, size, new_epoch, wait }),
        2 => any::<u8>().prop_map(|share| Step::Truncate { share }),
        1 => any::<u8>().prop_map(|share| Step::Purge { share }),
        1 => (0..5_u64, any::<Option<u8>>()).prop_map(|(beyond, share)| Step::Install { beyond, share }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        2 => Just(Step::Kill),
        2 => (any::<u8>(), any::<u8>(), 0..2000_usize).prop_map(|(from, to, bytes_max)| Step::Read { from, to, bytes_max }),
        1 => (1..3_u64).prop_map(|gap| Step::Misfit { gap }),
    ]
}

#[derive(Debug, Default)]
struct Model {
    purged: Option<Position>,
    records: Vec<Record>,
    epoch: u64,
    filled: u8,
    /// What the log held since it was last known to be durable, one change after the other.
    since: Vec<State>,
}

/// What a log holds.
type State = (Option<Position>, Vec<Record>);

impl Model {
    fn changed(&mut self) {
        self.since.push((self.purged, self.records.clone()));
    }

    fn durable(&mut self) {
        self.since.clear();
        self.changed();
    }

    /// Whether a killed process may have left this: a state since the last durable one, or part of the append after it.
    fn may_have_been(&self, found: &State) -> bool {
        self.since.contains(found)
            || self.since.windows(2).any(|pair| {
                let [before, after] = pair else { return false };
                let part = before.0 == found.0 && after.0 == found.0;
                part && found.1.starts_with(&before.1) && after.1.starts_with(&found.1)
            })
    }

    fn last(&self) -> Option<Position> {
        self.records.last().map_or(self.purged, |record| Some(record.position))
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index.0 + 1)
    }

    /// The position before so many of the records: the purged end before none.
    fn position(&self, kept: usize) -> Option<Position> {
        kept.checked_sub(1).map_or(self.purged, |i| Some(self.records[i].position))
    }

    fn share(&self, share: u8) -> usize {
        self.records.len() * usize::from(share) / 255
    }

    fn new_records(&mut self, count: u64, size: usize) -> Vec<Record> {
        (self.next()..self.next() + count)
            .map(|index| {
                self.filled = self.filled.wrapping_add(1);
                Record { position: Position::new(self.epoch, index), payload: vec![self.filled; size].into() }
            })
            .collect()
    }
}

fn check(log: &DiskLog, model: &Model) {
    let ends = log.ends();
    assert_eq!((ends.purged, ends.last), (model.purged, model.last()));
    assert!(ends.durable.map(|durable| durable.index) <= ends.last.map(|last| last.index), "{ends:?}");
    assert_eq!(read_all(log), model.records);
}

fn take(log: DiskLog, dir: &NodeDir, model: &mut Model, step: Step) -> DiskLog {
    match step {
        Step::Append { count, size, new_epoch, wait } => {
            model.epoch += u64::from(new_epoch);
            let records = model.new_records(count, size);
            model.records.extend(records.clone());
            model.changed();
            if wait {
                append(&log, records);
                assert_eq!(log.ends().durable, model.last());
                model.durable();
            } else {
                log.append(records, Box::new(|result| result.unwrap())).unwrap();
            }
        }
        Step::Truncate { share } => {
            let kept = model.share(share);
            log.truncate_after(model.position(kept)).unwrap();
            model.records.truncate(kept);
            model.changed();
        }
        Step::Purge { share } => {
            let dropped = model.share(share);
            if let Some(through) = model.position(dropped) {
                log.purge_through(through).unwrap();
                model.records.drain(..dropped);
                model.purged = Some(through);
                model.changed();
            }
        }
        Step::Install { beyond, share } => {
            model.epoch += 1;
            let index = share
                .map_or(model.next() + beyond, |share| model.position(model.share(share)).map_or(0, |at| at.index.0));
            if model.purged.is_none_or(|purged| index > purged.index.0) {
                model.records.clear();
                model.changed();
                model.purged = Some(Position::new(model.epoch, index));
                model.changed();
                log.purge_through(Position::new(model.epoch, index)).unwrap();
            }
        }
        Step::Flush => {
            flush(&log);
            assert_eq!(log.ends().durable, model.last());
            model.durable();
        }
        Step::Reopen => {
            drop(log);
            let (log, report) = open(dir).unwrap();
            assert_eq!((report.torn_tail, report.created), (None, false));
            assert_eq!(log.ends().durable, model.last());
            model.durable();
            return log;
        }
        Step::Kill => kill(dir, model),
        Step::Read { from, to, bytes_max } => {
            let (from, to) = (model.share(from), model.share(to));
            let base = model.purged.map_or(0, |purged| purged.index.0 + 1);
            let found = log.read(LogIndex(base + from as u64), LogIndex(base + to as u64), bytes_max).unwrap();
            let wanted = model.records.get(from..to).unwrap_or_default();
            assert!(wanted.starts_with(&found));
            assert_eq!(found.is_empty(), wanted.is_empty(), "at least one if there is one");
            let bytes: usize = found.iter().map(|record| record.payload.len()).sum();
            assert!(found.len() <= 1 || bytes <= bytes_max);
            let more = wanted.get(found.len()).map_or(usize::MAX, |record| bytes + record.payload.len());
            assert!(more > bytes_max, "as many as fit");
        }
        Step::Misfit { gap } => misfits(&log, model, gap),
    }
    log
}

/// Copies what a process killed now would leave, and opens that.
fn kill(dir: &NodeDir, model: &Model) {
    let elsewhere = folder();
    let (from, to) = (dir.path().join(LOG), elsewhere.path().join(LOG));
    // Whole only if no segment came or went meanwhile. The watermark is read first, and the segments from the end, each from its last
    // block to its first: none may be older than what is read after it.
    let copy = loop {
        let before = names(&from);
        let mut copy = Files::new();
        copy.insert(to.join("durable"), fs::read(from.join("durable")).unwrap());
        for name in before.iter().rev().filter(|name| name.ends_with(".seg")) {
            copy.extend(read_backwards(&from.join(name)).ok().map(|bytes| (to.join(name), bytes)));
        }
        if names(&from) == before && copy.len() == before.len() {
            break copy;
        }
    };
    fs::create_dir(&to).unwrap();
    fs::copy(dir.path().join("meta"), elsewhere.path().join("meta")).unwrap();
    restore(&to, &copy);
    let left = NodeDir::open(elsewhere.path(), NODE).unwrap();
    let (log, report) = open(&left).unwrap();
    let found = (log.ends().purged, read_all(&log));
    assert!(model.may_have_been(&found), "{found:?} was never there since {:?}; {report:?}", model.since.first());
}

fn read_backwards(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    for (block, bytes) in bytes.chunks_mut(BLOCK).enumerate().rev() {
        file.read_exact_at(bytes, (block * BLOCK) as u64)?;
    }
    Ok(bytes)
}

/// The files of a log, but for a segment that is being made.
fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".new"));
    names.sort();
    names
}

fn misfits(log: &DiskLog, model: &Model, gap: u64) {
    let refused = |result| assert!(matches!(result, Err(StorageError::NotContiguous { .. })), "{result:?}");
    let one = |epoch, index| vec![Record { position: Position::new(epoch, index), payload: Default::default() }];
    refused(log.append(one(model.epoch, model.next() + gap), Box::new(|_| panic!("an error was returned"))));
    refused(log.truncate_after(Some(Position::new(model.epoch, model.next() + gap))));
    if let Some(last) = model.last() {
        refused(log.append(one(model.epoch, last.index.0), Box::new(|_| panic!("an error was returned"))));
        refused(log.truncate_after(Some(Position { epoch: Epoch(last.epoch.0 + 7), index: last.index })));
        if last.epoch.0 > 0 {
            refused(log.append(one(last.epoch.0 - 1, last.index.0 + 1), Box::new(|_| panic!("an error was returned"))));
        }
    }
    if let Some(before) = model.purged.and_then(|purged| purged.index.0.checked_sub(1)) {
        refused(log.truncate_after(Some(Position::new(0, before))));
    }
    let large = Record { position: Position::new(model.epoch, model.next()), payload: vec![0; 257].into() };
    let result = log.append(vec![large], Box::new(|_| panic!("an error was returned")));
    assert!(matches!(result, Err(StorageError::TooLarge { bytes: 257, bytes_max: 256 })), "{result:?}");
}

/// A hundred cases, or as many as PROPTEST_CASES says.
fn config() -> ProptestConfig {
    let cases = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100);
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_log_is_a_vector(steps in proptest::collection::vec(step(), 1..80)) {
        let scratch = folder();
        let dir = NodeDir::open(scratch.path(), NODE).unwrap();
        let mut log = open(&dir).unwrap().0;
        let mut model = Model::default();
        model.durable();
        for step in steps {
            log = take(log, &dir, &mut model, step);
            check(&log, &model);
        }
    }
}
