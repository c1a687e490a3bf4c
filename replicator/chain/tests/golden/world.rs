//! Whole nodes, each a replica and a coordinator (a witness has no replica), joined by a network and a configuration group.
//!
//! The group is a list of commands that its record is made of; each node has applied a beginning of it. Whatever a node does is
//! checked as it happens: see `checks.rs`.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replicator_chain::{
    Command, Coordinator, CoordinatorEffect, CoordinatorEvent, Effect, Event, Life, LogEntry, Message, PersistOrder,
    Record, Replica, Timing, Wish,
};
use replicator_types::{DiskId, Incarnation, Position};

use crate::{
    checks::Checks,
    disk::{Disk, Write, end_of},
    network::{Letter, Network},
    show,
    transitions::Transitions,
};

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) disk: Disk,
    /// None: a witness, or it is down.
    pub(crate) replica: Option<Replica>,
    /// None: it is down.
    pub(crate) coordinator: Option<Coordinator>,
    pub(crate) witness: bool,
    /// How many of the group's commands it has applied.
    pub(crate) applied: usize,
    /// It is not told of more.
    pub(crate) record_held: bool,
    /// It believes to lead.
    pub(crate) leads: bool,
    /// Committed in this life.
    pub(crate) commit: Option<Position>,
}

impl Node {
    pub(crate) fn is_up(&self) -> bool {
        self.coordinator.is_some()
    }

    pub(crate) fn life(&self) -> Life {
        Life { disk: self.disk.id, incarnation: self.disk.incarnation }
    }
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    /// The record after each command of the group, the empty one first.
    pub(crate) records: Vec<Record>,
    /// What was proposed, by whom, and not committed yet.
    pub(crate) proposals: VecDeque<(usize, Command)>,
    pub(crate) group_held: bool,
    pub(crate) leader: Option<usize>,
    pub(crate) order: PersistOrder,
    pub(crate) timing: Timing,
    pub(crate) checks: Checks,
    /// Who starts hears of all that the group has decided since the beginning, one by one; else of the last of it that it had applied.
    pub(crate) replays: bool,
    /// What a script prints; None: nobody reads it.
    pub(crate) lines: Option<Vec<String>>,
    /// Messages are printed too.
    pub(crate) prints_messages: bool,
    pub(crate) transitions: Option<Transitions>,
    disks: u64,
    pub(crate) reads: u64,
    proposed: u64,
    /// Which node each disk belongs, or belonged, to.
    pub(crate) owners: BTreeMap<DiskId, usize>,
}

impl World {
    /// Nodes that are down; the last `witnesses` of them hold no log.
    pub(crate) fn new(names: &[&str], witnesses: usize, order: PersistOrder, timing: Timing) -> Self {
        let mut world = Self {
            nodes: Vec::new(),
            network: Network::default(),
            records: vec![Record::default()],
            proposals: VecDeque::new(),
            group_held: false,
            leader: None,
            order,
            timing,
            checks: Checks::default(),
            replays: false,
            lines: None,
            prints_messages: false,
            transitions: None,
            disks: 0,
            reads: 0,
            proposed: 0,
            owners: BTreeMap::new(),
        };
        for (i, name) in names.iter().enumerate() {
            let witness = i + witnesses >= names.len();
            world.nodes.push(Node {
                name: (*name).into(),
                disk: Disk::default(),
                replica: None,
                coordinator: None,
                witness,
                applied: 0,
                record_held: false,
                leads: false,
                commit: None,
            });
            world.blank(i);
        }
        world
    }

