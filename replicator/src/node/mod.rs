//! A node: one replica of one application, with everything that it owns.
//!
//! It ties a strategy, a log and a machine together, and gives the service floor plain calls. It knows no generated types.

mod applier;
mod check;
mod ephemerals;
mod founding;
mod images;
mod modules;
mod pacer;
mod peer;
mod pipeline;
#[cfg(feature = "planted-wrong-answers")]
mod planted;
mod proposals;
mod proposer;
mod quarantine;
mod queries;
mod reading;
mod reads;
mod recovery;
mod repair;
mod requests;
mod restart;
mod restoring;
mod room;
mod startup;
mod status;
pub mod stopped;
mod subscriptions;
mod upgrading;
mod waiters;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use replicator_machine::Refusal;
use replicator_storage::{DiskLog, ModuleStore, NO_ROOM, NodeDir, StorageError};
use replicator_types::{ClusterId, DiskId, Incarnation, Lineage, LogIndex, ModuleHash, Position, SessionId, codec};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    applier::AppliedState,
    founding::Founding,
    images::{CatchUp, ImageUnusable, Saving, TakenImage},
    modules::{ActivateError, Activation, ListedModule, MODULE_BYTES_MAX, RemoveModuleError, StoreModuleError},
    peer::EnvelopeError,
    pipeline::{Finished, Pipeline},
    quarantine::{Divergence, DivergentRequest, FOUND_OUT},
    queries::{Answered, MustSee, Read},
    reading::{LogReading, ReadLogError},
    recovery::{Account, KnownChain, Recovered, Recovery, RecoveryError},
    requests::{Executed, NodeError, Pending, Request},
    restart::Restart,
    restoring::{Restore, RestoreError, Restored},
    startup::StartError,
    status::{Condition, Status},
    subscriptions::{Event, Subscribed, Target},
    upgrading::UpgradeError,
};
use self::{
    applier::Applier,
    founding::FoundingCall,
    images::{NodeImages, Served},
    modules::{Fetches, Shelf},
    proposals::Proposals,
    quarantine::Quarantine,
    reads::Reader,
    repair::Repairs,
    requests::ENTRY_BYTES_MAX,
    waiters::Waiters,
};
use crate::{
    config::NodeConfig,
    replication::{Role, Strategy},
    seams::{Group, Seams},
    transport::{Envelope, Peers},
};

/// What a running replica has.
pub(crate) struct Running {
    pub(crate) strategy: Arc<dyn Strategy>,
    /// With this node as sender; who passes a message on fills in the receiver.
    pub(crate) envelope: Envelope,
    proposals: Arc<Proposals>,
    reads: mpsc::Sender<Reader>,
}

/// How far the node has come since its start.
#[derive(Clone)]
pub(crate) enum Stage {
    /// No cluster yet.
    Blank(String),
    /// Asks its peers about its disk.
    Checking(String),
    /// Takes part.
    Running(Arc<Running>),
}

/// Why a node can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What happened, and what to do.
    pub reason: String,
    /// Whether its disk can't be trusted.
    pub damage: bool,
}

/// One node.
pub struct Node {
    config: NodeConfig,
    disk: DiskId,
    incarnation: Incarnation,
    /// A random number of this start.
    start: u64,
    seams: Seams,
    dir: NodeDir,
    log: Arc<DiskLog>,
    /// The log of a chain's configuration group, once it is open.
    group_log: OnceLock<Arc<DiskLog>>,
    repairs: Arc<Repairs>,
    modules: ModuleStore,
    shelf: Arc<Shelf>,
    fetches: Fetches,
    /// Modules that were uploaded here, on their way to the others.
    uploads: mpsc::UnboundedSender<ModuleHash>,
    peers: Peers,
    /// Where replication runs, and its own channels: a connection belongs to the runtime that made it.
    group: Group,
    group_peers: Peers,
    waiters: Arc<Waiters>,
    applier: Applier,
    images: Arc<NodeImages>,
    quarantine: Arc<Quarantine>,
    stage: watch::Sender<Stage>,
    founding: mpsc::Sender<FoundingCall>,
    adoptions: mpsc::Sender<(ClusterId, Lineage)>,
    failed: watch::Sender<Option<Failed>>,
    serving: watch::Sender<bool>,
    restarted: watch::Sender<Restart>,
    /// Which peer refuses this node, and why, while it doesn't serve: the peer takes part in another history.
    refused: watch::Sender<Option<String>>,
}

impl Node {
    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its ways into the world.
    #[must_use]
    pub const fn seams(&self) -> &Seams {
        &self.seams
    }

