//! What this node knows of the modules in its store: whether each can be run.
//!
//! A verdict is a function of the bytes and of this program, so it is found once in the life of a process, one module after the other, on a thread that stands back.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use replicator_machine::{Halt, Precompiled};
use replicator_storage::{ModuleStore, StorageError};
use replicator_types::ModuleHash;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use super::hash_of;
use crate::{
    seams::Threads,
    transport::{HeldModule, Readiness},
};

/// For how long a module stays that somebody wants to run.
const WANTED_FOR: Duration = Duration::from_secs(60);

/// The modules of a node, and what is known of them.
pub(in crate::node) struct Shelf {
    store: ModuleStore,
    threads: Arc<dyn Threads>,
    /// Where files and peers are waited for: not on the group's thread.
    pub(super) runtime: Handle,
    known: Mutex<Known>,
    /// Rings when a verdict is found.
    found: watch::Sender<()>,
}

#[derive(Default)]
struct Known {
    verdicts: BTreeMap<ModuleHash, Verdict>,
    /// To be checked, in this order. The first one is being checked, if a thread runs.
    waiting: VecDeque<ModuleHash>,
    /// Whether a thread runs.
    checking: bool,
    /// When each was last wanted by somebody who may activate it.
    wanted: BTreeMap<ModuleHash, Instant>,
    /// Held, so that an activation of theirs finds them compiled.
    compiled: BTreeMap<ModuleHash, Precompiled>,
}

impl Known {
    fn is_wanted(&self, hash: ModuleHash) -> bool {
        self.wanted.get(&hash).is_some_and(|at| at.elapsed() < WANTED_FOR)
    }

    /// Those that nobody has wanted for long needn't stay compiled: the next one who wants them waits a little.
    fn keep(&mut self, compiled: Precompiled) {
        let Self { compiled: kept, wanted, .. } = self;
        kept.retain(|hash, _| wanted.get(hash).is_some_and(|at| at.elapsed() < WANTED_FOR));
        kept.insert(compiled.hash(), compiled);
    }
}

#[derive(Debug, Clone)]
enum Verdict {
    Ready(String),
    Refused(String),
    Damaged(String),
}

impl Shelf {
    /// On the runtime of the caller.
    pub(in crate::node) fn new(store: ModuleStore, threads: Arc<dyn Threads>) -> Arc<Self> {
        let found = watch::Sender::new(());
        Arc::new(Self { store, threads, runtime: Handle::current(), known: Mutex::default(), found })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is here of a module. One that was not looked at yet begins to be checked. `missing`: why it isn't here, if it isn't.
    ///
    /// Reads the folder, and never a module's bytes.
    pub(super) fn look(self: &Arc<Self>, hash: ModuleHash, missing: impl FnOnce() -> String) -> HeldModule {
        let bytes = match self.store.bytes(hash) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return HeldModule { hash, bytes: 0, readiness: Readiness::Missing(missing()) },
            Err(error) => return HeldModule { hash, bytes: 0, readiness: Readiness::Missing(error.to_string()) },
        };
        let (verdict, is_compiled) = {
            let known = self.known();
            (known.verdicts.get(&hash).cloned(), known.compiled.contains_key(&hash) || !known.is_wanted(hash))
        };
        let readiness = match verdict {
            Some(Verdict::Ready(description)) if is_compiled => Readiness::Ready { description },
            Some(Verdict::Refused(why)) => Readiness::Refused(why),
            Some(Verdict::Damaged(what)) => Readiness::Missing(what),
            Some(Verdict::Ready(_)) | None => {
                self.check(hash);
                Readiness::Checking
            }
        };
        HeldModule { hash, bytes, readiness }
    }

    /// All that are here.
    pub(super) fn look_at_all(self: &Arc<Self>) -> Result<Vec<HeldModule>, StorageError> {
        Ok(self.store.list()?.into_iter().map(|hash| self.look(hash, String::new)).collect())
    }

    /// Notes that somebody may activate it.
    pub(super) fn want(&self, hash: ModuleHash) {
        let mut known = self.known();
        known.wanted.retain(|_, at| at.elapsed() < WANTED_FOR);
        known.wanted.insert(hash, Instant::now());
    }

