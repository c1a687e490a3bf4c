//! A disk that a test can hold up, and that keeps what was durable when its node dies.

use std::collections::VecDeque;

use replicator_chain::{LogEntry, LogView, Promise};
use replicator_types::{DiskId, Incarnation, LogIndex, Position};

#[derive(Debug, Clone)]
pub(crate) enum Write {
    Append(Vec<LogEntry>),
    Truncate(Option<Position>),
    /// An image, by what it was made of.
    Enter(Vec<LogEntry>),
}

pub(crate) fn end_of(entries: &[LogEntry]) -> Option<Position> {
    entries.last().map(|entry| entry.position)
}

pub(crate) fn length(position: Option<Position>) -> usize {
    position.map_or(0, |position| position.index.0 as usize + 1)
}

/// The log as a replica sees it: what is purged is still there, for the checks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(pub(crate) Vec<LogEntry>, pub(crate) Option<Position>);

impl LogView for Log {
    fn purged(&self) -> Option<Position> {
        self.1
    }

    fn last(&self) -> Option<Position> {
        end_of(&self.0)
    }

    fn position(&self, index: LogIndex) -> Option<Position> {
        let entry = self.0.get(index.0 as usize).filter(|entry| Some(entry.position) >= self.1);
        entry.map(|entry| entry.position)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<LogEntry> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        assert!(from.0 as usize >= length(self.1), "a read of what is purged");
        for entry in self.0.iter().take(to.0 as usize).skip(from.0 as usize) {
            entries.push(entry.clone());
            bytes += entry.payload.len();
            if bytes >= bytes_max {
                break;
            }
        }
        entries
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) id: DiskId,
    pub(crate) incarnation: Incarnation,
    /// With all writes, durable or not.
    pub(crate) log: Log,
    /// What survives.
    pub(crate) durable: Vec<LogEntry>,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) promise: Promise,
    /// Asked for, not durable yet.
    pub(crate) promises: VecDeque<Promise>,
    /// What the newest image here was made of.
    pub(crate) image: Vec<LogEntry>,
    /// An image is to be fetched, from whom, and of which position at least.
    pub(crate) wants_image: Option<(DiskId, Position)>,
    /// A script holds its fsyncs up.
    pub(crate) held: bool,
}

/// The log goes on from an image; all of it goes, unless it holds the image's position.
fn enter(log: &mut Vec<LogEntry>, image: &[LogEntry]) {
    if end_of(log.get(..image.len()).unwrap_or_default()) != end_of(image) {
        *log = image.to_vec();
    }
}

fn carry_out(log: &mut Vec<LogEntry>, write: Write) {
    match write {
        Write::Append(entries) => log.extend(entries),
        Write::Truncate(position) => log.truncate(length(position)),
        Write::Enter(image) => enter(log, &image),
    }
}

impl Disk {
    pub(crate) fn write(&mut self, write: Write) {
        if let Write::Enter(image) = &write {
            self.log.1 = end_of(image);
        }
        carry_out(&mut self.log.0, write.clone());
        self.writes.push_back(write);
    }

    /// Takes an image of everything up to `position`, and drops the log before it.
    pub(crate) fn purge(&mut self, position: Position) {
        self.image = self.durable[..length(Some(position))].to_vec();
        self.log.1 = Some(position);
    }

    /// One write becomes durable; what to report.
    pub(crate) fn fsync(&mut self) -> Option<Option<Position>> {
        carry_out(&mut self.durable, self.writes.pop_front()?);
        Some(end_of(&self.durable))
    }

    /// One promise becomes durable.
    pub(crate) fn keep_promise(&mut self) -> Option<Promise> {
        self.promise = self.promises.pop_front()?;
        Some(self.promise)
    }

    /// The process dies, after `kept` more writes have reached the disk, of which nobody heard.
    pub(crate) fn crash(&mut self, kept: usize) {
        for write in std::mem::take(&mut self.writes).into_iter().take(kept) {
            carry_out(&mut self.durable, write);
        }
        self.promises.clear();
        self.wants_image = None;
        // A start goes on from the newest image, whether or not the log was told of it.
        enter(&mut self.durable, &self.image);
        self.log = Log(self.durable.clone(), end_of(&self.image));
    }

    pub(crate) fn holds(&self, position: Position) -> bool {
        self.durable.get(position.index.0 as usize).is_some_and(|entry| entry.position == position)
    }
}
