//! From a folder to a running replica.
//!
//! A blank disk waits: to be founded by `replicator init`, to be let in by a primary that it asks, or to be spoken to by one. A disk that has
//! a log asks the voters about itself first. Nobody bootstraps by itself (safety rule 1).

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::FutureExt;
use replicator_chain::Promise;
use replicator_machine::{Command, Machine};
use replicator_storage::{Log, MemberMemory, NodeDir, StorageError};
use replicator_types::{ClusterId, DiskId, Lineage, ModuleHash, Position};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Applier, Node, Running, Stage, Waiters,
    applier::FetchModule,
    ephemerals::QUERIES_WAITING_MAX,
    founding::FoundingCall,
    images,
    images::{ImageUnusable, NodeImages, Policy},
    modules::{Fetches, Modules, Shelf},
    proposals::Proposals,
    proposer::Proposer,
    quarantine::Quarantine,
    reads::Reads,
    repair::{Means, Repairs, open_log},
    restart::Restart,
    waiters::Answer,
};
use crate::{
    config::{Mode, NodeConfig},
    replication::{
        Images, Member, Role, Strategy, View, VoteStore,
        chain::{self, Chain, PromiseStore},
        majority::{self, Majority},
    },
    seams::Seams,
    transport::{Envelope, Join, Peers},
};

/// Requests that one node may wait for at once, and their bytes, together.
const WAITERS_MAX: usize = 32_768;
const WAITING_BYTES_MAX: usize = 512 << 20;
/// The application log's name in the folder.
pub(super) const LOG: &str = "log";
/// The log of a chain's configuration group.
pub(super) const GROUP_LOG: &str = "configuration";
const RETRY: Duration = Duration::from_millis(300);

/// Why a node doesn't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A thread or the group.
    #[error("can't start the replication group: {0}")]
    Io(#[from] std::io::Error),
    /// The folder is an old copy of itself.
    #[error(
        "{} is an old copy of this node's folder: {peer} {what}. Its votes may be outdated, so it must not take part. \
         Start the node with --rejoin: it sets the folder's content aside and joins as a new disk, from its peers",
        dir.display()
    )]
    Regressed {
        /// The folder.
        dir: PathBuf,
        /// Who knows better.
        peer: String,
        /// What it knows.
        what: String,
    },
    /// Another disk has taken its place.
    #[error(
        "disk {disk} is no longer a member: another disk has joined as {node}. To use this folder's place again, stop \
         that one and start this node with --rejoin"
    )]
    Replaced {
        /// The name.
        node: String,
        /// This disk.
        disk: DiskId,
    },
    /// The group or its disk has failed.
    #[error("{0}")]
    Stopped(String),
    /// The disk is full.
    #[error("the disk of {} is full. Nothing acknowledged is lost; free some space, and start the node again", dir.display())]
    DiskFull {
        /// The folder.
        dir: PathBuf,
    },
    /// The machine can't go on from an image that is whole.
    #[error(
        "can't go on from the image of {position} in this node's folder: {error}. It is left as it is; use the program that wrote it"
    )]
    Image {
        /// Of what.
        position: Position,
        /// Why.
        error: ImageUnusable,
    },
    /// The folder is of a cluster with another mode.
    #[error("the folder {} is of a node of mode {stored}, and this one is of mode {configured}; correct the configuration, or the command", dir.display())]
    Mode {
        /// The folder.
        dir: PathBuf,
        /// Its mode.
        stored: String,
        /// The configured one.
        configured: String,
    },
}

impl StartError {
    /// Whether the disk can't be trusted: the process exits with 3.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Damaged { .. }) | Self::Regressed { .. } | Self::Stopped(_))
    }
}

/// The vote in `meta`.
struct MetaVotes(NodeDir);

impl VoteStore for MetaVotes {
    fn vote(&self) -> Option<Vec<u8>> {
        self.0.meta().vote.clone()
    }

