//! Getting modules from peers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use replicator_storage::{Repair, StorageError};
use replicator_types::ModuleHash;
use tokio::sync::{mpsc, oneshot};

use super::{MODULE_BYTES_MAX, hash_of};
use crate::node::Node;

const RETRY: Duration = Duration::from_millis(300);
/// For how long it is told why a module could not be had.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// The modules that are being fetched, or could not be.
#[derive(Default)]
pub(in crate::node) struct Fetches(Mutex<BTreeMap<ModuleHash, Fetch>>);

enum Fetch {
    UnderWay,
    Failed { at: Instant, why: String },
}

impl Fetches {
    /// Whether the caller shall fetch it: nobody does, and nobody has just failed.
    fn begin(&self, hash: ModuleHash) -> bool {
        let mut fetches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Anybody can name a module that nobody has.
        fetches.retain(|_, fetch| match fetch {
            Fetch::UnderWay => true,
            Fetch::Failed { at, .. } => at.elapsed() < TOLD_FOR,
        });
        let begins = match fetches.get(&hash) {
            Some(Fetch::UnderWay) => false,
            Some(Fetch::Failed { at, .. }) => at.elapsed() >= RETRY,
            None => true,
        };
        if begins {
            fetches.insert(hash, Fetch::UnderWay);
        }
        begins
    }

    fn end(&self, hash: ModuleHash, failed: Option<String>) {
        let mut fetches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(why) => fetches.insert(hash, Fetch::Failed { at: Instant::now(), why }),
            None => fetches.remove(&hash),
        };
    }

    /// Why a module isn't here.
    pub(in crate::node) fn why_missing(&self, hash: ModuleHash) -> String {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&hash) {
            Some(Fetch::UnderWay) => "it is being fetched".to_owned(),
            Some(Fetch::Failed { why, .. }) => why.clone(),
            None => String::new(),
        }
    }
}

impl Node {
    /// Gets modules that the machine waits for from whichever peer has them.
    pub(in crate::node) async fn fetch_modules(
        self: Arc<Self>,
        mut missing: mpsc::Receiver<(ModuleHash, oneshot::Sender<()>)>,
    ) {
        while let Some((hash, done)) = missing.recv().await {
            tracing::info!(%hash, "the machine needs a module that isn't here: fetching it");
            let mut told = String::new();
            while let Err(why) = self.fetch_module(hash).await {
                if why != told {
                    tracing::warn!(%hash, why, "the module can't be had yet");
                    self.fetches.end(hash, Some(why.clone()));
                }
                told = why;
                tokio::time::sleep(RETRY).await;
            }
            self.fetches.end(hash, None);
            let _ = done.send(());
        }
    }

    /// Begins to fetch a module, unless that goes on already.
    pub(super) fn begin_fetch(self: &Arc<Self>, hash: ModuleHash) {
        if !self.fetches.begin(hash) {
            return;
        }
        let node = self.clone();
        self.shelf.runtime.spawn(async move {
            let fetched = node.fetch_module(hash).await;
            match &fetched {
                Ok(()) => node.shelf.check(hash),
                Err(why) => tracing::debug!(%hash, why, "no module"),
            }
            node.fetches.end(hash, fetched.err());
        });
    }

    /// Gets a module that is missing or damaged here from a peer, checking its hash. Durable on return.
    async fn fetch_module(&self, hash: ModuleHash) -> Result<(), String> {
        let modules = self.modules.clone();
        let here = tokio::task::spawn_blocking(move || modules.get(hash)).await.map_err(|error| error.to_string())?;
        let damage = match here {
            Ok(Some(_)) => return Ok(()),
            Err(StorageError::Damaged { path, what, .. }) => Some((path, what)),
            _ => None,
        };
        let mut why = "this node has no peers".to_owned();
        for peer in &self.config.peers {
            let fetched = async {
                let channel = self.peers.channel(peer.peer_address.as_str())?;
                channel.fetch_module(hash, MODULE_BYTES_MAX).await
            };
            let bytes = match fetched.await {
                Ok(bytes) => bytes,
                Err(error) => {
                    why = format!("{}: {error}", peer.name);
                    continue;
                }
            };
            if hash_of(&bytes) != hash {
                tracing::warn!(peer = %peer.name, %hash, "the peer sent other bytes under this hash");
                why = format!("{} sent other bytes under this hash", peer.name);
                continue;
            }
            let modules = self.modules.clone();
            let stored = tokio::task::spawn_blocking(move || modules.put(&bytes)).await;
            if let Err(error) = stored.map_err(|error| error.to_string())? {
                return Err(self.storage_failed(error).to_string());
            }
            tracing::info!(%hash, peer = %peer.name, "fetched a module");
            self.shelf.forget(hash);
            if let Some((path, what)) = damage {
                let what = format!("{what}; {} gave the module again", peer.name);
                self.repairs.note(&[Repair::new(&path, Some(0), what)]);
            }
            return Ok(());
        }
        Err(why)
    }
}
