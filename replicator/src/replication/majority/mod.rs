//! Majority replication: Raft (Ongaro and Ousterhout 2014), by openraft.
//!
//! An entry is committed when a majority of the voters holds it durably; 3 voters survive one failure, 5 survive two. The group
//! runs on a current-thread runtime that it shares with the server of its peers alone: heartbeats never wait for clients or for the module.
//!
//! What we add to openraft: a voter is its disk, and a replaced disk joins as learner first ([`membership`]); votes live
//! in `meta` and entries in our log ([`log_store`]); pre-vote is on, and answers for what it is asked ([`network`]); an operator's recovery
//! reads and extends a log without a group ([`offline`]).

mod log_store;
mod membership;
mod network;
pub mod offline;
mod state_machine;
mod types;

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use openraft::{
    Config, EntryPayload, Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy, alias::SnapshotOf,
    async_runtime::watch::WatchReceiver as _, errors::ClientWriteError,
};
use replicator_storage::{Log, Record};
use replicator_types::{DiskId, Epoch, LogIndex, Position, codec};
use tokio::{runtime::Handle, sync::watch};

use self::{
    log_store::LogStore,
    network::Links,
    state_machine::{Memberships, StateMachine, snapshot_meta},
    types::{
        Address, Command, TypeConfig, WireAppend, WireAppended, WireInstall, WireInstalled, WireTransfer, WireVote,
        WireVoted, encoded_command, members,
    },
};
use crate::{
    replication::{
        ApplySink, ChainView, Committed, Fate, Images, Member, PeerMessageError, Progress, ProposeError, Role,
        Strategy, View, VoteStore,
    },
    transport::{Envelope, Join, JoinAnswer, Peers},
};

/// How often a group is asked whether it has stopped. It acknowledges nothing from then on anyway.
const STOPPED_PERIOD: Duration = Duration::from_millis(100);

/// How often a log without room is asked for it.
const ROOM_PERIOD: Duration = Duration::from_millis(50);

/// How fast the group notices and decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats, milliseconds.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a follower stands, milliseconds.
    pub election_min_ms: u64,
    /// The longest, milliseconds.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_min_ms: 150, election_max_ms: 300 }
    }
}

/// What a replica needs to take part.
pub struct Parts {
    /// Which cluster and history, and which start of this replica's disk, as sender.
    pub envelope: Envelope,
    /// Its log.
    pub log: Arc<dyn Log>,
    /// Channels to the other replicas.
    pub peers: Peers,
    /// Its vote.
    pub votes: Arc<dyn VoteStore>,
    /// Where committed entries go.
    pub sink: Arc<dyn ApplySink>,
    /// Where whole states come from. None: the log is never purged.
    pub images: Option<Arc<dyn Images>>,
    /// Timeouts.
    pub timing: Timing,
}

type MajorityRaft = Raft<TypeConfig, StateMachine>;

/// A replica's part in a majority group.
pub struct Majority {
    disk: DiskId,
    log: Arc<dyn Log>,
    raft: MajorityRaft,
    view: watch::Receiver<View>,
    memberships: Memberships,
    images: Option<Arc<dyn Images>>,
}