    fn save_vote(&self, vote: Vec<u8>) -> Result<(), StorageError> {
        self.0.update(|meta| meta.vote = Some(vote))
    }
}

/// The promise in `meta`.
struct MetaPromises(NodeDir);

impl PromiseStore for MetaPromises {
    fn promise(&self) -> Promise {
        let (epoch, attempt) = self.0.meta().seal_attempt.unwrap_or_default();
        Promise { epoch, attempt }
    }

    fn save(&self, promise: Promise) -> Result<(), StorageError> {
        // Two may be on their way at once, and the lesser one come last: the greater one keeps it.
        self.0.update(|meta| {
            meta.sealed_epoch = meta.sealed_epoch.max(Some(promise.epoch));
            meta.seal_attempt = meta.seal_attempt.max(Some((promise.epoch, promise.attempt)));
        })
    }
}

impl Node {
    /// Opens the folder and begins to start. The returned node answers from now on, with "not ready" for a while. A damaged log is mended first, for which the
    /// peers may have to be waited for.
    ///
    /// # Errors
    /// If the folder is locked, another node's or damaged, or a thread can't be started.
    pub async fn start(config: NodeConfig, seams: Seams) -> Result<Arc<Self>, StartError> {
        let dir = NodeDir::open(&config.data_dir, config.name.as_str())?;
        let meta = dir.meta();
        if let Some(stored) = meta.mode.clone().filter(|stored| *stored != config.part()) {
            let (dir, configured) = (dir.path().to_owned(), config.part());
            return Err(StartError::Mode { dir, stored, configured });
        }
        let (peers, repairs) = (Peers::new(seams.network.clone()), Repairs::new(dir.clone()));
        let means = Means { dir: &dir, peers: &peers, configured: &config.peers, repairs: &repairs };
        let (log, report) = open_log(means, LOG, |_| ()).await?;
        // Raised before anything is sent, so that no two starts of a disk are ever taken for one (safety rule 2).
        let incarnation = dir.raise_incarnation()?;
        tracing::info!(records = report.records, bytes = report.bytes, new = report.created, "opened the log");

        dir.keep_spare_room()?;
        let modules = dir.modules()?;
        let quarantine = Arc::new(Quarantine::open(dir.clone())?);
        let waiters = Arc::new(Waiters::new(WAITERS_MAX, WAITING_BYTES_MAX));
        let source = Arc::new(Modules(modules.clone()));
        let machine = Machine::new(source.clone());
        let (missing, to_fetch) = mpsc::channel::<(ModuleHash, oneshot::Sender<()>)>(1);
        let fetch: FetchModule = Arc::new(move |hash| {
            let missing = missing.clone();
            async move {
                let (done, fetched) = oneshot::channel();
                let _ = missing.send((hash, done)).await;
                let _ = fetched.await;
            }
            .boxed()
        });
        let (ephemeral, pushed) = mpsc::channel(QUERIES_WAITING_MAX);
        let (answers, answered) = mpsc::unbounded_channel();
        tokio::spawn(send_answers(answered));
        let (applier, applying) =
            Applier::new(machine, waiters.clone(), quarantine.clone(), fetch.clone(), ephemeral, answers);
        seams.threads.start_apply("apply", applying)?;
        let group = seams.threads.start_group("group")?;

        let log = Arc::new(log);
        let images = NodeImages::open(images::Parts {
            dir: dir.clone(),
            log: log.clone(),
            modules: source,
            fetch_module: fetch,
            applier: applier.clone(),
            peers: peers.clone(),
            clock: seams.clock.clone(),
            threads: seams.threads.clone(),
            config: config.images,
            configured: config.peers.clone(),
            repairs: repairs.clone(),
            quarantine: quarantine.clone(),
        })?;
        let shelf = Shelf::new(modules.clone(), seams.threads.clone());
        let (uploads, uploaded) = mpsc::unbounded_channel();
        let (founding, foundings) = mpsc::channel(1);
        let (adoptions, adopted) = mpsc::channel(1);
        let node = Arc::new(Self {
            disk: meta.disk,
            incarnation,
            start: u64::from_le_bytes(seams.random()),
            peers,
            group_peers: Peers::new(seams.network.clone()),
            group,
            stage: watch::Sender::new(Stage::Blank("starting".into())),
            failed: watch::Sender::new(None),
            serving: watch::Sender::new(false),
            restarted: watch::Sender::new(Restart::default()),
            log,
            group_log: OnceLock::new(),
            repairs,
            refused: watch::Sender::new(None),
            config,
            seams,
            dir,
            modules,
            shelf,
            fetches: Fetches::default(),
            uploads,
            waiters,
            applier,
            images,
            quarantine,
            founding,
            adoptions,
        });
        tokio::spawn(node.clone().watch_health());
        tokio::spawn(node.clone().fetch_modules(to_fetch));
        tokio::spawn(node.clone().keep_modules(uploaded));
        tokio::spawn(node.clone().pass_on(pushed));
        let watching = node.clone();
        tokio::spawn(async move {
            let why = watching.images.disk_failed().await;
            watching.fail(StartError::Stopped(format!("the disk has failed, and may hold less than it says: {why}")));
        });
        let starting = node.clone();
        tokio::spawn(async move {
            if let Err(error) = starting.come_up(foundings, adopted).await {
                starting.fail(error);
            }
        });
        Ok(node)
    }

