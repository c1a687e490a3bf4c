//! The configuration group's log without a group: what an operator's recovery reads from it, and how it begins it anew.

use replicator_chain::{Command, Configuration, Life, Record};
use replicator_storage::{ReadLog, Record as LogRecord};
use replicator_types::{Epoch, Position, codec};

use super::group::{self, LoggedCommand};
use crate::replication::{
    Member,
    majority::offline::{self as group_log, Ledger, LedgerError},
};

/// What the configuration group's log tells.
#[derive(Debug, Default)]
pub struct Book {
    /// Of the group itself.
    pub ledger: Ledger,
    /// The record after all entries, of which the last may not have been committed.
    pub record: Record,
    /// The greatest epoch that any entry names or asks for; 0: none.
    pub epoch: Epoch,
    /// All configurations, in order: the last may not have been committed.
    pub configurations: Vec<Configuration>,
}

/// Reads all of it.
///
/// # Errors
/// If an entry can't be read.
pub fn read<L: ReadLog + ?Sized>(log: &L) -> Result<Book, LedgerError> {
    let (mut record, mut greatest) = (Record::default(), Epoch(0));
    let mut configurations: Vec<Configuration> = Vec::new();
    let ledger = group_log::read(log, Vec::new(), |_, entry| {
        let LoggedCommand(command) = codec::decode(entry)?;
        greatest = greatest.max(match &command {
            Command::Found { epoch, .. } | Command::Attempt { epoch, .. } => *epoch,
            Command::Configure { epoch, .. } => epoch.next(),
        });
        record.apply(command);
        let known = configurations.last().map(|last| last.epoch);
        configurations.extend(record.configuration.clone().filter(|now| Some(now.epoch) != known));
        Ok(())
    })?;
    Ok(Book { ledger, record, epoch: greatest, configurations })
}

/// The whole log of a group that begins anew, in `term`: `own` is its only voter, and its chain, in this life, begins in `epoch` where its
/// log ends, at `start`.
#[must_use]
pub fn founding(
    own: &Member,
    places: &[Member],
    life: Life,
    term: Epoch,
    (epoch, start): (Epoch, Position),
    least_chain: u32,
) -> Vec<LogRecord> {
    let found = Command::Found { epoch, chain: vec![life], start: Some(start), least_chain };
    group_log::takeover(own, places, None, term, &group::encode(found))
}
