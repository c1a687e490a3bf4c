//! The task that owns a node's part in the chain: it feeds the replica and the coordinator, and carries out what they ask for, each
//! effect before the next event.

mod effects;
mod telling;

use std::{cell::RefCell, collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use replicator_chain::{
    Command, Coordinator, CoordinatorEffect, CoordinatorEvent, Event, Message, Promise, Record, Replica, Wish,
};
use replicator_storage::Log;
use replicator_types::{
    DiskId, Epoch, LogIndex, Position,
    codec::{self, Format},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot, watch,
    },
    task::JoinHandle,
    time::MissedTickBehavior,
};

use super::{
    PromiseStore, Seen, applying::Committable, founding::Founding, group, log_view::ReadLog, mesh::Mesh,
    proposals::Proposals, wishes::Wishes,
};
use crate::replication::{Fate, Images, Member, Strategy as _, View, majority::Majority};

/// Inputs handled between two looks at the clock.
const INPUTS_MAX: usize = 256;
/// Ticks between two thoughts about who should lead the group.
const LEADER_TICKS: u64 = 20;

/// What happens to a node's part in the chain.
pub(super) enum Input {
    /// A disk has sent this; another disk's holds a permit, so that a peer can't fill this node's memory.
    Wire(DiskId, Wire, Option<OwnedSemaphorePermit>),
    /// A new stream to this disk: what was sent before may be lost.
    Connected(DiskId),
    /// This node's clients, or another's, want these in the log.
    Propose(Vec<Bytes>, oneshot::Sender<Fate>),
    /// A linearizable read wants its index.
    Read(oneshot::Sender<Option<LogIndex>>),
    /// An operator wants this.
    Wish(Wish, oneshot::Sender<Result<(), String>>),
    /// The log is durable up to here.
    Durable(Option<Position>),
    /// The promise is.
    Promised(Promise),
    /// The configuration group has changed its record.
    Recorded(Record),
    /// An image was fetched; None: it couldn't be.
    ImageHere(Option<Position>),
    /// All up to here is in an image, and may leave the log.
    Purge(LogIndex),
    /// The machine has applied so much.
    Applied(LogIndex),
    /// The disk or the group has failed: nothing is acknowledged from now on.
    Failed(String),
}

/// What travels between nodes.
#[derive(Serialize, Deserialize)]
pub(super) enum Wire {
    Message(Message),
    /// For the coordinator.
    Wish(Wish),
    /// From the coordinator: it can't be, and why.
    Refused(Wish, String),
}

impl Format for Wire {
    const WHAT: &'static str = "chain message";
}

/// What the driver is given.
pub(super) struct Parts {
    pub(super) own: DiskId,
    /// None: this node is a witness.
    pub(super) replica: Option<Replica>,
    pub(super) coordinator: Coordinator,
    pub(super) log: Arc<dyn Log>,
    pub(super) promises: Arc<dyn PromiseStore>,
    pub(super) images: Arc<dyn Images>,
    pub(super) group: Arc<Majority>,
    pub(super) mesh: Mesh,
    /// For a chain that is founded by this node.
    pub(super) least_chain: u32,
    pub(super) inputs: UnboundedSender<Input>,
    pub(super) commit: watch::Sender<Committable>,
    pub(super) view: watch::Sender<View>,
    pub(super) seen: watch::Sender<Seen>,
    pub(super) failed: watch::Sender<Option<String>>,
}

