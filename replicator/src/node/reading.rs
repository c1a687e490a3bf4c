//! Giving the log's committed entries to an operator's tool, while clients come first.
//!
//! After each read the reader rests nine times as long as that took, so reading takes about a tenth of one core at most, and a tenth of the disk's time;
//! and no more bytes leave per second than images may ([`super::images`]).

use std::{sync::Arc, time::Instant};

use replicator_offline::Framing;
use replicator_storage::{DiskLog, Log as _, Record, StorageError};
use replicator_types::{LogIndex, codec::CodecError};
use tokio::runtime::Handle;

use super::{Node, images::Pace};
use crate::{
    config::Mode,
    replication::{Committed, majority::offline::command_of},
};

/// Entries of one message, in bytes, about.
const BATCH_BYTES: usize = 256 << 10;
/// Rests for so many times what a read took.
const REST: u32 = 9;

/// Why entries can't be given.
#[derive(Debug, thiserror::Error)]
pub enum ReadLogError {
    /// The node takes no part yet, or has no log.
    #[error("{0}")]
    NotReady(String),
    /// They have left the log.
    #[error("the log begins after entry {through}; begin with an image, and the entries after it")]
    Purged {
        /// The last entry that has left it.
        through: LogIndex,
    },
    /// The log can't be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A record of it can't be understood.
    #[error("a record of the log can't be read: {0}")]
    Record(#[from] CodecError),
}

/// Entries on their way out.
pub struct LogReading {
    log: Arc<DiskLog>,
    framing: Framing,
    next: LogIndex,
    until: LogIndex,
    ended: bool,
    pace: Pace,
    rested_at: Instant,
    runtime: Handle,
}

impl Node {
    /// The entries of this replica's log from `from` to the last one that it has applied.
    ///
    /// # Errors
    /// [`ReadLogError::NotReady`] if it takes no part or has applied nothing; [`ReadLogError::Purged`] if the log begins later.
    pub fn read_log(&self, from: LogIndex) -> Result<LogReading, ReadLogError> {
        self.running().map_err(|error| ReadLogError::NotReady(error.to_string()))?;
        let applied = self.applier.state.borrow().index();
        let until = applied.ok_or_else(|| ReadLogError::NotReady("this node has applied nothing yet".into()))?;
        let reading = LogReading {
            log: self.log.clone(),
            framing: framing(self.config.mode),
            next: from,
            until,
            ended: false,
            pace: Pace::new(self.images.config.transfer_bytes_per_sec),
            rested_at: Instant::now(),
            runtime: self.images.runtime.clone(),
        };
        reading.check_purged()?;
        Ok(reading)
    }
}

impl LogReading {
    /// The last entry that will come.
    #[must_use]
    pub const fn until(&self) -> LogIndex {
        self.until
    }

    fn check_purged(&self) -> Result<(), ReadLogError> {
        match self.log.ends().purged {
            Some(purged) if purged.index >= self.next => Err(ReadLogError::Purged { through: purged.index }),
            _ => Ok(()),
        }
    }

    /// The next entries, no sooner than the pace allows; an empty batch is the last one.
    ///
    /// # Errors
    /// If they can't be read, or left the log meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<Committed>>, ReadLogError> {
        if self.next > self.until {
            return Ok((!std::mem::replace(&mut self.ended, true)).then(Vec::new));
        }
        self.pace.wait().await;
        tokio::time::sleep_until(self.rested_at.into()).await;
        let (log, from, to) = (self.log.clone(), self.next, self.until.next());
        let read = self.runtime.spawn_blocking(move || {
            let began = Instant::now();
            (log.read(from, to, BATCH_BYTES), began.elapsed())
        });
        let (records, took) = read.await.expect("reading a log doesn't panic");
        let records = records?;
        self.rested_at = Instant::now() + took * REST;
        if records.first().is_none_or(|first| first.position.index != self.next) {
            self.check_purged()?;
            let what = format!("entry {} is missing in the log", self.next);
            return Err(ReadLogError::NotReady(what));
        }
        self.pace.sent(records.iter().map(|record| record.payload.len()).sum());
        let entry = |record: Record| -> Result<Committed, ReadLogError> {
            self.next = record.position.index.next();
            Ok((record.position, (self.framing)(&record)?))
        };
        records.into_iter().map(entry).collect::<Result<_, _>>().map(Some)
    }
}

/// How a log of that mode frames its entries.
pub(super) fn framing(mode: Mode) -> Framing {
    match mode {
        Mode::Chain => |record| Ok(Some(record.payload.clone())),
        Mode::Majority => command_of,
    }
}
