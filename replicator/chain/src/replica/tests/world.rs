//! Replicas joined by queues, the group's record, and coordinators without any caution: they seal, equalise and configure at random, as far
//! as the record lets them. Invariants are checked in every step.

mod coordinators;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::{Command, Record};

/// SplitMix64: the whole run follows from the seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// What a disk was told to do and has not confirmed yet.
enum Job {
    Append(Vec<LogEntry>),
    Truncate(Option<Position>),
    Promise(Promise),
}

struct Node {
    life: Life,
    replica: Replica,
    log: MemoryLog,
    jobs: VecDeque<Job>,
    /// What a crash leaves.
    disk: MemoryLog,
    promise: Promise,
}

/// A coordinator's attempt, as far as it has come.
#[derive(Default)]
struct Round {
    promise: Promise,
    sealed: BTreeMap<Life, Option<Position>>,
    target: Option<(Option<Position>, DiskId)>,
    equal: BTreeSet<Life>,
}

/// Coordinators are disks of their own: 100 and 101.
const COORDINATORS: u64 = 100;

pub(super) struct World {
    pub(super) dice: Dice,
    order: PersistOrder,
    record: Record,
    /// All configurations that ever were.
    history: Vec<Configuration>,
    nodes: Vec<Node>,
    queues: BTreeMap<(DiskId, DiskId), VecDeque<Message>>,
    /// Of connections that were cut: may still come, in any order.
    late: Vec<(DiskId, DiskId, Message)>,
    rounds: [Round; 2],
    /// Every entry that ever was: its payload, and what it follows (5).
    known: BTreeMap<Position, (Bytes, Option<Position>)>,
    pub(super) committed: Vec<Position>,
    /// Of each read that waits: where, and how many entries were committed when it came.
    reads: BTreeMap<u64, (usize, usize)>,
    pub(super) reads_confirmed: usize,
    pub(super) epochs: u64,
    number: u64,
}

impl World {
    pub(super) fn new(seed: u64, disks: u64, founders: u64, order: PersistOrder) -> Self {
        let node = |disk| Node {
            life: life(disk),
            replica: Replica::new(life(disk), Promise::default(), order, Self::timing(), None),
            log: MemoryLog::default(),
            jobs: VecDeque::new(),
            disk: MemoryLog::default(),
            promise: Promise::default(),
        };
        let mut record = Record::default();
        let chain = (1..=founders).map(life).collect();
        record.apply(Command::Found { epoch: Epoch(1), chain, start: None, least_chain: 1 });
        Self {
            dice: Dice(seed),
            order,
            history: record.configuration.iter().cloned().collect(),
            record,
            nodes: (1..=disks).map(node).collect(),
            queues: BTreeMap::new(),
            late: Vec::new(),
            rounds: Default::default(),
            known: BTreeMap::new(),
            committed: Vec::new(),
            reads: BTreeMap::new(),
            reads_confirmed: 0,
            epochs: 1,
            number: 0,
        }
    }

    fn timing() -> Timing {
        Timing { window_entries_max: 6, message_bytes_max: 24, ..Timing::default() }
    }

    pub(super) fn node_at_random(&mut self) -> usize {
        self.dice.below(self.nodes.len())
    }

