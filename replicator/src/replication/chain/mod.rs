//! Chain replication: `docs/chain.md`, by `replicator-chain`, between files and peers.
//!
//! An entry is committed when every member of the current chain holds it durably; who is in the chain, a configuration group decides: a
//! small Raft group of the replicas and the witnesses ([`group`]). One task owns the protocol ([`driver`]); messages between
//! disks are fire and forget ([`mesh`]). All of it runs on the group's runtime.

mod applying;
mod driver;
mod founding;
mod group;
mod log_view;
mod mesh;
pub mod offline;
mod proposals;
mod wishes;

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use replicator_chain::{Coordinator, Life, PersistOrder, Promise, Replica, Standing, Timing, Wish};
use replicator_storage::{Log, Record, StorageError};
use replicator_types::{DiskId, Epoch, LogIndex, Position, codec};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot, watch},
};

use self::{
    applying::{Applying, Committable},
    driver::{Driver, Input, Wire},
    group::RecordSink,
    mesh::Mesh,
};
use super::{
    ApplySink, ChainLink, ChainView, Committed, Fate, Images, Member, PeerMessageError, Progress, ProposeError, Role,
    Strategy, View, VoteStore,
    majority::{self, Majority},
};
use crate::transport::{Envelope, Join, JoinAnswer, Peers};

/// Messages of peers that may wait for the driver.
const WIRE_WAITING_MAX: usize = 1_024;

/// Where a disk keeps its promise: durable before it is answered (safety rule 4).
pub trait PromiseStore: Send + Sync + 'static {
    /// The last saved promise.
    fn promise(&self) -> Promise;

    /// Replaces it. Durable on return.
    ///
    /// # Errors
    /// If it may not be durable. The process must end.
    fn save(&self, promise: Promise) -> Result<(), StorageError>;
}

/// What a node needs to take part in a chain.
pub struct Parts {
    /// Which cluster and history, and which start of this disk, as sender.
    pub envelope: Envelope,
    /// The application's log.
    pub log: Arc<dyn Log>,
    /// The configuration group's.
    pub group_log: Arc<dyn Log>,
    /// Channels to the other nodes.
    pub peers: Peers,
    /// The vote in the configuration group.
    pub votes: Arc<dyn VoteStore>,
    /// The promise in the chain.
    pub promises: Arc<dyn PromiseStore>,
    /// Where committed entries go.
    pub sink: Arc<dyn ApplySink>,
    /// Timeouts of the configuration group; its heartbeat is the chain's tick.
    pub timing: majority::Timing,
    /// Where whole states come from.
    pub images: Arc<dyn Images>,
    /// How the chain goes on.
    pub settings: Settings,
}

/// What can be chosen about a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// When the primary writes its own log.
    pub persist_order: PersistOrder,
    /// A chain that begins shorter takes no writes.
    pub least_chain: u32,
    /// Whether this node is a witness.
    pub witness: bool,
}

/// What the driver shows of itself.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// None: this node is a witness.
    standing: Option<Standing>,
    epoch: Epoch,
    chain: Vec<Life>,
    detail: String,
    coordinator: Option<DiskId>,
}

/// A node's part in a chain.
pub struct Chain {
    group: Arc<Majority>,
    inputs: mpsc::UnboundedSender<Input>,
    wire_permits: Arc<Semaphore>,
    view: watch::Receiver<View>,
    seen: watch::Receiver<Seen>,
    failed: watch::Receiver<Option<String>>,
    tick: Duration,
}

impl Chain {
    /// Takes part in the chain that the two logs and the promise tell of. All tasks run on `group`.
    ///
    /// # Errors
    /// If a log or the vote can't be read.
    pub async fn start(parts: Parts, group: &Handle) -> io::Result<Self> {
        let (inputs, incoming) = mpsc::unbounded_channel();
        let own = parts.envelope.from;
        let tick = Duration::from_millis(parts.timing.heartbeat_ms);
        let group_parts = majority::Parts {
            envelope: parts.envelope,
            log: parts.group_log,
            peers: parts.peers.clone(),
            votes: parts.votes,
            sink: RecordSink::new(inputs.clone()),
            images: None,
            timing: parts.timing,
        };
        let majority = Arc::new(Majority::start(group_parts, group).await?);
        let life = Life { disk: own, incarnation: parts.envelope.incarnation };
        let timing = Timing::default();
        let Settings { persist_order, least_chain, witness } = parts.settings;
        let image = parts.images.newest().map(|image| image.position);
        let replica = (!witness).then(|| {
            let last = parts.log.ends().last;
            Replica::new(life, parts.promises.promise(), persist_order, timing, last).with_image(image)
        });
        let role = if witness { Role::Witness } else { Role::Learner };
        let first = View { role, epoch: Epoch(0), primary: None, members: Arc::default() };
        let (view, viewed) = watch::channel(first);
        let (seen, shown) = watch::channel(Seen::default());
        let (fail, failed) = watch::channel(None);
        let (commit, committed) = watch::channel(Committable { image, to: image });
        let applying = Applying {
            log: parts.log.clone(),
            sink: parts.sink,
            images: parts.images.clone(),
            inputs: inputs.clone(),
            next: image.map_or(LogIndex(0), |image| image.index.next()),
        };
        group.spawn(applying.run(committed));
        let driver = driver::Parts {
            own,
            replica,
            // A nonce tells this life's grants from those of all others.
            coordinator: Coordinator::new(own, parts.envelope.incarnation.0 << 32, timing),
            log: parts.log,
            promises: parts.promises,
            images: parts.images,
            group: majority.clone(),
            mesh: Mesh::new(parts.peers, parts.envelope, inputs.clone(), tick),
            least_chain,
            inputs: inputs.clone(),
            commit,
            view,
            seen,
            failed: fail,
        };
        group.spawn(Driver::new(driver).run(incoming, tick));
        let wire_permits = Arc::new(Semaphore::new(WIRE_WAITING_MAX));
        Ok(Self { group: majority, inputs, wire_permits, view: viewed, seen: shown, failed, tick })
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(input(answer)).ok()?;
        answered.await.ok()
    }