    async fn come_up(
        self: &Arc<Self>,
        mut foundings: mpsc::Receiver<FoundingCall>,
        mut adopted: mpsc::Receiver<(ClusterId, Lineage)>,
    ) -> Result<(), StartError> {
        // A disk without a log has promised nothing that counts, whatever cluster it was about to join.
        let meta = self.dir.meta();
        let known = meta.cluster.filter(|_| self.log.ends().last.is_some() || meta.vote.is_some());
        let mut founder = None;
        let (cluster, lineage) = match known {
            Some(cluster) => {
                self.check_disk().await?;
                cluster
            }
            None => {
                let (cluster, by) = self.wait_for_cluster(&mut foundings, &mut adopted).await;
                founder = by;
                let mode = self.config.part();
                self.dir.update(|meta| {
                    meta.cluster = Some(cluster);
                    meta.mode = Some(mode);
                })?;
                cluster
            }
        };
        self.images.clean()?;
        self.images.begin().await?;
        self.restarted.send_modify(|restart| {
            restart.own = self.last_log_index();
            restart.image = self.applier.state.borrow().index().unwrap_or_default();
        });
        tokio::spawn(self.clone().watch_restart());
        let running = self.take_part(cluster, lineage).await?;
        if let Some((founding, answer)) = founder {
            let founded = match running.strategy.found(founding.members.clone()).await {
                Ok(()) => self.begin_history(&running, founding).await,
                Err(error) => Err(error),
            };
            let _ = answer.send(founded);
        }
        // An interrupted `init` is finished by calling it again: the group is there, the genesis entry isn't.
        while let Some((founding, answer)) = foundings.recv().await {
            let begun = self.applier.state.borrow().genesis.is_some() || founding.cluster != running.envelope.cluster;
            let founded = if begun {
                Err(format!(
                    "{} belongs to cluster {} already; `init` makes new clusters only",
                    self.config.name, running.envelope.cluster
                ))
            } else {
                match self.check_founding(&founding).await {
                    Ok(()) => self.begin_history(&running, founding).await,
                    Err(error) => Err(error),
                }
            };
            let _ = answer.send(founded);
        }
        Ok(())
    }

