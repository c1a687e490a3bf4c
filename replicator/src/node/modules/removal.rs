//! Removing a module that nothing needs. None goes by itself: an operator says which.

use replicator_storage::{Log as _, StorageError};
use replicator_types::{LogIndex, ModuleHash};

use crate::node::{AppliedState, Node, NodeError};

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
        let applied = self.applier.state.borrow().clone();
        if applied.genesis.is_none() {
            return Err(NodeError::NotReady(
                "this node has no history yet: it can't tell which modules it needs".into(),
            )
            .into());
        }
        let purged = self.log.ends().purged.map_or(LogIndex(0), |at| at.index);
        let needed = needed(&applied, purged, module);
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

/// For what a module is needed, on a node whose log has lost everything up to `purged`.
fn needed(applied: &AppliedState, purged: LogIndex, module: ModuleHash) -> Option<String> {
    if applied.active_module() == Some(module) {
        return Some("it is the active one".into());
    }
    if applied.previous_module() == Some(module) {
        return Some("it ran before the active one: a rollback activates it".into());
    }
    let spans = applied.modules.iter().zip(applied.modules.iter().skip(1));
    let mut ended = spans.filter(|(span, _)| span.module == module).map(|(_, next)| next.from.index);
    let named = applied.named_modules.get(&module).copied().filter(|named| *named > purged);
    let last = ended.find(|end| *end > purged).or(named);
    last.map(|last| format!("what this node keeps of its log and images needs it, up to log index {last}; it can go when two newer images were taken"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
            named_modules: Arc::new([(module(5), LogIndex(15)), (module(6), LogIndex(25))].into()),
            ..AppliedState::default()
        };
        let is_needed = |number, purged| needed(&applied, LogIndex(purged), module(number)).is_some();
        // It runs, or a rollback may want it, whatever has become of the log.
        assert!(is_needed(4, 100) && is_needed(3, 100));
        // It ran up to 10: the log from 9 on needs it, that from 10 on doesn't.
        assert!(is_needed(1, 9) && !is_needed(1, 10));
        assert!(is_needed(2, 19) && !is_needed(2, 20));
        // Refused at 15: who replays that entry must refuse it again.
        assert!(is_needed(5, 14) && !is_needed(5, 15));
        assert!(!is_needed(7, 0));
    }
}