    fn wish(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>> {
        let asked = self.ask(move |done| Input::Wish(wish, done));
        asked.map(|done| done.unwrap_or_else(|| Err("this node is stopping".to_owned()))).boxed()
    }
}

impl Strategy for Chain {
    fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    fn progress(&self) -> Progress {
        let Some(standing) = self.seen.borrow().standing.clone() else { return Progress::default() };
        let link = standing.link;
        let behind = standing.chain.iter().skip_while(|life| Some(life.disk) != link.map(|link| link.to));
        let matched = link.map(|link| behind.map(|life| (life.disk, link.durable)).collect());
        Progress {
            committed: standing.commit.map(|commit| commit.index),
            quorum_silent_for: link.map(|link| self.tick * link.silent_ticks),
            matched: matched.unwrap_or_default(),
        }
    }

    fn stopped(&self) -> BoxFuture<'static, String> {
        let (group, mut failed) = (self.group.stopped(), self.failed.clone());
        async move {
            let own = async {
                match failed.wait_for(Option::is_some).await {
                    Ok(what) => what.clone().unwrap_or_default(),
                    Err(_) => "its task has ended".to_owned(),
                }
            };
            tokio::select! {
                what = group => what,
                what = own => what,
            }
        }
        .boxed()
    }

    fn propose(&self, entries: Vec<Bytes>) -> BoxFuture<'_, Result<BoxFuture<'static, Fate>, ProposeError>> {
        let given = if self.view.borrow().role == Role::Primary {
            let (fate, told) = oneshot::channel();
            match self.inputs.send(Input::Propose(entries, fate)) {
                Ok(()) => Ok(told.map(|fate| fate.unwrap_or(Fate::Unknown)).boxed()),
                Err(_) => Err(ProposeError::Stopped("its task has ended".into())),
            }
        } else {
            Err(ProposeError::NotPrimary)
        };
        std::future::ready(given).boxed()
    }

    fn read_index(&self) -> BoxFuture<'_, Option<LogIndex>> {
        self.ask(Input::Read).map(Option::flatten).boxed()
    }

    /// Founds the configuration group. The chain itself is founded by whoever comes to lead that, once all replicas are there.
    fn found(&self, members: Vec<Member>) -> BoxFuture<'_, Result<(), String>> {
        self.group.found(members)
    }

    fn transfer(&self, to: DiskId) -> BoxFuture<'_, Result<(), String>> {
        self.wish(Wish::Primary(to))
    }

    fn remove(&self, disk: DiskId) -> BoxFuture<'_, Result<(), String>> {
        self.wish(Wish::Remove(disk))
    }

    fn join(&self, join: Join) -> BoxFuture<'_, JoinAnswer> {
        self.group.join(join)
    }

    fn on_append(&self, payloads: BoxStream<'static, Bytes>) -> BoxStream<'static, Result<Bytes, PeerMessageError>> {
        self.group.on_append(payloads)
    }

    fn on_vote(&self, pre_vote: bool, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>> {
        self.group.on_vote(pre_vote, payload)
    }

    fn on_transfer(&self, payload: Bytes) -> BoxFuture<'_, Result<(), PeerMessageError>> {
        self.group.on_transfer(payload)
    }

    fn on_messages(
        &self,
        from: DiskId,
        mut payloads: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<(), PeerMessageError>> {
        let (inputs, permits) = (self.inputs.clone(), self.wire_permits.clone());
        async move {
            while let Some(payload) = payloads.next().await {
                let wire = codec::decode::<Wire>(&payload);
                let wire = wire.map_err(|error| PeerMessageError::Malformed(error.to_string()))?;
                let permit = permits.clone().acquire_owned().await.ok();
                if inputs.send(Input::Wire(from, wire, permit)).is_err() {
                    return Err(PeerMessageError::Stopped("its task has ended".into()));
                }
            }
            Ok(())
        }
        .boxed()
    }

    /// Nothing: who is in the chain, the group knows.
    fn image_group(&self, _: Position) -> Vec<u8> {
        Vec::new()
    }

    fn imaged(&self, purge: LogIndex) -> BoxFuture<'_, ()> {
        let _ = self.inputs.send(Input::Purge(purge)); // Fails only when the node ends.
        std::future::ready(()).boxed()
    }

    fn on_install(&self, _: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>> {
        let refused = PeerMessageError::Malformed("this cluster runs in chain mode".into());
        std::future::ready(Err(refused)).boxed()
    }

    fn committed(&self, record: Record) -> Result<Committed, String> {
        Ok((record.position, Some(record.payload)))
    }

    /// Who becomes the primary is the chain's order: there is nothing to stand back from.
    fn stand_back(&self, _: bool) {}

    fn chain(&self) -> Option<ChainView> {
        let seen = self.seen.borrow().clone();
        let link = seen.standing.as_ref().and_then(|standing| standing.link).map(|link| ChainLink {
            to: link.to,
            sent: link.sent,
            received: link.received,
            durable: link.durable,
            silent_for: self.tick * link.silent_ticks,
        });
        Some(ChainView {
            epoch: seen.epoch,
            members: seen.chain.iter().map(|life| (life.disk, life.incarnation)).collect(),
            sealed: seen.standing.map(|standing| standing.promise.epoch).unwrap_or_default(),
            link,
            detail: seen.detail,
            coordinator: seen.coordinator,
        })
    }
}
