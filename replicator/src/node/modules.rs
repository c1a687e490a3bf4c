//! Modules: taken in, fetched from peers, and given to the machine.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use replicator_machine::ModuleSource;
use replicator_storage::{ModuleStore, Repair, StorageError};
use replicator_types::ModuleHash;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::Node;

/// The largest module that is fetched from a peer.
const MODULE_BYTES_MAX: usize = 64 << 20;
const RETRY: Duration = Duration::from_millis(300);

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
    #[error(transparent)]
    Refused(#[from] replicator_machine::LoadError),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Node {
    /// Stores a module, durably. Nothing runs it yet.
    ///
    /// # Errors
    /// If it can't be loaded, or can't be stored.
    pub async fn store_module(&self, bytes: Bytes) -> Result<(replicator_types::ModuleHash, String), StoreModuleError> {
        let modules = self.modules.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let description = replicator_machine::load::describe(&bytes)?;
            Ok((modules.put(&bytes)?, description.description))
        });
        stored.await.expect("checking and storing a module doesn't panic")
    }

    /// Gets missing modules from whichever peer has them, checking their hash.
    pub(super) async fn fetch_modules(self: Arc<Self>, mut missing: mpsc::Receiver<(ModuleHash, oneshot::Sender<()>)>) {
        while let Some((hash, done)) = missing.recv().await {
            tracing::info!(%hash, "fetching a module");
            while !self.fetch_module(hash).await {
                tokio::time::sleep(RETRY).await;
            }
            let _ = done.send(());
        }
    }

    async fn fetch_module(&self, hash: ModuleHash) -> bool {
        let damage = match self.modules.get(hash) {
            Ok(Some(_)) => return true,
            Err(StorageError::Damaged { path, what, .. }) => Some((path, what)),
            _ => None,
        };
        for peer in &self.config.peers {
            let Ok(channel) = self.peers.channel(peer.peer_address.as_str()) else { continue };
            let bytes = match channel.fetch_module(hash, MODULE_BYTES_MAX).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::debug!(%error, peer = %peer.name, "no module from this peer");
                    continue;
                }
            };
            if ModuleHash(Sha256::digest(&bytes).into()) != hash {
                tracing::warn!(peer = %peer.name, %hash, "the peer sent other bytes under this hash");
                continue;
            }
            let modules = self.modules.clone();
            match tokio::task::spawn_blocking(move || modules.put(&bytes)).await {
                Ok(Ok(_)) => {
                    if let Some((path, what)) = damage {
                        let what = format!("{what}; {} gave the module again", peer.name);
                        self.repairs.note(&[Repair::new(&path, Some(0), what)]);
                    }
                    return true;
                }
                Ok(Err(error)) => self.fail(error),
                Err(error) => tracing::error!(%error, "storing a module"),
            }
        }
        false
    }
}
