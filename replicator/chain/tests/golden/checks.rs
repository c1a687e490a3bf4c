//! The invariants of docs/chain.md, checked on everything that a node orders. A violation panics with its number.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replicator_chain::{Command, Effect, Life, Message, Promise, Record, Verdict};
use replicator_types::{DiskId, LogIndex, Position};

use crate::{
    disk::{end_of, length},
    world::Node,
};

#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Every committed position, by index: one history, ever.
    pub(crate) committed: Vec<Position>,
    /// What was confirmed, in which life, for which attempt.
    equal: BTreeMap<(Promise, Life), Option<Position>>,
    /// What each position is, and follows.
    entries: BTreeMap<Position, (Bytes, Option<Position>)>,
    /// What was committed when a read was asked.
    reads: BTreeMap<u64, usize>,
    wiped: BTreeSet<DiskId>,
    /// A story puts an old copy of a folder back, so that a node may find its disk damaged.
    pub(crate) allows_damage: bool,
}

fn disk_of(nodes: &[Node], owners: &BTreeMap<DiskId, usize>, disk: DiskId) -> Option<usize> {
    owners.get(&disk).copied().filter(|node| nodes[*node].disk.id == disk)
}

impl Checks {
    pub(crate) fn wiped(&mut self, disk: DiskId) {
        self.wiped.insert(disk);
    }

    pub(crate) fn is_wiped(&self, disk: DiskId) -> bool {
        self.wiped.contains(&disk)
    }

    fn last(&self) -> Option<Position> {
        self.committed.last().copied()
    }

    /// The group has applied `command`.
    pub(crate) fn recorded(
        &mut self,
        before: &Record,
        after: &Record,
        command: &Command,
        verdict: Verdict,
        nodes: &[Node],
        owners: &BTreeMap<DiskId, usize>,
    ) {
        let (Command::Configure { epoch, attempt, chain, start }, Verdict::Done) = (command, verdict) else { return };
        assert_eq!(before.attempt.number, *attempt, "(1) the compare-and-set of another attempt");
        let next = after.configuration.as_ref().expect("just set").epoch;
        assert_eq!(next, epoch.next(), "(1) epochs follow one another");
        assert!(
            length(*start) >= self.committed.len(),
            "(6) epoch {next} starts at {start:?}, below {:?}",
            self.last()
        );
        for life in chain {
            let promise = Promise { epoch: *epoch, attempt: *attempt };
            let confirmed = self.equal.get(&(promise, *life));
            assert_eq!(confirmed, Some(start), "(1) {life} is in epoch {next} without having confirmed its start");
            let Some(node) = disk_of(nodes, owners, life.disk) else { continue };
            let disk = &nodes[node].disk;
            assert!(start.is_none_or(|start| disk.holds(start)), "(8) {life} doesn't hold {start:?}");
            assert!(self.last().is_none_or(|last| disk.holds(last)), "(6) {life} doesn't hold {:?}", self.last());
        }
        self.extend(*start);
    }

    /// All up to `position` is committed now.
    fn extend(&mut self, position: Option<Position>) {
        let mut rest = Vec::new();
        let mut next = position;
        while let Some(position) = next.filter(|position| position.index.0 >= self.committed.len() as u64) {
            rest.push(position);
            next = self.entries[&position].1;
        }
        assert_eq!(next, self.last(), "(6) {position:?} doesn't continue what was committed before");
        self.committed.extend(rest.into_iter().rev());
    }

