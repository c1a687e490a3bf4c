//! A disk that a test can hold up, and that keeps what was durable when its node dies.

use std::collections::VecDeque;

use replicator_chain::{LogEntry, LogView, Promise};
use replicator_types::{DiskId, Incarnation, LogIndex, Position};

#[derive(Debug, Clone)]
pub(crate) enum Write {
    Append(Vec<LogEntry>),
    Truncate(Option<Position>),
}

pub(crate) fn end_of(entries: &[LogEntry]) -> Option<Position> {
    entries.last().map(|entry| entry.position)
}

pub(crate) fn length(position: Option<Position>) -> usize {
    position.map_or(0, |position| position.index.0 as usize + 1)
}

/// The log as a replica sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(pub(crate) Vec<LogEntry>);

impl LogView for Log {
    fn last(&self) -> Option<Position> {
        end_of(&self.0)
    }

    fn position(&self, index: LogIndex) -> Option<Position> {
        self.0.get(index.0 as usize).map(|entry| entry.position)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<LogEntry> {
        let mut bytes = 0;
        let mut entries = Vec::new();
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
    /// A script holds its fsyncs up.
    pub(crate) held: bool,
}

fn carry_out(log: &mut Vec<LogEntry>, write: Write) {
    match write {
        Write::Append(entries) => log.extend(entries),
        Write::Truncate(position) => log.truncate(length(position)),
    }
}

impl Disk {
    pub(crate) fn write(&mut self, write: Write) {
        carry_out(&mut self.log.0, write.clone());
        self.writes.push_back(write);
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
        self.log = Log(self.durable.clone());
    }

    pub(crate) fn holds(&self, position: Position) -> bool {
        self.durable.get(position.index.0 as usize).is_some_and(|entry| entry.position == position)
    }
}
