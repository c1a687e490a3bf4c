//! Images on this node: the machine's whole state, kept in the folder, so that the log before it may go and a new disk needn't replay it.
//!
//! They are taken while the machine goes on ([`taking`]), fetched from peers where the log doesn't reach ([`fetching`]) and given to peers
//! ([`serving`]), or to an operator who keeps them elsewhere ([`saving`]). Two are kept, and the log from the older one on: a follower that was away for a while needs only the log, and a damaged
//! image costs a longer replay.

mod fetching;
mod pace;
mod saving;
mod serving;
mod taking;
#[cfg(test)]
mod transfer_tests;

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use replicator_machine::{Halt, ImageError, Machine, ModuleSource};
use replicator_storage::{
    DiskLog, Log, NodeDir, Repair, SnapshotManifest, SnapshotOptions, SnapshotStore, StorageError,
};
use replicator_types::{LogIndex, Position};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

pub(super) use self::{pace::Pace, serving::Served, taking::Policy};
pub use self::{saving::Saving, taking::TakenImage};
use super::{
    StartError,
    applier::{Applier, FetchModule, Work},
    quarantine::Quarantine,
    repair::Repairs,
};
use crate::{
    config::{ImageConfig, Peer},
    replication::{Image, Images},
    seams::{Clock, Threads},
    transport::Peers,
};

/// The name of their folder.
pub(super) const IMAGES: &str = "snapshots";
/// Images that are kept.
const KEPT: usize = 2;

/// How this node last caught up, or does now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatchUp {
    /// Whose image.
    pub from: String,
    /// Of which position.
    pub position: Position,
    /// Bytes that have come, and all of them.
    pub bytes: (u64, u64),
    /// For how long it has been going on, or how long it took.
    pub took: Duration,
    /// Whether the machine goes on from it.
    pub entered: bool,
}

/// Why the machine can't go on from an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageUnusable {
    /// Its bytes aren't those that were written.
    #[error("{0}")]
    Damaged(String),
    /// It is whole, and this program or this machine can't go on from it.
    #[error("{0}")]
    Refused(String),
}

impl From<StorageError> for ImageUnusable {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::DamagedSnapshot { .. } | StorageError::NoSnapshot { .. } => Self::Damaged(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl From<ImageError> for ImageUnusable {
    fn from(error: ImageError) -> Self {
        match error {
            // The reader passes the store's own errors on.
            ImageError::Read { source, offset } => match source.downcast::<StorageError>() {
                Ok(error) => error.into(),
                Err(source) => Self::Refused(format!("at byte {offset}: {source}")),
            },
            ImageError::Truncated { .. }
            | ImageError::NotAnImage
            | ImageError::Malformed { .. }
            | ImageError::Damaged { .. } => Self::Damaged(error.to_string()),
            ImageError::Version { .. } | ImageError::Refused(_) => Self::Refused(error.to_string()),
        }
    }
}

/// The images of a node.
pub(super) struct NodeImages {
    dir: NodeDir,
    store: SnapshotStore,
    log: Arc<DiskLog>,
    modules: Arc<dyn ModuleSource>,
    fetch_module: FetchModule,
    applier: Applier,
    peers: Peers,
    clock: Arc<dyn Clock>,
    threads: Arc<dyn Threads>,
    pub(super) config: ImageConfig,
    configured: Vec<Peer>,
    repairs: Arc<Repairs>,
    quarantine: Arc<Quarantine>,
    /// Downloads and files are not for the group's thread.
    pub(super) runtime: Handle,
    newest: RwLock<Option<Image>>,
    /// Held by who fetches one.
    fetching: tokio::sync::Mutex<()>,
    catch_up: watch::Sender<Option<CatchUp>>,
    /// From where on an image was needed last and couldn't be had, and why.
    lacking: watch::Sender<Option<(Position, String)>>,
    /// Why the disk can't be trusted any more.
    disk_failed: watch::Sender<Option<String>>,
}

/// What [`NodeImages`] needs of the node.
pub(super) struct Parts {
    pub(super) dir: NodeDir,
    pub(super) log: Arc<DiskLog>,
    pub(super) modules: Arc<dyn ModuleSource>,
    pub(super) fetch_module: FetchModule,
    pub(super) applier: Applier,
    pub(super) peers: Peers,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) threads: Arc<dyn Threads>,
    pub(super) config: ImageConfig,
    /// The other nodes, as this one's configuration has them.
    pub(super) configured: Vec<Peer>,
    pub(super) repairs: Arc<Repairs>,
    pub(super) quarantine: Arc<Quarantine>,
}

impl NodeImages {
    /// On the runtime of the caller, which all work with files and peers is done on.
    ///
    /// # Errors
    /// If the folder of images can't be made or read.
    pub(super) fn open(parts: Parts) -> Result<Arc<Self>, StorageError> {
        let Parts {
            dir,
            log,
            modules,
            fetch_module,
            applier,
            peers,
            clock,
            threads,
            config,
            configured,
            repairs,
            quarantine,
        } = parts;
        Ok(Arc::new(Self {
            store: dir.snapshots(IMAGES, SnapshotOptions::default())?,
            dir,
            log,
            modules,
            fetch_module,
            applier,
            peers,
            clock,
            threads,
            config,
            configured,
            repairs,
            quarantine,
            runtime: Handle::current(),
            newest: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
            catch_up: watch::Sender::new(None),
            lacking: watch::Sender::new(None),
            disk_failed: watch::Sender::new(None),
        }))
    }