    /// A replica has ordered `effect`, which is not carried out yet.
    pub(crate) fn effect(&mut self, node: &Node, effect: &Effect, record: &Record) {
        let (name, disk) = (&node.name, &node.disk);
        let promised = disk.promises.back().copied().unwrap_or(disk.promise);
        let configuration = record.configuration.as_ref();
        match effect {
            Effect::AppendLog(entries) => {
                let mut previous = end_of(&disk.log.0);
                for entry in entries {
                    let is = (entry.payload.clone(), previous);
                    let known = self.entries.entry(entry.position).or_insert_with(|| is.clone());
                    assert_eq!(*known, is, "(5) {name} has another {}", entry.position);
                    previous = Some(entry.position);
                }
            }
            Effect::TruncateLog(position) => {
                assert!(node.commit <= *position, "(7) {name} truncates to {position:?}, below {:?}", node.commit);
                let eligible = configuration.is_some_and(|c| c.life_of(disk.id).is_some());
                let kept = length(*position);
                assert!(
                    !eligible || kept >= self.committed.len(),
                    "(6) {name} truncates to {position:?}, below {:?}",
                    self.last()
                );
            }
            Effect::EnterImage(position) => {
                assert!(node.commit <= Some(*position), "(7) {name} goes back to an image of {position}");
                let committed = self.committed.get(position.index.0 as usize);
                assert_eq!(committed, Some(position), "(6) {name} enters an image of what isn't committed");
                assert_eq!(end_of(&disk.image), Some(*position), "{name} enters an image that it hasn't");
                assert!(disk.writes.is_empty(), "{name} enters an image while something is on its way to the log");
            }
            Effect::StorePromise(promise) => {
                assert!(*promise > promised, "(4) {name} promises {promise:?} after {promised:?}");
            }
            Effect::Send { message, .. } => self.message(node, message, promised),
            Effect::Damaged(what) => assert!(self.allows_damage, "(8) {name} is damaged: {what}"),
            _ => {}
        }
    }

    fn message(&mut self, node: &Node, message: &Message, promised: Promise) {
        let (name, disk) = (&node.name, &node.disk);
        match message {
            Message::Acknowledged { epoch, .. } | Message::Append { epoch, .. } => {
                assert!(promised.epoch < *epoch, "(3) {name} goes on in {epoch} after promising {promised:?}");
            }
            Message::Sealed { promise, last, .. } => {
                assert_eq!(
                    (disk.promise, end_of(&disk.durable)),
                    (*promise, *last),
                    "(3) {name} answers a seal too soon"
                );
            }
            Message::Equal { promise, life, last } => {
                assert_eq!((disk.promise, end_of(&disk.durable)), (*promise, *last), "(1) {name} is equal too soon");
                let before = self.equal.insert((*promise, *life), *last);
                assert!(before.is_none_or(|before| before == *last), "(1) {life} confirmed {before:?}, then {last:?}");
            }
            _ => {}
        }
    }

    /// `node` says that everything up to `position` is committed.
    pub(crate) fn committed(
        &mut self,
        node: usize,
        position: Position,
        primary_chain: Option<&[Life]>,
        nodes: &[Node],
        owners: &BTreeMap<DiskId, usize>,
        record: &Record,
    ) {
        let (name, disk) = (&nodes[node].name, &nodes[node].disk);
        assert!(disk.holds(position), "(7) {name} commits {position}, which isn't durable there");
        if let Some(known) = self.committed.get(position.index.0 as usize) {
            assert_eq!(*known, position, "(6) {name} commits another entry");
            return;
        }
        let chain = primary_chain.unwrap_or_else(|| panic!("(2) {name} commits {position}, which no primary has"));
        let now = record.configuration.iter().flat_map(|c| &c.chain);
        for life in chain.iter().chain(now) {
            if let Some(member) = disk_of(nodes, owners, life.disk) {
                assert!(
                    nodes[member].disk.holds(position),
                    "(2, 6) {name} commits {position}, and {life} doesn't hold it"
                );
            }
        }
        self.extend(Some(position));
    }

    pub(crate) fn read_asked(&mut self, number: u64) {
        self.reads.insert(number, self.committed.len());
    }

    pub(crate) fn read_confirmed(&mut self, number: u64, index: LogIndex) {
        let before = self.reads[&number];
        assert!(
            index.0 + 1 >= before as u64,
            "(9) read {number} at {index}, though {before} entries were committed before"
        );
    }
}
