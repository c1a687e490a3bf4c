//! Removing a module that nothing needs. None goes by itself: an operator says which.

use std::time::{Duration, Instant};

use replicator_machine::{Command, Entry};
use replicator_offline::Framing;
use replicator_storage::{DiskLog, Log as _, StorageError};
use replicator_types::{LogIndex, ModuleHash, codec};

use crate::node::{AppliedState, Node, NodeError, ReadLogError, reading::framing};

/// How long it may take to come to the log's end.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(5);
/// Of the log, at once.
const READ_BYTES_MAX: usize = 1 << 20;

/// Why a module was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveModuleError {
    /// This node can't tell whether it is needed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It is needed.
    #[error("{module} was not removed: {why}")]
    Needed {
        /// Which.
        module: ModuleHash,
        /// For what.
        why: String,
    },
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] ReadLogError),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Node {
    /// Removes a module from this node's store; durable on return. Returns whether it was there.
    ///
    /// # Errors
    /// [`RemoveModuleError::Needed`] if it runs, ran before the active one, is named by what is left of the log or runs in an image, or was asked for a
    /// moment ago by somebody who may activate it.
    pub async fn remove_module(&self, module: ModuleHash) -> Result<bool, RemoveModuleError> {
        self.running()?;
        self.check_halted()?;
        // What is active at the log's end may not be yet where a machine stands that has just been started.
        self.modules_now(Instant::now() + CAUGHT_UP_MAX).await?;
        let applied = self.applier.state.borrow().clone();
        if applied.genesis.is_none() {
            return Err(NodeError::NotReady(
                "this node has no history yet: it can't tell which modules it needs".into(),
            )
            .into());
        }
        let purged = self.log.ends().purged.map_or(LogIndex(0), |at| at.index);
        let (log, framing) = (self.log.clone(), framing(self.config.mode));
        let named = tokio::task::spawn_blocking(move || last_named(&log, framing, module));
        let named = named.await.expect("reading a log doesn't panic")?;
        let needed = needed(&applied, purged, named, module);
        let wanted = || {
            self.shelf
                .is_wanted(module)
                .then(|| "it was asked for within the last minute, and may be about to be activated".to_owned())
        };
        if let Some(why) = needed.or_else(wanted) {
            return Err(RemoveModuleError::Needed { module, why });
        }
        let modules = self.modules.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let existed = modules.bytes(module)?.is_some();
            modules.remove(module)?;
            Ok(existed)
        });
        self.shelf.forget(module);
        let removed = removed.await.expect("removing a file doesn't panic");
        Ok(removed.map_err(|error| self.storage_failed(error))?)
    }
}

/// The last entry of what is left of the log that names the module, whatever came of it: who replays it needs the bytes.
fn last_named(log: &DiskLog, framing: Framing, module: ModuleHash) -> Result<Option<LogIndex>, ReadLogError> {
    let (mut next, mut last) = (log.ends().purged.map_or(LogIndex(0), |purged| purged.index.next()), None);
    loop {
        let records = log.read(next, LogIndex(u64::MAX), READ_BYTES_MAX)?;
        let Some(end) = records.last().map(|record| record.position.index) else { return Ok(last) };
        next = end.next();
        for record in records {
            let index = record.position.index;
            let Some(entry) = framing(&record)? else { continue };
            if matches!(codec::decode::<Entry>(&entry)?.command, Command::Activate { module: named, .. } if named == module)
            {
                last = Some(index);
            }
        }
    }
}

/// For what a module is needed, on a node whose log has lost everything up to `purged`, and `named` it last where that says.
fn needed(applied: &AppliedState, purged: LogIndex, named: Option<LogIndex>, module: ModuleHash) -> Option<String> {
    if applied.active_module() == Some(module) {
        return Some("it is the active one".into());
    }
    if applied.previous_module() == Some(module) {
        return Some("it ran before the active one: a rollback activates it".into());
    }
    let spans = applied.modules.iter().zip(applied.modules.iter().skip(1));
    let mut ended = spans.filter(|(span, _)| span.module == module).map(|(_, next)| next.from.index);
    let last = ended.find(|end| *end > purged).or(named);
    last.map(|last| format!("what this node keeps of its log and images needs it, up to log index {last}; it can go when two newer images were taken"))
}

#[cfg(test)]
mod tests {
    use replicator_machine::ModuleSpan;
    use replicator_types::Position;

    use super::*;

    const fn module(number: u8) -> ModuleHash {
        ModuleHash([number; 32])
    }

    #[test]
    fn only_what_nothing_needs_is_let_go() {
        let span = |index, number| ModuleSpan { from: Position::new(1, index), module: module(number) };
        let applied = AppliedState {
            modules: [span(0, 1), span(10, 2), span(20, 3), span(30, 4)].into(),
            ..AppliedState::default()
        };
        let is_needed = |number, purged| needed(&applied, LogIndex(purged), None, module(number)).is_some();
        // It runs, or a rollback may want it, whatever has become of the log.
        assert!(is_needed(4, 100) && is_needed(3, 100));
        // It ran up to 10: the log from 9 on needs it, that from 10 on doesn't.
        assert!(is_needed(1, 9) && !is_needed(1, 10));
        assert!(is_needed(2, 19) && !is_needed(2, 20));
        // Refused at 15: who replays that entry must refuse it again.
        assert!(needed(&applied, LogIndex(14), Some(LogIndex(15)), module(5)).is_some());
        assert!(!is_needed(7, 0));
    }
}
