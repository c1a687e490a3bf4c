//! One replica over a log in memory, for the tests of each transition; many of them, with faults, in `faults`.

mod appending;
mod faults;
mod fetching;
mod guards;
mod leaving;
mod world;

use bytes::Bytes;
use replicator_types::{DiskId, Epoch, Incarnation, LogIndex, Position};

use super::{Effect, Event, LogView, PersistOrder, Replica};
use crate::{Configuration, Life, LogEntry, Message, Promise, Timing};

/// A log that is read as it was last changed.
#[derive(Debug, Clone, Default)]
struct MemoryLog {
    entries: Vec<LogEntry>,
    /// The last entry that was purged; what is before it stays here unseen.
    purged: Option<Position>,
}

impl From<Vec<LogEntry>> for MemoryLog {
    fn from(entries: Vec<LogEntry>) -> Self {
        Self { entries, purged: None }
    }
}

impl LogView for MemoryLog {
    fn purged(&self) -> Option<Position> {
        self.purged
    }

    fn last(&self) -> Option<Position> {
        self.entries.last().map(|entry| entry.position)
    }

    fn position(&self, index: LogIndex) -> Option<Position> {
        self.entries
            .get(usize::try_from(index.0).ok()?)
            .map(|entry| entry.position)
            .filter(|at| Some(*at) >= self.purged)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<LogEntry> {
        let mut bytes = 0;
        let wanted = self.entries.iter().skip(from.0 as usize).take((to.0 - from.0) as usize);
        let fits = |entry: &&LogEntry| {
            let fits = bytes == 0 || bytes < bytes_max;
            bytes += entry.payload.len().max(1);
            fits
        };
        wanted.take_while(fits).cloned().collect()
    }
}

impl MemoryLog {
    fn append(&mut self, entries: &[LogEntry]) {
        for entry in entries {
            assert_eq!(entry.position.index.0, self.entries.len() as u64, "a hole in the log");
            self.entries.push(entry.clone());
        }
    }

    /// The entries of an image are unknown here, and never read.
    fn enter(&mut self, image: Position) {
        if self.position(image.index) != Some(image) {
            let unseen =
                |index| LogEntry { position: Position { index: LogIndex(index), ..image }, payload: Bytes::new() };
            self.entries = (0..=image.index.0).map(unseen).collect();
        }
        self.purged = Some(image);
    }

    fn truncate(&mut self, last: Option<Position>) {
        let length = last.map_or(0, |last| last.index.0 as usize + 1);
        assert!(length <= self.entries.len(), "a truncation beyond the end");
        self.entries.truncate(length);
        assert_eq!(self.last(), last, "a truncation to what the log doesn't have");
    }
}

fn at(epoch: u64, index: u64) -> Option<Position> {
    Some(Position::new(epoch, index))
}

fn life(disk: u64) -> Life {
    Life { disk: DiskId(disk), incarnation: Incarnation(1) }
}

/// Entries with these (epoch, index), whose payloads say so.
fn entries(positions: &[(u64, u64)]) -> Vec<LogEntry> {
    let entry = |&(epoch, index): &(u64, u64)| LogEntry {
        position: Position::new(epoch, index),
        payload: Bytes::from(format!("{index}@{epoch}")),
    };
    positions.iter().map(entry).collect()
}

fn configuration(epoch: u64, chain: &[Life], start: Option<Position>) -> Configuration {
    Configuration { epoch: Epoch(epoch), chain: chain.to_vec(), start }
}

fn founders() -> Configuration {
    configuration(1, &[life(1), life(2), life(3)], None)
}

fn seal(attempt: u64) -> Message {
    Message::Seal { configuration: founders(), attempt }
}

fn promise(epoch: u64, attempt: u64) -> Promise {
    Promise { epoch: Epoch(epoch), attempt }
}

fn append(epoch: u64, previous: Option<Position>, positions: &[(u64, u64)], commit: Option<Position>) -> Message {
    Message::Append { epoch: Epoch(epoch), previous, entries: entries(positions), commit, barrier: 0 }
}

fn acknowledged(epoch: u64, received: Option<Position>, durable: Option<Position>) -> Message {
    Message::Acknowledged { epoch: Epoch(epoch), received, durable, barrier: 0, gap: false }
}

fn send(to: u64, message: Message) -> Effect {
    Effect::Send { to: DiskId(to), message }
}

/// Disk 2 of the disks 1 to 3, or another, with its log.
struct Bench {
    replica: Replica,
    log: MemoryLog,
}

impl Bench {
    fn new(life: Life, order: PersistOrder, timing: Timing, log: Vec<LogEntry>) -> Self {
        let log = MemoryLog::from(log);
        Self { replica: Replica::new(life, Promise::default(), order, timing, log.last()), log }
    }

    /// In epoch 1 of the disks 1 to 3, whose logs are empty. What it greets them with is left out.
    fn member(disk: u64, order: PersistOrder, timing: Timing) -> Self {
        let mut bench = Self::new(life(disk), order, timing, Vec::new());
        bench.configure(configuration(1, &[life(1), life(2), life(3)], None));
        bench
    }

    fn configure(&mut self, configuration: Configuration) -> Vec<Effect> {
        self.give(Event::Configured { configuration, least_chain: 1 })
    }

    fn give(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.replica.step(event, &self.log, &mut effects);
        for effect in &effects {
            match effect {
                Effect::AppendLog(entries) => self.log.append(entries),
                Effect::TruncateLog(last) => self.log.truncate(*last),
                Effect::EnterImage(position) => self.log.enter(*position),
                _ => {}
            }
        }
        effects
    }

    fn receive(&mut self, from: u64, message: Message) -> Vec<Effect> {
        self.give(Event::Received { from: DiskId(from), message })
    }

    fn propose(&mut self, number: u64, payloads: &[&'static str]) -> Vec<Effect> {
        let entries = payloads.iter().map(|payload| Bytes::from_static(payload.as_bytes())).collect();
        self.give(Event::Proposed { entries, number })
    }

    fn durable(&mut self, position: Option<Position>) -> Vec<Effect> {
        self.give(Event::LogDurable(position))
    }
}
