//! What a recovery writes, decided before it writes anything, and the steps in which it does.
//!
//! Each step may be cut off anywhere and taken again: it looks at what is there first. The first one makes the folder say "recover me
//! again", the last one makes it a node's again; both replace `meta`, which is atomic.

use std::sync::mpsc;

use bytes::Bytes;
use replicator_chain::Life;
use replicator_machine::{Command, Entry};
use replicator_storage::{DiskLog, DiskLogOptions, Log, MemberMemory, Meta, NodeDir, Record, StorageError};
use replicator_types::{
    DiskId, Epoch, Incarnation, Lineage, Position, Seed, SessionId,
    codec::{self, Format},
};
use serde::{Deserialize, Serialize};

use super::{
    super::startup::{GROUP_LOG, LOG, memory},
    Findings, Recovered, RecoveryError,
};
use crate::{
    replication::{Member, chain::offline as group, majority::offline},
    seams::Seams,
};

/// One of the steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The plan into `meta`.
    Mark,
    /// The end of the application's log.
    Log,
    /// Everything out of the configuration group's log.
    ClearGroup,
    /// The configuration group's new log.
    Group,
    /// The new identity into `meta`, and the plan out of it.
    Finish,
}

pub(super) const STEPS: [Step; 5] = [Step::Mark, Step::Log, Step::ClearGroup, Step::Group, Step::Finish];

/// Every byte that will be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) lineage: Lineage,
    pub(super) disk: DiskId,
    incarnation: Incarnation,
    vote: Vec<u8>,
    members: Vec<MemberMemory>,
    /// Where the application's log ends now, and what is appended.
    base: Position,
    pub(super) log: Vec<(Position, Bytes)>,
    /// The configuration group's whole log; empty in majority mode.
    pub(super) group: Vec<(Position, Bytes)>,
    others: Vec<(String, bool)>,
    least_chain: u32,
}

impl Format for Plan {
    const WHAT: &'static str = "recovery plan";
}

impl Plan {
    pub(super) fn make(meta: &Meta, found: &Findings, seams: &Seams) -> Result<Self, RecoveryError> {
        let random = || u64::from_le_bytes(seams.random());
        let disk = DiskId(std::iter::repeat_with(random).find(|id| *id != meta.disk.0).expect("random"));
        let replaces = meta.cluster.map(|(_, lineage)| lineage).or(found.lineages.last().copied());
        let replaces = replaces.expect("a log with a history has a lineage");
        let known = || found.lineages.iter().copied().chain([replaces]);
        // 0 means none, and a session's id holds only a part of the lineage.
        let new = |lineage: &Lineage| lineage.0 != 0 && known().all(|old| !differs_not(*lineage, old));
        let lineage = std::iter::repeat_with(|| Lineage(random())).find(new).expect("random");
        let incarnation = Incarnation(meta.incarnation.0 + 1);
        let own = Member { node: meta.node.clone(), disk, voter: true, ..found.own.clone() };
        let places = places(found, meta);
        let command = Command::Recover { replaces, lineage };
        let entry = Entry { time_us: seams.clock.now_us(), seed: Seed(seams.random()), command };
        let entry = codec::encode(&entry);

        let voted = meta.vote.as_deref().map(offline::term_of).transpose();
        let voted = voted.map_err(|source| RecoveryError::Unreadable { what: "vote", source })?.unwrap_or_default();
        let base = found.last;
        let (log, group, term, least_chain) = match &found.chain {
            None => {
                let term = voted.max(base.epoch).next();
                (offline::takeover(&own, &places, Some(base), term, &entry), Vec::new(), term, 1)
            }
            Some((book, group_last)) => {
                let term = voted.max(group_last.map_or(Epoch(0), |last| last.epoch)).next();
                // Above all that this disk has seen, promised or could be asked for: it obeys nothing of before.
                let promised = meta.sealed_epoch.max(meta.seal_attempt.map(|(epoch, _)| epoch)).unwrap_or_default();
                let epoch = book.epoch.max(base.epoch).max(promised).next();
                let end = Position { epoch, index: base.index.next() };
                let log = vec![Record { position: end, payload: entry.into() }];
                let least = book.record.least_chain.max(1);
                let life = Life { disk, incarnation };
                (log, group::founding(&own, &places, life, term, (epoch.next(), end), least), term, least)
            }
        };
        let kept = |records: Vec<Record>| records.into_iter().map(|r| (r.position, r.payload)).collect();
        let mut others: Vec<_> = places.iter().map(|place| (place.node.clone(), place.witness)).collect();
        others.sort();
        Ok(Self {
            lineage,
            disk,
            incarnation,
            vote: offline::vote(term, disk),
            members: [&own].into_iter().chain(&places).map(memory).collect(),
            base,
            log: kept(log),
            group: kept(group),
            others,
            least_chain,
        })
    }