    /// Whether somebody may be about to activate it.
    pub(super) fn is_wanted(&self, hash: ModuleHash) -> bool {
        self.known().is_wanted(hash)
    }

    /// Waits until nothing is being checked, or that time has passed.
    pub(super) async fn settled(&self, bound: Duration) {
        let mut found = self.found.subscribe();
        let settled = async { while self.known().checking && found.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(bound, settled).await;
    }

    /// Checks and compiles bytes that are not stored, on a thread that stands back. Gives their hash too.
    pub(super) async fn check_bytes(&self, bytes: Bytes) -> io::Result<(Result<Precompiled, Halt>, ModuleHash)> {
        let (done, checked) = oneshot::channel();
        let check = move || {
            let _ = done.send((replicator_machine::precompile(&bytes), hash_of(&bytes))); // Fails only if nobody waits any more.
        };
        self.threads.start_behind("module-check", Box::new(check))?;
        checked.await.map_err(|_| io::Error::other("checking it panicked"))
    }

    /// A module that was checked is in the store now.
    pub(super) fn found_ready(&self, compiled: Precompiled) {
        let mut known = self.known();
        known.verdicts.insert(compiled.hash(), Verdict::Ready(compiled.info().description.clone()));
        known.keep(compiled);
        drop(known);
        self.found.send_replace(());
    }

    /// Its bytes are others than before, or gone.
    pub(super) fn forget(&self, hash: ModuleHash) {
        let mut known = self.known();
        known.verdicts.remove(&hash);
        known.compiled.remove(&hash);
    }

    /// Begins to check a stored module.
    pub(super) fn check(self: &Arc<Self>, hash: ModuleHash) {
        let mut known = self.known();
        if known.waiting.contains(&hash) {
            return;
        }
        known.waiting.push_back(hash);
        if known.checking {
            return;
        }
        let shelf = self.clone();
        match self.threads.start_behind("module-check", Box::new(move || shelf.check_waiting())) {
            Ok(()) => known.checking = true,
            Err(error) => {
                known.waiting.clear(); // Whoever asks next tries again.
                tracing::warn!(%error, "can't start a thread to check a module");
            }
        }
    }

    fn check_waiting(&self) {
        loop {
            let next = {
                let mut known = self.known();
                let next = known.waiting.front().copied();
                known.checking = next.is_some();
                next
            };
            let Some(hash) = next else {
                self.found.send_replace(());
                return;
            };
            // A panic is this program's fault, and must not keep other modules from being checked.
            let checked = panic::catch_unwind(AssertUnwindSafe(|| self.judge(hash))).unwrap_or(Checked::Unknown);
            let mut known = self.known();
            known.waiting.pop_front();
            match checked {
                Checked::Ready(compiled) => {
                    known.verdicts.insert(hash, Verdict::Ready(compiled.info().description.clone()));
                    known.keep(compiled);
                }
                Checked::Not(verdict) => drop(known.verdicts.insert(hash, verdict)),
                Checked::Unknown => drop(known.verdicts.remove(&hash)),
            }
            drop(known);
            self.found.send_replace(());
        }
    }

    fn judge(&self, hash: ModuleHash) -> Checked {
        let bytes = match self.store.get(hash) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Checked::Unknown,
            Err(error) => {
                tracing::warn!(%hash, %error, "a stored module is damaged, and is taken again from a peer when it is wanted");
                return Checked::Not(Verdict::Damaged(error.to_string()));
            }
        };
        match replicator_machine::precompile(&bytes) {
            Ok(compiled) => Checked::Ready(compiled),
            Err(Halt::ModuleRefused(refused)) => {
                tracing::warn!(%hash, %refused, "a stored module can't be run by this program");
                Checked::Not(Verdict::Refused(refused.to_string()))
            }
            // This host's trouble, and perhaps over soon.
            Err(halt) => {
                tracing::warn!(%hash, %halt, "a module could not be checked");
                Checked::Unknown
            }
        }
    }
}

/// What a check has found.
enum Checked {
    Ready(Precompiled),
    Not(Verdict),
    /// It isn't here any more, or can't be checked now.
    Unknown,
}
