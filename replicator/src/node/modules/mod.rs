//! Modules on this node: taken in, checked in the background, spread, activated, and given to the machine.
//!
//! A module comes by an operator's call ([`Node::store_module`]) or from a peer ([`fetching`]). Its bytes are durable under their hash before anything
//! is said of them; a thread that stands back checks and compiles them ([`shelf`]). The replica that took it in tells the others to fetch it
//! ([`spreading`]). An activation is an entry of the log, proposed only when the module is ready where it must be ([`activation`], safety rule 21);
//! a replica that comes to that entry without the module stands still until it has fetched it.

mod activation;
mod fetching;
mod removal;
mod shelf;
mod spreading;

use bytes::Bytes;
use replicator_machine::{Halt, ModuleSource};
use replicator_storage::{ModuleStore, StorageError};
use replicator_types::ModuleHash;
use sha2::{Digest as _, Sha256};

pub use self::{
    activation::{ActivateError, Activation},
    removal::RemoveModuleError,
    spreading::ListedModule,
};
pub(super) use self::{fetching::Fetches, shelf::Shelf};
use super::{Node, StartError};

/// The largest module, in bytes.
pub const MODULE_BYTES_MAX: usize = replicator_machine::load::MODULE_BYTES_MAX;

/// The module store, as the machine sees it.
pub(super) struct Modules(pub(super) ModuleStore);

impl ModuleSource for Modules {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        // A damaged file counts as missing: it is fetched again and replaced.
        self.0.get(*hash).unwrap_or_else(|error| {
            tracing::warn!(%hash, "a stored module is damaged or unreadable, and is taken again from a peer");
            tracing::debug!(%error, "the module");
            None
        })
    }
}

/// Why a module was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreModuleError {
    /// It is none that this program can run.
    #[error("the module is refused: {0}")]
    Refused(replicator_machine::LoadError),
    /// Larger than any may be.
    #[error(
        "the module has more than {MODULE_BYTES_MAX} bytes, the most that is taken; strip it, and build it for size"
    )]
    TooLarge,
    /// The bytes that came are others than those that were sent.
    #[error(
        "the bytes that came have the SHA-256 {found}, and {said} was said: they were damaged on the way; send the module again"
    )]
    Corrupt {
        /// What was announced.
        said: ModuleHash,
        /// What came.
        found: ModuleHash,
    },
    /// This host can't find out.
    #[error("can't check the module: {0}")]
    Host(Halt),
    /// A thread can't be started.
    #[error("can't check the module: {0}")]
    Thread(std::io::Error),
    /// The disk failed, or is full.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Node {
    /// Checks a module and stores it, durably, and has the other replicas take it from here. Nothing runs it yet. `said`: the hash that it must have.
    ///
    /// # Errors
    /// If it can't be loaded, or can't be stored.
    pub async fn store_module(
        &self,
        bytes: Bytes,
        said: Option<ModuleHash>,
    ) -> Result<(ModuleHash, String), StoreModuleError> {
        if bytes.len() > MODULE_BYTES_MAX {
            return Err(StoreModuleError::TooLarge);
        }
        let (checked, hash) = self.shelf.check_bytes(bytes.clone()).await.map_err(StoreModuleError::Thread)?;
        if let Some(said) = said.filter(|said| *said != hash) {
            return Err(StoreModuleError::Corrupt { said, found: hash });
        }
        let compiled = checked.map_err(|halt| match halt {
            Halt::ModuleRefused(refused) => StoreModuleError::Refused(refused),
            halt => StoreModuleError::Host(halt),
        })?;
        let description = compiled.info().description.clone();
        let modules = self.modules.clone();
        let stored = tokio::task::spawn_blocking(move || modules.put(&bytes));
        if let Err(error) = stored.await.expect("storing a module doesn't panic") {
            return Err(self.storage_failed(error).into());
        }
        tracing::info!(%hash, module = description, "stored a module");
        self.shelf.found_ready(compiled);
        let _ = self.uploads.send(hash); // Fails only when the node ends.
        Ok((hash, description))
    }

    /// Ends the process after a failed fsync; gives the error back.
    fn storage_failed(&self, error: StorageError) -> StorageError {
        if error.is_failed_fsync() {
            self.fail(StartError::Stopped(error.to_string()));
        }
        error
    }
}

fn hash_of(bytes: &[u8]) -> ModuleHash {
    ModuleHash(Sha256::digest(bytes).into())
}