    pub(super) fn outcome(&self, node: &str) -> Recovered {
        Recovered {
            node: node.to_owned(),
            disk: self.disk,
            lineage: self.lineage,
            others: self.others.clone(),
            least_chain: self.least_chain,
        }
    }

    /// Takes one step; durable on return.
    pub(super) fn take(&self, step: Step, dir: &NodeDir) -> Result<(), StorageError> {
        let open = |name| DiskLog::open(dir, name, DiskLogOptions::default()).map(|(log, _)| log);
        match step {
            Step::Mark => dir.update(|meta| meta.recovery = Some(codec::encode(self))),
            Step::Log => {
                let log = open(LOG)?;
                if log.ends().last != self.log.last().map(|(end, _)| *end) {
                    if log.holds(self.base)? {
                        log.truncate_after(Some(self.base))?;
                    } else {
                        log.purge_through(self.base)?; // It is an image's, and the log never came so far.
                    }
                    append(&log, &self.log)?;
                }
                Ok(())
            }
            Step::ClearGroup | Step::Group if self.group.is_empty() => Ok(()),
            // A term that nobody had before tells the new log's end from any of the old one's.
            Step::ClearGroup => {
                let log = open(GROUP_LOG)?;
                if log.ends().last != self.group.last().map(|(end, _)| *end) {
                    log.truncate_after(None)?;
                    append(&log, &[])?;
                }
                Ok(())
            }
            Step::Group => {
                let log = open(GROUP_LOG)?;
                if log.ends().last != self.group.last().map(|(end, _)| *end) {
                    append(&log, &self.group)?;
                }
                Ok(())
            }
            Step::Finish => dir.update(|meta| {
                meta.recovery = None;
                meta.disk = self.disk;
                meta.cluster = meta.cluster.map(|(cluster, _)| (cluster, self.lineage));
                meta.incarnation = self.incarnation;
                meta.vote = Some(self.vote.clone());
                meta.peers.clear();
                meta.members.clone_from(&self.members);
            }),
        }
    }
}

/// The other names' places, one for each name: a disk that votes before one that learns.
fn places(found: &Findings, meta: &Meta) -> Vec<Member> {
    let mut places: Vec<Member> = Vec::new();
    for voter in [true, false] {
        for member in found.others.iter().filter(|member| member.voter == voter && member.node != meta.node) {
            if !places.iter().any(|place| place.node == member.node) {
                places.push(Member { voter: false, ..member.clone() });
            }
        }
    }
    places
}

/// Whether a session of `old` could be taken for one of `lineage`.
fn differs_not(lineage: Lineage, old: Lineage) -> bool {
    let mut of_old = SessionId::default();
    of_old.0[..SessionId::LINEAGE_BYTES].copy_from_slice(&old.0.to_le_bytes()[..SessionId::LINEAGE_BYTES]);
    of_old.is_of(lineage)
}

/// Appends, and waits until all of the log is durable.
fn append(log: &DiskLog, entries: &[(Position, Bytes)]) -> Result<(), StorageError> {
    let records = entries.iter().map(|(position, payload)| Record { position: *position, payload: payload.clone() });
    let (done, durable) = mpsc::channel();
    log.append(records.collect(), Box::new(move |result| drop(done.send(result))))?;
    durable.recv().expect("a log calls everybody who waits for it")
}