    /// Waits until somebody makes this disk part of a cluster, asking the peers to.
    async fn wait_for_cluster(
        &self,
        foundings: &mut mpsc::Receiver<FoundingCall>,
        adopted: &mut mpsc::Receiver<(ClusterId, Lineage)>,
    ) -> ((ClusterId, Lineage), Option<FoundingCall>) {
        let mut detail = "waits for `replicator init`, or for a cluster among its peers to let it in".to_owned();
        loop {
            self.stage.send_replace(Stage::Blank(detail.clone()));
            tokio::select! {
                biased;
                Some((founding, answer)) = foundings.recv() => {
                    match self.check_founding(&founding).await {
                        Ok(()) => {
                            let lineage = Lineage(u64::from_le_bytes(self.seams.random()));
                            return ((founding.cluster, lineage), Some((founding, answer)));
                        }
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Some(cluster) = adopted.recv() => return (cluster, None),
                asked = self.ask_to_join() => match asked {
                    Ok(cluster) => return (cluster, None),
                    Err(Some(why)) => {
                        if detail != why {
                            tracing::warn!("not let in yet: {why}");
                        }
                        detail = why;
                    }
                    Err(None) => {}
                },
            }
        }
    }

    /// Asks every peer once. `Err(Some)`: a cluster is there, and refuses.
    async fn ask_to_join(&self) -> Result<(ClusterId, Lineage), Option<String>> {
        tokio::time::sleep(RETRY).await;
        let join = self.join_request();
        let mut why = None;
        for peer in &self.config.peers {
            let mut address = peer.peer_address.to_string();
            for _hop in 0..2 {
                let Ok(channel) = self.peers.channel(&address) else { break };
                let Ok(answer) = channel.join(&join, Duration::from_secs(1)).await else { break };
                match (answer.cluster, answer.accepted, answer.primary_peer_address) {
                    (Some(cluster), true, _) => return Ok(cluster),
                    (Some(_), false, Some(primary)) => address = primary,
                    (Some((cluster, _)), false, None) => {
                        why = Some(format!("cluster {cluster} doesn't let this disk in: {}", answer.detail));
                        break;
                    }
                    (None, ..) => break,
                }
            }
        }
        Err(why)
    }

    fn join_request(&self) -> Join {
        Join {
            node: self.config.name.to_string(),
            disk: self.disk,
            client_address: self.config.client_address.to_string(),
            peer_address: self.config.peer_address.to_string(),
            witness: self.config.witness,
        }
    }

    async fn take_part(self: &Arc<Self>, cluster: ClusterId, lineage: Lineage) -> Result<Arc<Running>, StartError> {
        let envelope = Envelope { cluster, lineage, from: self.disk, incarnation: self.incarnation, to: self.disk };
        let strategy = self.strategy(envelope).await?;
        let proposals = Arc::new(Proposals::default());
        let (reads, readers) = mpsc::channel(1_024);
        let (waiters, peers) = (self.waiters.clone(), self.group_peers.clone());
        let clock = self.seams.clock.clone();
        let proposer = Proposer {
            proposals: proposals.clone(),
            waiters,
            strategy: strategy.clone(),
            log: self.log.clone(),
            peers: peers.clone(),
            clock,
            envelope,
        };
        self.group.handle.spawn(proposer.run());
        self.group.handle.spawn(Reads { strategy: strategy.clone(), peers, envelope }.run(readers));
        let running = Arc::new(Running { strategy, envelope, proposals, reads });
        tokio::spawn(self.clone().watch_group(running.clone()));
        tokio::spawn(self.clone().remember_members(running.clone()));
        tokio::spawn(self.clone().register(running.clone()));
        tokio::spawn(self.clone().tick(running.clone()));
        let policy = Policy { log_bytes: self.config.images.log_bytes.0 };
        tokio::spawn(self.images.clone().keep_taking(running.clone(), policy));
        tokio::spawn(self.clone().keep_room(running.clone()));
        tokio::spawn(self.clone().watch_barrier(running.clone()));
        if !self.config.witness {
            tokio::spawn(self.clone().compare_replicas(running.clone()));
        }
        self.stage.send_replace(Stage::Running(running.clone()));
        tracing::info!(node = %self.config.name, disk = %self.disk, %cluster, %lineage, incarnation = self.incarnation.0, "takes part");
        Ok(running)
    }

    async fn strategy(&self, envelope: Envelope) -> Result<Arc<dyn Strategy>, StartError> {
        let (peers, timing) = (self.group_peers.clone(), self.config.timing);
        let (log, votes, sink) = (self.log.clone(), Arc::new(MetaVotes(self.dir.clone())), self.applier.clone());
        let sink = Arc::new(sink);
        let images: Arc<dyn Images> = Arc::new(self.images.clone());
        let group = &self.group.handle;
        Ok(match self.config.mode {
            Mode::Majority => Arc::new(
                Majority::start(
                    majority::Parts { envelope, log, peers, votes, sink, images: Some(images), timing },
                    group,
                )
                .await?,
            ),
            Mode::Chain => {
                let waiting = |why: &str| drop(self.stage.send_replace(Stage::Checking(why.to_owned())));
                let (group_log, _) = open_log(self.means(), GROUP_LOG, waiting).await?;
                let group_log = self.group_log.get_or_init(|| Arc::new(group_log)).clone();
                let parts = chain::Parts {
                    envelope,
                    log,
                    group_log,
                    peers,
                    votes,
                    promises: Arc::new(MetaPromises(self.dir.clone())),
                    sink,
                    timing,
                    images,
                    settings: chain::Settings {
                        persist_order: self.config.chain.persist_order.into(),
                        least_chain: self.config.chain.least_length,
                        witness: self.config.witness,
                    },
                };
                Arc::new(Chain::start(parts, group).await?)
            }
        })
    }

    /// Ends the process when the group can't go on.
    async fn watch_group(self: Arc<Self>, running: Arc<Running>) {
        let why = running.strategy.stopped().await;
        self.fail(StartError::Stopped(format!("the replication group has stopped: {why}")));
    }

    /// Keeps the members in `meta`, for the next start, and asks to become a voter while this disk isn't one.
    async fn remember_members(self: Arc<Self>, running: Arc<Running>) {
        let mut view = running.strategy.view();
        loop {
            let now: View = view.borrow_and_update().clone();
            let members: Vec<MemberMemory> = now.members.iter().map(memory).collect();
            if !members.is_empty() && self.dir.meta().members != members {
                let dir = self.dir.clone();
                let stored = tokio::task::spawn_blocking(move || dir.update(|meta| meta.members = members));
                if let Ok(Err(error)) = stored.await {
                    return self.fail(error);
                }
            }
            let learns = now.members.iter().any(|m| m.disk == self.disk && !m.voter);
            tokio::select! {
                changed = view.changed() => if changed.is_err() {
                    return;
                },
                _ = self.ask_to_join(), if learns || now.members.is_empty() => {}
            }
        }
    }

    /// The primary's timer: moves the session clock on, as long as there are sessions.
    async fn tick(self: Arc<Self>, running: Arc<Running>) {
        loop {
            let tick_us = self.limits().map_or(1_000_000, |limits| limits.tick_us);
            tokio::time::sleep(Duration::from_micros(tick_us)).await;
            let primary = running.strategy.view().borrow().role == Role::Primary;
            if primary && self.applier.state.borrow().wants_ticks {
                let deadline = Self::deadline(Duration::from_micros(tick_us));
                let _ = self.submit(Command::Tick, deadline).await;
            }
        }
    }
}

async fn send_answers(mut answered: mpsc::UnboundedReceiver<Vec<Answer>>) {
    while let Some(answers) = answered.recv().await {
        answers.into_iter().for_each(Answer::send);
    }
}

pub(super) fn memory(member: &Member) -> MemberMemory {
    MemberMemory {
        node: member.node.clone(),
        disk: member.disk,
        peer_address: member.peer_address.clone(),
        voter: member.voter,
    }
}