    /// Where replication runs.
    #[must_use]
    pub const fn group(&self) -> &tokio::runtime::Handle {
        &self.group.handle
    }

    /// Its modules.
    #[must_use]
    pub const fn modules(&self) -> &ModuleStore {
        &self.modules
    }

    /// Takes an image now; durable on return.
    ///
    /// # Errors
    /// If the node takes no part yet, another image is being taken, or it can't be written.
    pub async fn take_image(&self) -> Result<TakenImage, String> {
        let running = self.running().map_err(|error| error.to_string())?;
        self.images.take(&*running.strategy, &running).await.map_err(|error| error.to_string())
    }

    /// An image for a peer; see `PeerService.FetchImage`. None: there is none of that position here.
    pub(crate) async fn serve_image(
        &self,
        at_least: Position,
        known_manifest: &[u8],
        offset: u64,
    ) -> Result<Option<Served>, StorageError> {
        let known = codec::decode(known_manifest).ok(); // Of another version: it gets ours from the beginning.
        let images = self.images.clone();
        let served = tokio::task::spawn_blocking(move || images.serve(at_least, known, offset));
        served.await.expect("opening a file doesn't panic")
    }

    /// Ends with the reason when the node can't go on: its disk failed, or it turned out to be an old copy. The process must end.
    pub async fn failed(&self) -> Failed {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(failed) = &*failed.borrow_and_update() {
                return failed.clone();
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await; // Dropped with the node, which `self` holds.
            }
        }
    }

    fn fail(&self, error: impl Into<StartError>) {
        let error = match error.into() {
            // A storage error comes here as words, if the group or a file's thread passed it on.
            StartError::Stopped(why)
                if [&*rustix::io::Errno::NOSPC.to_string(), NO_ROOM].iter().any(|it| why.contains(it)) =>
            {
                tracing::error!("{why}");
                StartError::DiskFull { dir: self.dir.path().to_owned() }
            }
            error => error,
        };
        tracing::error!("{error}");
        self.failed.send_replace(Some(Failed { reason: error.to_string(), damage: error.is_damage() }));
    }

    pub(crate) fn running(&self) -> Result<Arc<Running>, NodeError> {
        match &*self.stage.borrow() {
            Stage::Running(running) => Ok(running.clone()),
            Stage::Blank(detail) | Stage::Checking(detail) => Err(NodeError::NotReady(detail.clone())),
        }
    }

    /// The applied state, as it changes.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedState> {
        self.applier.state.clone()
    }

    /// The cluster's history.
    ///
    /// # Errors
    /// If the node has none yet.
    pub fn lineage(&self) -> Result<Lineage, NodeError> {
        Ok(self.running()?.envelope.lineage)
    }

    /// Checks that something a client holds belongs to this history. 0 passes: it wasn't said.
    ///
    /// # Errors
    /// [`NodeError::LineageMismatch`], or that the node has no history yet.
    pub fn check_lineage(&self, given: Lineage) -> Result<(), NodeError> {
        let ours = self.lineage()?;
        if given == Lineage(0) || given == ours { Ok(()) } else { Err(NodeError::LineageMismatch { given, ours }) }
    }

    /// Checks that a session was opened in this history, as far as its id tells.
    ///
    /// # Errors
    /// [`Refusal::LineageMismatch`], or that the node has no history yet.
    pub fn check_session(&self, session: SessionId) -> Result<(), NodeError> {
        if session.is_of(self.lineage()?) { Ok(()) } else { Err(Refusal::LineageMismatch.into()) }
    }

    /// The primary's name and client address, as far as this node knows.
    #[must_use]
    pub fn primary(&self) -> Option<(String, String)> {
        let running = self.running().ok()?;
        let view = running.strategy.view().borrow().clone();
        view.primary().map(|member| (member.node.clone(), member.client_address.clone()))
    }

    /// Whether this node is the primary, as far as it knows.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.running().is_ok_and(|running| running.strategy.view().borrow().role == Role::Primary)
    }

    /// Makes a cluster of blank nodes, this one among them. Returns the index of the genesis entry.
    ///
    /// # Errors
    /// If this node isn't blank or doesn't have the module, or the others can't be reached in time.
    pub async fn found(&self, founding: Founding) -> Result<LogIndex, String> {
        let (answer, founded) = oneshot::channel();
        let gone = || "this node is stopping".to_owned();
        self.founding.send((founding, answer)).await.map_err(|_| gone())?;
        founded.await.map_err(|_| gone())?
    }

    /// A deadline that many milliseconds from now.
    #[must_use]
    pub fn deadline(within: Duration) -> Instant {
        Instant::now() + within
    }
}