    fn step(&mut self, at: usize, event: Event) {
        let mut effects = Vec::new();
        let node = &mut self.nodes[at];
        node.replica.step(event, &node.log, &mut effects);
        for effect in effects {
            self.carry_out(at, effect);
        }
        let node = &self.nodes[at];
        let standing = node.replica.standing();
        assert!(standing.commit <= standing.durable && standing.durable <= standing.last, "{standing:?} (7)");
        assert_eq!(node.log.last(), standing.last, "the log is not as its replica believes");
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        let standing = self.nodes[at].replica.standing();
        let node = &mut self.nodes[at];
        match effect {
            Effect::AppendLog(entries) => {
                let mut before = node.log.last();
                for entry in &entries {
                    let met = self.known.entry(entry.position).or_insert((entry.payload.clone(), before));
                    assert_eq!(*met, (entry.payload.clone(), before), "two entries at {} (5)", entry.position);
                    before = Some(entry.position);
                }
                node.log.append(&entries);
                node.jobs.push_back(Job::Append(entries));
            }
            Effect::TruncateLog(last) => {
                assert!(standing.commit <= last, "{standing:?} is cut to {last:?} (7)");
                let unwritten = node.jobs.iter().any(|job| !matches!(job, Job::Promise(_)));
                assert!(!unwritten, "a truncation while something is on its way to the log");
                node.log.truncate(last);
                node.jobs.push_back(Job::Truncate(last));
            }
            Effect::StorePromise(promise) => node.jobs.push_back(Job::Promise(promise)),
            Effect::Send { to, message } => {
                let from = node.life.disk;
                if let Message::Append { epoch, .. } | Message::Acknowledged { epoch, .. } = &message {
                    let promised = node.replica.promise.epoch;
                    assert!(promised < *epoch, "{from} promised {promised} and sends {message:?} (3)");
                }
                if let Message::Acknowledged { durable, .. } = &message {
                    assert!(*durable <= node.disk.last(), "{from} acknowledges {durable:?} too early");
                }
                self.queues.entry((from, to)).or_default().push_back(message);
            }
            Effect::Committed(position) => self.check_commit(at, position),
            Effect::ReadConfirmed { number, index } => {
                let (_, before) = self.reads.remove(&number).expect("a read is confirmed once");
                assert!(
                    index.0 as usize + 1 >= before,
                    "read {number} at {index}, {before} were committed before (11)"
                );
                self.reads_confirmed += 1;
            }
            Effect::ReadRefused { number } => {
                assert!(self.reads.remove(&number).is_some(), "read {number} ended twice")
            }
            Effect::Entered(configuration) => {
                assert_eq!(node.log.last(), configuration.start, "{:?} entered {configuration:?} (8)", node.life);
                assert_eq!(node.disk.last(), configuration.start, "what it entered with is not durable (8)");
            }
            Effect::GetImage { .. } | Effect::EnterImage(_) => panic!("nothing is purged here, and {effect:?}"),
            Effect::Damaged(account) => panic!("disk {} is whole, and says: {account}", node.life),
            Effect::Accepted { .. } | Effect::Refused { .. } | Effect::Left(_) => {}
        }
    }

    /// Committed means: at every member of the epoch, durably (2); and once committed, for good.
    fn check_commit(&mut self, at: usize, position: Position) {
        let log = self.nodes[at].log.clone();
        assert_eq!(log.position(position.index), Some(position), "a commit of what the log doesn't have");
        for (index, entry) in log.entries.iter().enumerate().take(position.index.0 as usize + 1) {
            match self.committed.get(index) {
                Some(before) => assert_eq!(*before, entry.position, "two entries committed at {index} (6)"),
                None => self.committed.push(entry.position),
            }
        }
        for member in self.nodes[at].replica.standing().chain {
            let disk = &self.nodes[member.disk.0 as usize - 1].disk;
            let held = disk.position(position.index);
            assert_eq!(held, Some(position), "{position} is committed at {at}, and not durable at {member} (2)");
        }
    }

    pub(super) fn tick(&mut self, at: usize) {
        self.step(at, Event::Tick);
    }

    pub(super) fn learn(&mut self, at: usize) {
        let configuration = self.record.configuration.clone().expect("the chain is founded");
        self.step(at, Event::Configured { configuration, least_chain: self.record.least_chain });
    }

    /// This node's copy of the record lags behind the group's.
    pub(super) fn learn_late(&mut self, at: usize) {
        let back = self.dice.below(3.min(self.history.len()));
        let configuration = self.history[self.history.len() - 1 - back].clone();
        self.step(at, Event::Configured { configuration, least_chain: self.record.least_chain });
    }