impl Majority {
    /// Joins the group that the log and the vote tell of. All of its tasks run on `group`.
    ///
    /// # Errors
    /// If the log or the vote can't be read.
    pub async fn start(parts: Parts, group: &Handle) -> io::Result<Self> {
        let config = Config {
            cluster_name: parts.envelope.cluster.to_string(),
            heartbeat_interval: parts.timing.heartbeat_ms,
            election_timeout_min: parts.timing.election_min_ms,
            election_timeout_max: parts.timing.election_max_ms,
            enable_pre_vote: Some(true),
            // A voter is its disk: an empty log under a known id is never taken back (safety rule 1).
            allow_log_reversion: Some(false),
            // A restarted leader that resumed its term would answer reads at that term's first index, before it has applied the rest.
            enable_leader_restore: Some(false),
            // The node makes images and says how much of the log may go.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            max_payload_entries: 1_024,
            max_append_entries: Some(4_096),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let disk = parts.envelope.from;
        let (images, log) = (parts.images.clone(), parts.log.clone());
        let (raft, view, memberships) = group.spawn(build(parts, config)).await.map_err(io::Error::other)??;
        Ok(Self { disk, log, raft, view, memberships, images })
    }
}

impl Majority {
    /// Takes a voter out of the group by a committed change, if this replica leads it. Not itself.
    pub(super) async fn remove_voter(&self, disk: DiskId) -> Result<(), String> {
        membership::remove(self.raft.clone(), disk).await
    }
}

/// Runs on the group's runtime, which all of the group's tasks then share.
async fn build(parts: Parts, config: Arc<Config>) -> io::Result<(MajorityRaft, watch::Receiver<View>, Memberships)> {
    let disk = parts.envelope.from;
    let links = Links { peers: parts.peers, envelope: parts.envelope };
    let store = LogStore::new(parts.log, parts.votes)?;
    let machine = StateMachine::new(parts.sink, parts.images).map_err(io::Error::other)?;
    let memberships = machine.memberships();
    let raft = Raft::new(disk, config, links, store, machine).await.map_err(io::Error::other)?;
    tokio::spawn(membership::finish_changes(raft.clone()));
    let (publish, view) = watch::channel(view_of(&raft));
    let watched = raft.clone();
    tokio::spawn(async move {
        let mut metrics = watched.server_metrics();
        while metrics.changed().await.is_ok() {
            let view = view_of(&watched);
            publish.send_if_modified(|old| {
                let changed = *old != view;
                *old = view;
                changed
            });
        }
    });
    Ok((raft, view, memberships))
}

fn view_of(raft: &MajorityRaft) -> View {
    let metrics = raft.server_metrics().borrow_watched().clone();
    View {
        role: match metrics.state {
            ServerState::Learner => Role::Learner,
            ServerState::Follower | ServerState::Shutdown => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Primary,
        },
        epoch: Epoch(metrics.vote.leader_id.term),
        primary: metrics.current_leader,
        members: members(metrics.membership_config.membership()).into(),
    }
}

impl Strategy for Majority {
    fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    fn progress(&self) -> Progress {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.unwrap_or_default();
        Progress {
            quorum_silent_for: metrics.last_quorum_acked.map(|at| at.elapsed()),
            committed: metrics.cluster_committed.map(|id| LogIndex(id.index)),
            matched: matched.into_iter().filter_map(|(disk, id)| Some((disk, LogIndex(id?.index)))).collect(),
        }
    }

    /// Looks now and then: metrics change with every entry, and would wake whoever waits for each change.
    fn stopped(&self) -> BoxFuture<'static, String> {
        let mut metrics = self.raft.metrics();
        async move {
            loop {
                if let Err(fatal) = &metrics.borrow_watched().running_state {
                    return fatal.to_string();
                }
                // A panic drops the other end, and leaves the state as it was.
                if metrics.changed().await.is_err() {
                    return "its task has ended".to_owned();
                }
                tokio::time::sleep(STOPPED_PERIOD).await;
            }
        }
        .boxed()
    }