    /// Why a node that has applied so much can't have the image that it needs; None: it needs none.
    pub(super) fn lacking(&self, applied: Option<LogIndex>) -> Option<String> {
        let needed = self.lacking.borrow().clone();
        needed.filter(|(at_least, _)| applied < Some(at_least.index)).map(|(_, why)| why)
    }

    /// How this node last caught up by an image; None: it hasn't, since it started.
    pub(super) fn catch_up(&self) -> Option<CatchUp> {
        self.catch_up.borrow().clone()
    }

    /// Ends with the reason when an fsync of an image has failed: the process must end.
    pub(super) async fn disk_failed(&self) -> String {
        let mut failed = self.disk_failed.subscribe();
        let why = failed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).expect("its sender is this, which the caller holds")
    }

    /// An error of the store's, on its way to who asked.
    fn noted(&self, error: StorageError) -> StorageError {
        if error.is_failed_fsync() {
            self.disk_failed.send_replace(Some(error.to_string()));
        }
        error
    }

    /// Makes the machine go on from the newest image that is whole, if there is one, and lets the log begin there if it doesn't reach it (safety
    /// rule 22). Where images are damaged and the log doesn't make up for them, one of a peer's is fetched.
    ///
    /// # Errors
    /// If the log can't be changed, or if an image is whole and this node can't go on from it.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<(), StartError> {
        let purged = self.log.ends().purged;
        let mut from = self.newest_here(purged).await?;
        while let Some(needed) = purged.filter(|_| from.is_none()) {
            tracing::warn!(%needed, "the log begins after this, and no image of it is whole: taking one from a peer");
            from = self.fetch_from_anyone(needed).await;
            match &from {
                Some(manifest) => {
                    let peer = self.catch_up().map_or_else(String::new, |catch_up| catch_up.from);
                    let what = format!("no image was whole; {peer} gave that of {}", manifest.position());
                    self.repairs.note(&[Repair::new(&self.dir.path().join(IMAGES), None, what)]);
                }
                None => tokio::time::sleep(fetching::RETRY).await,
            }
        }
        let Some(manifest) = from else { return Ok(()) };
        let position = manifest.position();
        self.set_newest(&manifest);
        if self.log.holds(position)? {
            return Ok(());
        }
        tracing::info!(%position, "the log doesn't reach the image: it begins anew behind it");
        self.log.purge_through(position)?;
        let (done, durable) = tokio::sync::oneshot::channel();
        self.log.flush(Box::new(move |result| drop(done.send(result))))?;
        Ok(durable.await.unwrap_or(Ok(()))?)
    }

    /// The newest image that the machine can go on from, and from which on the log is there; it has entered it.
    async fn newest_here(self: &Arc<Self>, purged: Option<Position>) -> Result<Option<SnapshotManifest>, StartError> {
        for entry in self.store.list()?.into_iter().rev() {
            let position = entry.position;
            if Some(position) < purged {
                break;
            }
            let entered = match entry.manifest {
                Ok(manifest) => self.machine_enters(position).await.map(|()| manifest),
                Err(error) => Err(error.into()),
            };
            match entered {
                Ok(manifest) => return Ok(Some(manifest)),
                // It would be counted on, and given to peers.
                Err(ImageUnusable::Damaged(error)) => {
                    tracing::error!(%position, error, "an image is damaged, and is removed");
                    self.store.remove(position)?;
                    let what = format!(
                        "the image of {position} was damaged ({error}) and is removed; an older one, or one of a peer's, does"
                    );
                    self.repairs.note(&[Repair::new(&self.dir.path().join(IMAGES), None, what)]);
                }
                Err(error) => return Err(StartError::Image { position, error }),
            }
        }
        Ok(None)
    }

    fn set_newest(&self, manifest: &SnapshotManifest) {
        let image = Image { position: manifest.position(), group: manifest.info.extra.clone() };
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Some(image);
    }

    /// The image of that position is gone, and this one is the newest.
    fn forget(&self, position: Position, left: Option<&SnapshotManifest>) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_some_and(|newest| newest.position == position) {
            *newest = left.map(|left| Image { position: left.position(), group: left.info.extra.clone() });
        }
    }

    /// Puts the image of that position into the machine.
    async fn machine_enters(self: &Arc<Self>, position: Position) -> Result<(), ImageUnusable> {
        let began = Instant::now();
        let machine = self.machine_of(position).await?;
        let (done, entered) = tokio::sync::oneshot::channel();
        if !self.applier.give(Work::Enter(Box::new(machine), done)).await || entered.await.is_err() {
            return Err(ImageUnusable::Refused("the machine stands still".into()));
        }
        tracing::info!(%position, took_ms = began.elapsed().as_millis(), "the machine goes on from an image");
        Ok(())
    }

    /// The machine that was imaged there.
    async fn machine_of(self: &Arc<Self>, position: Position) -> Result<Machine, ImageUnusable> {
        loop {
            let images = self.clone();
            let read = self.behind("image-read", move || {
                let mut reader = images.store.open_image(position)?;
                match Machine::from_image(&mut reader, images.modules.clone()) {
                    Ok(machine) => Ok(Ok(machine)),
                    Err(ImageError::Refused(Halt::ModuleMissing(hash))) => Ok(Err(hash)),
                    Err(error) => Err(ImageUnusable::from(error)),
                }
            });
            let read = read.map_err(|error| ImageUnusable::Refused(format!("can't start a thread: {error}")))?;
            match read.await.map_err(|_| ImageUnusable::Refused("reading it panicked".into()))?? {
                Ok(machine) => return Ok(machine),
                Err(hash) => (self.fetch_module)(hash).await,
            }
        }
    }

    /// A machine for one that turned out to be wrong, where the log begins after `purged`, and what it is made of: an image of a peer's, or one of
    /// this node's that are left, which are good; or nothing, as long as nothing is purged.
    pub(super) async fn machine_anew(self: &Arc<Self>, purged: Option<Position>) -> Result<(Machine, String), String> {
        let _alone = self.fetching.lock().await;
        let fetched = self.fetch_first(purged.unwrap_or_default()).await;
        let from_peer = fetched.as_ref().ok().map(|(peer, manifest)| (format!("{peer}'s image"), manifest.position()));
        let kept = self.store.list().map_err(|error| error.to_string())?;
        let own = kept.iter().rev().find(|entry| entry.manifest.is_ok() && Some(entry.position) >= purged);
        let own = own.map(|entry| ("its own image".to_owned(), entry.position));
        match from_peer.or(own) {
            Some((whose, position)) => {
                let manifest = kept.iter().find(|entry| entry.position == position);
                if let Some(manifest) = manifest.and_then(|entry| entry.manifest.as_ref().ok()) {
                    self.set_newest(manifest);
                }
                let machine =
                    self.machine_of(position).await.map_err(|error| format!("{whose} of {position}: {error}"))?;
                Ok((machine, format!("{whose} of {position}")))
            }
            None if purged.is_none() => Ok((Machine::new(self.modules.clone()), "the whole log".into())),
            None => Err(fetched.err().unwrap_or_default()),
        }
    }

    /// Removes the images that may hold a wrong state, if there are such.
    ///
    /// # Errors
    /// If they can't be removed.
    pub(super) fn clean(&self) -> Result<(), StorageError> {
        let Some(good) = self.quarantine.to_be_cleaned() else { return Ok(()) };
        let mut left = None;
        for entry in self.store.list()? {
            let position = entry.position;
            if Some(position.index) > good {
                tracing::warn!(%position, "an image of this node's may hold the wrong state, and is removed");
                self.store.remove(position)?;
            } else if let Ok(manifest) = entry.manifest {
                left = Some(manifest);
            }
        }
        let left = left.map(|left| Image { position: left.position(), group: left.info.extra });
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = left;
        self.quarantine.cleaned()
    }

    /// Runs `work` on a thread that stands back where the log and the clients want the core. Its end is told; a panic ends what is returned with an
    /// error.
    fn behind<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (done, ended) = oneshot::channel();
        self.threads.start_behind(name, Box::new(move || drop(done.send(work()))))?;
        Ok(ended)
    }

    /// Keeps so many of the newest images, and returns the index through which the log isn't needed any more.
    fn retain(&self, count: usize) -> Result<Option<LogIndex>, StorageError> {
        self.store.retain(count)?;
        let kept = self.store.list()?;
        let whole: Vec<_> = kept.iter().filter(|entry| entry.manifest.is_ok()).map(|entry| entry.position).collect();
        Ok((whole.len() >= count).then(|| whole[0].index))
    }
}