/// See the module.
pub(super) struct Driver {
    parts: Parts,
    proposals: Proposals,
    reads: BTreeMap<u64, oneshot::Sender<Option<LogIndex>>>,
    next_read: u64,
    /// This node's operators'.
    wishes: Wishes,
    /// Who asked this node's coordinator for what, since it leads.
    wishers: Vec<(DiskId, Wish)>,
    members: Arc<[Member]>,
    record: Record,
    founding: Founding,
    ticks: u64,
    leader: Option<DiskId>,
    cut_off_ticks: u64,
    /// A disk is leaving the group's voters.
    removal: Option<JoinHandle<()>>,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            proposals: Proposals::default(),
            reads: BTreeMap::new(),
            next_read: 0,
            wishes: Wishes::default(),
            wishers: Vec::new(),
            members: Arc::default(),
            record: Record::default(),
            founding: Founding::default(),
            ticks: 0,
            leader: None,
            cut_off_ticks: 0,
            removal: None,
        }
    }

    /// Runs until the log or the group fails.
    pub(super) async fn run(mut self, mut inputs: UnboundedReceiver<Input>, heartbeat: Duration) {
        let mut clock = tokio::time::interval(heartbeat);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut group = self.parts.group.view();
        group.mark_changed();
        let mut batch = Vec::new();
        while self.parts.failed.borrow().is_none() {
            tokio::select! {
                biased;
                _ = clock.tick() => self.tick(),
                changed = group.changed() => match changed {
                    Ok(()) => {
                        let view = group.borrow_and_update().clone();
                        self.regroup(&view);
                    }
                    Err(_) => self.fail("the configuration group has ended".into()),
                },
                _ = inputs.recv_many(&mut batch, INPUTS_MAX) => {}
            }
            for input in batch.drain(..) {
                self.take(input);
            }
            self.tell();
        }
    }

    fn fail(&self, what: String) {
        self.parts.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(what);
            first
        });
    }

    fn take(&mut self, input: Input) {
        if self.parts.failed.borrow().is_some() {
            return; // What the replica believes of its log may not be so.
        }
        match input {
            Input::Wire(from, Wire::Message(message), _permit) => self.receive(from, message),
            Input::Wire(from, Wire::Wish(wish), _) => self.wished(from, wish),
            Input::Wire(_, Wire::Refused(wish, why), _) => self.wishes.refused(wish, &why),
            Input::Connected(disk) => self.replica(Event::Connected(disk)),
            Input::Propose(entries, fate) => {
                let number = self.proposals.ask(fate);
                self.replica(Event::Proposed { entries, number });
            }
            Input::Read(index) => {
                let number = self.next_read;
                self.next_read += 1;
                self.reads.insert(number, index);
                self.replica(Event::ReadAsked { number });
            }
            Input::Wish(wish, done) => {
                self.wishes.add(wish, done);
                self.repeat_wishes();
            }
            Input::Durable(last) => self.replica(Event::LogDurable(last)),
            Input::Promised(promise) => self.replica(Event::PromiseStored(promise)),
            Input::Recorded(record) => self.recorded(record),
            Input::ImageHere(position) => self.replica(Event::ImageHere(position)),
            Input::Purge(through) => self.purge(through),
            Input::Applied(index) => self.proposals.applied(index),
            Input::Failed(what) => self.fail(what),
        }
    }

    fn recorded(&mut self, record: Record) {
        self.record = record.clone();
        self.settle_wishes();
        if let Some(configuration) = record.configuration.clone() {
            self.replica(Event::Configured { configuration, least_chain: record.least_chain });
        }
        self.coordinate(CoordinatorEvent::Recorded(record));
    }

    /// A beat interests both: a replica that hears of a later epoch, or has a newer one to tell, says so.
    fn receive(&mut self, from: DiskId, message: Message) {
        if let Message::Beat { life, last, .. } = &message
            && self.record.configuration.is_none()
        {
            self.founding.alive(*life, *last);
        }
        match message {
            Message::Beat { .. } => {
                self.coordinate(CoordinatorEvent::Received { from, message: message.clone() });
                self.replica(Event::Received { from, message });
            }
            Message::Sealed { .. } | Message::Equal { .. } => {
                self.coordinate(CoordinatorEvent::Received { from, message });
            }
            message => self.replica(Event::Received { from, message }),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let voters = self.members.iter().filter(|member| member.voter).count();
        let cut_off = voters > 0 && 2 * self.voters_away().count() >= voters;
        self.cut_off_ticks = if cut_off { self.cut_off_ticks + 1 } else { 0 };
        if self.leads()
            && self.record.configuration.is_none()
            && let Some(chain) = self.founding.chain(&self.members)
        {
            self.propose_to_group(Command::Found {
                epoch: Epoch(1),
                chain,
                start: None,
                least_chain: self.parts.least_chain,
            });
        }
        self.replica(Event::Tick);
        self.coordinate(CoordinatorEvent::Tick);
        self.wishes.tick();
        self.repeat_wishes();
        if self.ticks.is_multiple_of(LEADER_TICKS) {
            self.prefer_witness();
        }
    }

    /// The group has another leader, or other members.
    fn regroup(&mut self, view: &View) {
        self.members = view.members.clone();
        self.parts.mesh.reach(&self.members);
        let replicas = self.members.iter().filter(|member| member.voter && !member.witness);
        self.coordinate(CoordinatorEvent::Voters(replicas.map(|member| member.disk).collect()));
        if self.leader != view.primary {
            self.leader = view.primary;
            self.wishers.clear();
            self.coordinate(CoordinatorEvent::Leading(self.leads()));
            self.replica(Event::Coordinator(self.leader));
        }
    }

    fn leads(&self) -> bool {
        self.leader == Some(self.parts.own)
    }

    /// A primary that dies shouldn't take the group's leader with it: an election would come before the repair.
    fn prefer_witness(&self) {
        if self.parts.replica.is_none() || !self.leads() {
            return;
        }
        let witness = self.members.iter().find(|m| m.witness && m.voter && self.parts.mesh.is_open(m.disk));
        let Some(disk) = witness.map(|witness| witness.disk) else { return };
        let group = self.parts.group.clone();
        tokio::spawn(async move {
            if let Err(error) = group.transfer(disk).await {
                tracing::debug!(%error, "the configuration group's leader stays a replica for now");
            }
        });
    }

    fn wished(&mut self, from: DiskId, wish: Wish) {
        if self.leads() && !self.wishers.contains(&(from, wish)) {
            self.wishers.push((from, wish));
        }
        self.coordinate(CoordinatorEvent::Wished(wish));
    }

    /// Asks the coordinator for what this node's operators want, until it has come about.
    fn repeat_wishes(&mut self) {
        self.settle_wishes();
        if let Some(leader) = self.leader {
            self.wishes.wanted().for_each(|wish| self.send(leader, Wire::Wish(wish)));
        }
    }

    fn settle_wishes(&mut self) {
        self.wishes.settle(self.record.configuration.as_ref(), &self.members);
    }

    fn send(&self, to: DiskId, wire: Wire) {
        if to == self.parts.own {
            // Not now: the event that asked for it is still being carried out.
            let _ = self.parts.inputs.send(Input::Wire(to, wire, None));
        } else {
            self.parts.mesh.send(to, codec::encode(&wire).into());
        }
    }

    fn coordinate(&mut self, event: CoordinatorEvent) {
        let mut effects = Vec::new();
        self.parts.coordinator.step(event, &mut effects);
        for effect in effects {
            match effect {
                CoordinatorEffect::Send { to, message } => self.send(to, Wire::Message(message)),
                CoordinatorEffect::Propose(command) => self.propose_to_group(command),
                CoordinatorEffect::WishDone(wish) => {
                    self.wishers.retain(|(_, asked)| *asked != wish);
                    if let Wish::Remove(disk) = wish {
                        self.remove_voter(disk);
                    }
                }
                CoordinatorEffect::WishRefused(wish, why) => {
                    let why = self.named(why);
                    for (disk, _) in self.wishers.extract_if(.., |(_, asked)| *asked == wish).collect::<Vec<_>>() {
                        self.send(disk, Wire::Refused(wish, why.clone()));
                    }
                }
                CoordinatorEffect::Regressed { disk, .. } => {
                    tracing::error!(%disk, "has lost what it had confirmed; start its node with --rejoin");
                }
            }
        }
    }

    /// Out of the chain, it leaves the group's voters too: whoever leads the group does that, and it isn't the one that leaves. One change
    /// at a time; who wishes asks until it is done.
    fn remove_voter(&mut self, disk: DiskId) {
        let under_way = self.removal.as_ref().is_some_and(|removal| !removal.is_finished());
        if under_way || !self.members.iter().any(|member| member.disk == disk) {
            return;
        }
        let group = self.parts.group.clone();
        self.removal = Some(tokio::spawn(async move {
            match group.remove_voter(disk).await {
                Ok(()) => tracing::info!(%disk, "is no member of the cluster any more"),
                Err(error) => tracing::warn!(%disk, %error, "is out of the chain, and votes on still; remove it again"),
            }
        }));
    }

    /// What becomes of it shows in the record; a lost one is proposed again.
    fn propose_to_group(&self, command: Command) {
        let group = self.parts.group.clone();
        tokio::spawn(async move {
            match group.propose(vec![group::encode(command)]).await {
                Ok(fate) => drop(fate.await),
                Err(error) => tracing::debug!(%error, "the configuration group didn't take a command"),
            }
        });
    }

    fn replica(&mut self, event: Event) {
        let Some(replica) = &mut self.parts.replica else { return };
        let unreadable = RefCell::new(None);
        let mut effects = Vec::new();
        replica.step(event, &ReadLog { log: &*self.parts.log, failed: &unreadable }, &mut effects);
        if let Some(what) = unreadable.into_inner() {
            return self.fail(what);
        }
        for effect in effects {
            if self.parts.failed.borrow().is_some() {
                return; // The effects after one that failed build on it.
            }
            self.carry_out(effect);
        }
    }
}