    fn propose(&self, entries: Vec<Bytes>) -> BoxFuture<'_, Result<BoxFuture<'static, Fate>, ProposeError>> {
        async move {
            if !self.raft.is_leader() {
                return Err(ProposeError::NotPrimary);
            }
            let commands = entries.into_iter().map(|encoded| Command(types::command(&encoded)));
            let written = self.raft.client_write_many(commands).await;
            let mut results = written.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))?;
            // A refusal comes at once; the results of what was taken come, in order, when it is applied.
            let result = async move {
                let (mut applied, mut refused, mut unknown) = (0, 0, 0);
                while let Some(result) = results.next().await {
                    match result {
                        Ok(Ok(_)) => applied += 1,
                        Ok(Err(ClientWriteError::ForwardToLeader(_))) => refused += 1,
                        _ => unknown += 1,
                    }
                }
                match (applied, refused, unknown) {
                    (_, 0, 0) => Fate::Applied,
                    (0, _, 0) => Fate::Refused,
                    _ => Fate::Unknown,
                }
            };
            Ok(result.boxed())
        }
        .boxed()
    }

    fn read_index(&self) -> BoxFuture<'_, Option<LogIndex>> {
        async move {
            let confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
            Some(LogIndex(confirmed.read_log_id().index()))
        }
        .boxed()
    }

    fn found(&self, members: Vec<Member>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let voters: BTreeMap<DiskId, Address> = members
                .into_iter()
                .map(|m| {
                    (
                        m.disk,
                        Address { node: m.node, client: m.client_address, peer: m.peer_address, witness: m.witness },
                    )
                })
                .collect();
            self.raft.initialize(voters).await.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn transfer(&self, to: DiskId) -> BoxFuture<'_, Result<(), String>> {
        async move {
            if !self.raft.is_leader() {
                return Err("this node isn't the primary".to_owned());
            }
            self.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn remove(&self, _: DiskId) -> BoxFuture<'_, Result<(), String>> {
        let why = "a majority cluster keeps the members that it was made of; to replace one, start its node with an empty folder";
        std::future::ready(Err(why.to_owned())).boxed()
    }

    fn join(&self, join: Join) -> BoxFuture<'_, JoinAnswer> {
        membership::join(&self.raft, self.disk, join).boxed()
    }

    fn on_append(&self, payloads: BoxStream<'static, Bytes>) -> BoxStream<'static, Result<Bytes, PeerMessageError>> {
        // What can't be read ends the stream: the sender opens another one and finds out where it stands.
        let requests = payloads.map(|bytes| match decoded::<WireAppend>(&bytes) {
            Ok(append) if types::are_sound(&append.0.entries) => Ok(append),
            Ok(_) => Err(PeerMessageError::Malformed("a command without its kind byte".into())),
            Err(error) => Err(error),
        });
        let requests = requests.take_while(|decoded| {
            if let Err(error) = decoded {
                tracing::warn!(%error, "dropped a replication stream");
            }
            std::future::ready(decoded.is_ok())
        });
        // What has no room waits here and not in memory: more than the log keeps would end the process.
        let log = self.log.clone();
        let requests = requests.filter_map(move |decoded| {
            let log = log.clone();
            async move {
                let append = decoded.ok()?.0;
                while !append.entries.is_empty() && log.room().stalled {
                    tokio::time::sleep(ROOM_PERIOD).await;
                }
                Some(append)
            }
        });
        let answers = self.raft.stream_append(requests).map(|answer| match answer {
            Ok(appended) => Ok(codec::encode(&WireAppended(appended)).into()),
            Err(fatal) => Err(PeerMessageError::Stopped(fatal.to_string())),
        });
        answers.boxed()
    }

    fn on_vote(&self, pre_vote: bool, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>> {
        async move {
            let WireVote(request) = decoded(&payload)?;
            let answer = if pre_vote { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
            let answer = answer.map_err(|error| PeerMessageError::Stopped(error.to_string()))?;
            Ok(codec::encode(&WireVoted(answer)).into())
        }
        .boxed()
    }

    fn on_messages(&self, _: DiskId, _: BoxStream<'static, Bytes>) -> BoxFuture<'static, Result<(), PeerMessageError>> {
        let refused = PeerMessageError::Malformed("this cluster runs in majority mode".into());
        std::future::ready(Err(refused)).boxed()
    }

    fn image_group(&self, at: Position) -> Vec<u8> {
        self.memberships.at(at)
    }

    /// openraft looks for the newest image first, as it purges nothing beyond the one that it knows.
    fn imaged(&self, purge: LogIndex) -> BoxFuture<'_, ()> {
        async move {
            // Both fail only when the group has stopped, which is told elsewhere.
            let _ = self.raft.trigger().snapshot().await;
            let known = |metrics: &RaftMetrics<TypeConfig>| metrics.snapshot.is_some_and(|id| id.index >= purge.0);
            let _ = self.raft.wait(None).metrics(known, "the image is known").await;
            let _ = self.raft.trigger().purge_log(purge.0).await;
        }
        .boxed()
    }

    fn on_install(&self, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerMessageError>> {
        async move {
            let WireInstall(vote, at_least) = decoded(&payload)?;
            let images = self.images.as_ref().ok_or_else(|| PeerMessageError::Malformed("no images here".into()))?;
            let image = images.get(at_least).await.map_err(PeerMessageError::Stopped)?;
            // What the leader has is of its own term at most; openraft panics at anything else.
            if image.position.epoch.0 > vote.leader_id.term {
                return Err(PeerMessageError::Malformed("the image is of a later term than its leader".into()));
            }
            let meta = snapshot_meta(&image).map_err(|error| PeerMessageError::Malformed(error.to_string()))?;
            let installed = self.raft.install_full_snapshot(vote, SnapshotOf::<TypeConfig, ()> { meta, snapshot: () });
            let answer = installed.await.map_err(|fatal| PeerMessageError::Stopped(fatal.to_string()))?;
            Ok(codec::encode(&WireInstalled(answer)).into())
        }
        .boxed()
    }

    fn committed(&self, record: Record) -> Result<Committed, String> {
        let at = record.position;
        let entry = types::to_entry(record).map_err(|error| format!("log entry {at} can't be read: {error}"))?;
        Ok(match entry.payload {
            EntryPayload::Normal(command) => (at, Some(encoded_command(&command))),
            EntryPayload::Membership(_) | EntryPayload::Blank => (at, None),
        })
    }

    fn stand_back(&self, back: bool) {
        self.raft.runtime_config().elect(!back);
    }

    fn chain(&self) -> Option<ChainView> {
        None
    }

    fn on_transfer(&self, payload: Bytes) -> BoxFuture<'_, Result<(), PeerMessageError>> {
        async move {
            let WireTransfer(request) = decoded(&payload)?;
            let answer = self.raft.handle_transfer_leader(request).await;
            let answer = answer.map_err(|fatal| PeerMessageError::Stopped(fatal.to_string()))?;
            answer.map_err(|refused| PeerMessageError::Stopped(refused.to_string()))
        }
        .boxed()
    }
}

fn decoded<T: codec::Format>(payload: &[u8]) -> Result<T, PeerMessageError> {
    codec::decode(payload).map_err(|error| PeerMessageError::Malformed(error.to_string()))
}