    pub(crate) fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        let Some(mut lines) = self.lines.take() else { return };
        lines.push(format!("  {}", line(self)));
        self.lines = Some(lines);
    }

    /// A new folder.
    fn blank(&mut self, node: usize) {
        self.disks += 1;
        let id = DiskId(self.disks);
        self.owners.insert(id, node);
        self.nodes[node].disk = Disk { id, ..Disk::default() };
        self.nodes[node].applied = 0;
    }

    // Nodes.

    pub(crate) fn start(&mut self, node: usize) {
        assert!(!self.nodes[node].is_up(), "{} is up", self.nodes[node].name);
        let (order, timing, n) = (self.order, self.timing, &mut self.nodes[node]);
        n.disk.incarnation = Incarnation(n.disk.incarnation.0 + 1);
        let life = n.life();
        n.coordinator = Some(Coordinator::new(life.disk, life.incarnation.0 << 32, timing));
        n.commit = None;
        if self.replays {
            n.applied = 0;
        }
        if !n.witness {
            let image = end_of(&n.disk.image);
            let replica = Replica::new(life, n.disk.promise, order, timing, end_of(&n.disk.durable));
            n.replica = Some(replica.with_image(image));
            n.commit = image;
        }
        for other in 0..self.nodes.len() {
            if other != node {
                self.reconnect(node, other, |_| 0);
            }
        }
        self.tell_voters();
        self.tell_record(node);
        self.tell_leader(node);
    }

    pub(crate) fn kill(&mut self, node: usize, kept_writes: usize) {
        let n = &mut self.nodes[node];
        n.disk.crash(kept_writes);
        n.replica = None;
        n.coordinator = None;
        n.leads = false;
        self.network.forget_to(node);
        if self.leader == Some(node) {
            self.leader = None;
        }
    }

    /// The folder is gone: a new disk, which takes the old one's place among the voters.
    pub(crate) fn wipe(&mut self, node: usize) {
        assert!(!self.nodes[node].is_up(), "{} is up", self.nodes[node].name);
        self.checks.wiped(self.nodes[node].disk.id);
        self.blank(node);
        self.tell_voters();
    }

    pub(crate) fn reconnect(&mut self, a: usize, b: usize, keeps: impl FnMut(usize) -> usize) {
        self.network.reconnect(a, b, keeps);
        if self.nodes[a].is_up()
            && self.nodes[b].is_up()
            && !self.network.is_cut((a, b))
            && !self.network.is_cut((b, a))
        {
            let (of_a, of_b) = (self.nodes[a].disk.id, self.nodes[b].disk.id);
            self.step_replica(a, Event::Connected(of_b));
            self.step_replica(b, Event::Connected(of_a));
        }
    }

    // Events.

    pub(crate) fn tick(&mut self, node: usize) {
        self.step_replica(node, Event::Tick);
        self.step_coordinator(node, CoordinatorEvent::Tick);
    }

    pub(crate) fn propose(&mut self, node: usize, payloads: Vec<Bytes>) {
        self.proposed += 1;
        let number = self.proposed;
        self.step_replica(node, Event::Proposed { entries: payloads, number });
    }

    pub(crate) fn read(&mut self, node: usize) {
        self.reads += 1;
        let number = self.reads;
        self.checks.read_asked(number);
        self.step_replica(node, Event::ReadAsked { number });
    }

    pub(crate) fn wish(&mut self, node: usize, wish: Wish) {
        self.step_coordinator(node, CoordinatorEvent::Wished(wish));
    }

    pub(crate) fn fsync(&mut self, node: usize) -> bool {
        let n = &mut self.nodes[node];
        if !n.is_up() || n.disk.held {
            return false;
        }
        if let Some(promise) = n.disk.keep_promise() {
            self.step_replica(node, Event::PromiseStored(promise));
            return true;
        }
        if let Some((source, at_least)) = n.disk.wants_image.take() {
            let image = self.image_of(source, at_least);
            let position = image.as_ref().and_then(|image| end_of(image));
            self.nodes[node].disk.image = image.unwrap_or_else(|| std::mem::take(&mut self.nodes[node].disk.image));
            self.step_replica(node, Event::ImageHere(position));
            return true;
        }
        let Some(durable) = n.disk.fsync() else { return false };
        self.step_replica(node, Event::LogDurable(durable));
        true
    }

    /// What that disk's newest image was made of, if its node is up and it is new enough.
    fn image_of(&self, disk: DiskId, at_least: Position) -> Option<Vec<LogEntry>> {
        let source = &self.nodes[*self.owners.get(&disk)?];
        let serves = source.is_up() && source.disk.id == disk && end_of(&source.disk.image) >= Some(at_least);
        serves.then(|| source.disk.image.clone())
    }

    /// Takes an image of what the node knows to be committed, and drops the log before it.
    pub(crate) fn purge(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if let Some(commit) = n.commit.filter(|commit| n.is_up() && Some(*commit) > n.disk.log.1) {
            n.disk.purge(commit);
            self.say(|world| format!("{}: purges through {commit}", world.nodes[node].name));
        }
    }

    /// The coordinator ignores what isn't for it, and so does the replica; a beat may be for both, as both know configurations.
    pub(crate) fn arrive(&mut self, to: usize, (from, message): Letter) {
        if self.prints_messages && show::is_news(&message) {
            self.say(|world| {
                let (from, to) = (show::disk(world, from), &world.nodes[to].name);
                format!("{from} > {to}: {}", show::message(world, &message))
            });
        }
        self.step_coordinator(to, CoordinatorEvent::Received { from, message: message.clone() });
        self.step_replica(to, Event::Received { from, message });
    }

    pub(crate) fn step_replica(&mut self, node: usize, event: Event) {
        let n = &mut self.nodes[node];
        let Some(replica) = &mut n.replica else { return };
        let mut effects = Vec::new();
        if let Some(transitions) = &mut self.transitions {
            let before = replica.standing();
            let kept = event.clone();
            replica.step(event, &n.disk.log, &mut effects);
            transitions.of_replica(&before, &kept, &effects, &replica.standing(), self.order);
        } else {
            replica.step(event, &n.disk.log, &mut effects);
        }
        for effect in effects {
            self.carry_out(node, effect);
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let record = self.records.last().expect("never empty");
        self.checks.effect(&self.nodes[node], &effect, record);
        if let Some(line) = self.lines.is_some().then(|| show::effect(&effect)).flatten() {
            self.say(|world| format!("{}: {line}", world.nodes[node].name));
        }
        let n = &mut self.nodes[node];
        match effect {
            Effect::AppendLog(entries) => n.disk.write(Write::Append(entries)),
            Effect::TruncateLog(position) => n.disk.write(Write::Truncate(position)),
            Effect::StorePromise(promise) => n.disk.promises.push_back(promise),
            Effect::Send { to, message } => self.send(node, to, message),
            Effect::Committed(position) => {
                n.commit = Some(position);
                let standing = n.replica.as_ref().map(Replica::standing);
                let primary = standing.filter(|s| s.chain.first() == Some(&n.life()) && s.epoch == position.epoch);
                let chain = primary.as_ref().map(|standing| &standing.chain[..]);
                let record = self.records.last().expect("never empty");
                self.checks.committed(node, position, chain, &self.nodes, &self.owners, record);
            }
            Effect::GetImage { from, at_least } => n.disk.wants_image = Some((from, at_least)),
            Effect::EnterImage(position) => {
                n.commit = Some(position);
                let image = n.disk.image.clone();
                n.disk.write(Write::Enter(image));
            }
            Effect::ReadConfirmed { number, index } => self.checks.read_confirmed(number, index),
            Effect::Damaged(_) => self.kill(node, 0),
            Effect::Accepted { .. }
            | Effect::Refused { .. }
            | Effect::ReadRefused { .. }
            | Effect::Entered(_)
            | Effect::Left(_) => {}
        }
    }

    pub(crate) fn step_coordinator(&mut self, node: usize, event: CoordinatorEvent) {
        let Some(coordinator) = &mut self.nodes[node].coordinator else { return };
        let mut effects = Vec::new();
        if let Some(transitions) = &mut self.transitions {
            let before = coordinator.phase();
            let recorded = matches!(event, CoordinatorEvent::Recorded(_));
            coordinator.step(event, &mut effects);
            transitions.of_coordinator(&before, recorded, &effects, &coordinator.phase());
        } else {
            coordinator.step(event, &mut effects);
        }
        for effect in effects {
            if let Some(line) = self.lines.is_some().then(|| show::coordinator_effect(self, &effect)).flatten() {
                self.say(|world| format!("{}: {line}", world.nodes[node].name));
            }
            match effect {
                CoordinatorEffect::Propose(command) => self.proposals.push_back((node, command)),
                CoordinatorEffect::Send { to, message } => self.send(node, to, message),
                CoordinatorEffect::WishDone(_)
                | CoordinatorEffect::WishRefused(..)
                | CoordinatorEffect::Regressed { .. } => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: DiskId, message: Message) {
        let Some(&owner) = self.owners.get(&to) else { return };
        if self.nodes[owner].disk.id == to && self.nodes[owner].is_up() {
            let disk = self.nodes[from].disk.id;
            self.network.send((from, owner), (disk, message));
        }
    }
}