impl Images for Arc<NodeImages> {
    /// The newest that peers may have, as long as there is one: who asks for an image is told of this one's position.
    fn newest(&self) -> Option<Image> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner).clone();
        let good = self.quarantine.gives_images_to();
        let beyond = newest.as_ref().zip(good).is_some_and(|(newest, good)| newest.position.index > good);
        let given = beyond.then(|| self.store.list().ok()).flatten().and_then(|kept| {
            let mut whole = kept.into_iter().rev().filter(|entry| Some(entry.position.index) <= good);
            whole.find_map(|entry| entry.manifest.ok())
        });
        given.map(|given| Image { position: given.position(), group: given.info.extra }).or(newest)
    }

    fn get(&self, at_least: Position) -> BoxFuture<'static, Result<Image, String>> {
        let images = self.clone();
        let runtime = self.runtime.clone();
        async move {
            let got = runtime.spawn(async move { images.fetch(at_least).await });
            got.await.map_err(|error| error.to_string())?
        }
        .boxed()
    }

    fn enter(&self, at: Position) -> BoxFuture<'static, Result<(), String>> {
        let images = self.clone();
        async move {
            images.machine_enters(at).await.map_err(|error| error.to_string())?;
            images.catch_up.send_modify(|catch_up| {
                if let Some(catch_up) = catch_up.as_mut().filter(|catch_up| catch_up.position == at) {
                    catch_up.entered = true;
                }
            });
            Ok(())
        }
        .boxed()
    }
}