    pub(super) fn propose(&mut self, at: usize, count: usize) {
        self.number += 1;
        let payload = |i| Bytes::from(format!("{}.{i}", self.number));
        let entries = (0..count).map(payload).collect();
        self.step(at, Event::Proposed { entries, number: self.number });
    }

    pub(super) fn read(&mut self, at: usize) {
        self.number += 1;
        self.reads.insert(self.number, (at, self.committed.len()));
        self.step(at, Event::ReadAsked { number: self.number });
    }

    /// The disk finishes what it was told first.
    pub(super) fn flush(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(job) = node.jobs.pop_front() else { return };
        let event = match job {
            Job::Promise(promise) => Event::PromiseStored(promise),
            Job::Append(_) | Job::Truncate(_) => Event::LogDurable(None), // Its position is not known before it is done.
        };
        node.finish(job);
        let event = if matches!(event, Event::LogDurable(_)) { Event::LogDurable(node.disk.last()) } else { event };
        self.step(at, event);
    }

    /// The process ends, with any part of what was on its way to the disk done, and begins again.
    pub(super) fn crash(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let done = self.dice.below(node.jobs.len() + 1);
        for job in std::mem::take(&mut node.jobs).into_iter().take(done) {
            node.finish(job);
        }
        node.log = node.disk.clone();
        node.life.incarnation.0 += 1;
        node.replica = Replica::new(node.life, node.promise, self.order, Self::timing(), node.log.last());
        let disk = node.life.disk;
        self.reads.retain(|_, (asked, _)| *asked != at);
        for (a, b) in self.pairs().into_iter().filter(|(a, b)| *a == disk || *b == disk) {
            self.cut(a, b);
        }
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            self.step(other, Event::Connected(disk));
        }
    }

    pub(super) fn pairs(&self) -> Vec<(DiskId, DiskId)> {
        self.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(pair, _)| *pair).collect()
    }

    /// A connection ends: of what was on it, some is lost, and some comes late.
    pub(super) fn cut(&mut self, from: DiskId, to: DiskId) {
        for message in self.queues.remove(&(from, to)).unwrap_or_default() {
            if self.dice.one_in(3) {
                self.late.push((from, to, message));
            }
        }
    }

    pub(super) fn connect(&mut self, from: DiskId, to: DiskId) {
        if from.0 < COORDINATORS {
            self.step(from.0 as usize - 1, Event::Connected(to));
        }
    }

    pub(super) fn deliver(&mut self, from: DiskId, to: DiskId) {
        if let Some(message) = self.queues.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.hand_over(from, to, message);
        }
    }

    pub(super) fn deliver_late(&mut self) {
        if !self.late.is_empty() {
            let at = self.dice.below(self.late.len());
            let (from, to, message) = self.late.swap_remove(at);
            self.hand_over(from, to, message);
        }
    }

    fn hand_over(&mut self, from: DiskId, to: DiskId, message: Message) {
        if to.0 < COORDINATORS {
            return self.step(to.0 as usize - 1, Event::Received { from, message });
        }
        let round = &mut self.rounds[(to.0 - COORDINATORS) as usize];
        match message {
            Message::Sealed { promise, life, last } if promise == round.promise && round.target.is_none() => {
                round.sealed.insert(life, last);
            }
            Message::Equal { promise, life, last } if promise == round.promise => {
                assert_eq!(round.target.map(|(target, _)| target), Some(last), "equal to what nobody asked for");
                round.equal.insert(life);
            }
            _ => {}
        }
    }

    fn coordinator_sends(&mut self, which: usize, to: DiskId, message: Message) {
        self.queues.entry((DiskId(COORDINATORS + which as u64), to)).or_default().push_back(message);
    }
}

impl Node {
    fn finish(&mut self, job: Job) {
        match job {
            Job::Append(entries) => self.disk.append(&entries),
            Job::Truncate(last) => self.disk.truncate(last),
            Job::Promise(promise) => self.promise = promise,
        }
    }
}
