//! What a recovery or a restore writes into a folder's logs and `meta`, decided before it writes anything, and the steps in which it does.
//!
//! Each step may be cut off anywhere and taken again: it looks at what is there first. The first one makes the folder say "recover me
//! again", the last one makes it a node's again; both replace `meta`, which is atomic.

use std::sync::mpsc;

use bytes::Bytes;
use replicator_chain::Life;
use replicator_machine::{Command, Entry};
use replicator_storage::{DiskLog, DiskLogOptions, Log, MemberMemory, Meta, NodeDir, Record, StorageError};
use replicator_types::{
    ClusterId, DiskId, Epoch, Incarnation, Lineage, Position, Seed, SessionId,
    codec::{self, Format},
};
use serde::{Deserialize, Serialize};

use super::{
    super::restoring::RestorePlan,
    super::startup::{GROUP_LOG, LOG, memory},
    Findings, Recovered, RecoveryError,
};
use crate::{
    replication::{Member, chain::offline as group, majority::offline},
    seams::Seams,
};

/// What `meta` keeps of work on a folder that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::node) enum Begun {
    /// `replicator recover`.
    Recovery(Plan),
    /// `replicator snapshot restore`.
    Restore(Box<RestorePlan>),
}

impl Format for Begun {
    const WHAT: &'static str = "interrupted recovery or restore";
    const VERSION: u8 = 2;
}

/// One of the steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Step {
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

pub(in crate::node) const STEPS: [Step; 5] = [Step::Mark, Step::Log, Step::ClearGroup, Step::Group, Step::Finish];

/// Every byte that will be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::node) struct Plan {
    /// The new cluster and its mode; None: the cluster is the folder's, and goes on.
    founds: Option<(ClusterId, String)>,
    pub(in crate::node) lineage: Lineage,
    pub(in crate::node) disk: DiskId,
    incarnation: Incarnation,
    vote: Vec<u8>,
    members: Vec<MemberMemory>,
    /// Where the application's log ends now, or the image that it begins behind, and what is appended.
    base: Position,
    pub(super) log: Vec<(Position, Bytes)>,
    /// The configuration group's whole log; empty in majority mode.
    pub(super) group: Vec<(Position, Bytes)>,
    others: Vec<(String, bool)>,
    least_chain: u32,
}

/// From where a history goes on under a new lineage, and as what.
pub(in crate::node) struct Beginning<'a> {
    /// The new cluster and its mode; None: the folder's.
    pub(in crate::node) founds: Option<(ClusterId, String)>,
    /// The disk id that the folder has, and mustn't keep.
    pub(in crate::node) old_disk: DiskId,
    pub(in crate::node) incarnation: Incarnation,
    /// This node's place, whatever the disk in it.
    pub(in crate::node) own: &'a Member,
    /// Those of the others: they vote when they have joined anew.
    pub(in crate::node) places: &'a [Member],
    /// Every lineage that is known of, and the one that ends.
    pub(in crate::node) known: &'a [Lineage],
    pub(in crate::node) replaces: Lineage,
    /// The last entry that stays.
    pub(in crate::node) base: Position,
    /// The new term is above this one, and above the base's in majority mode.
    pub(in crate::node) term: Epoch,
    /// In chain mode: the new epoch is above this one, and the shortest chain that takes writes.
    pub(in crate::node) chain: Option<(Epoch, u32)>,
}

impl Plan {
    pub(super) fn make(meta: &Meta, found: &Findings, seams: &Seams) -> Result<Self, RecoveryError> {
        let replaces = meta.cluster.map(|(_, lineage)| lineage).or(found.lineages.last().copied());
        let voted = meta.vote.as_deref().map(offline::term_of).transpose();
        let voted = voted.map_err(|source| RecoveryError::Unreadable { what: "vote", source })?.unwrap_or_default();
        let (term, chain) = match &found.chain {
            None => (voted, None),
            Some((book, group_last)) => {
                // Above all that this disk has seen, promised or could be asked for: it obeys nothing of before.
                let promised = meta.sealed_epoch.max(meta.seal_attempt.map(|(epoch, _)| epoch)).unwrap_or_default();
                let epoch = book.epoch.max(promised);
                let term = voted.max(group_last.map_or(Epoch(0), |last| last.epoch));
                (term, Some((epoch, book.record.least_chain.max(1))))
            }
        };
        let beginning = Beginning {
            founds: None,
            old_disk: meta.disk,
            incarnation: Incarnation(meta.incarnation.0 + 1),
            own: &Member { node: meta.node.clone(), ..found.own.clone() },
            places: &places(found, meta),
            known: &found.lineages,
            replaces: replaces.expect("a log with a history has a lineage"),
            base: found.last,
            term,
            chain,
        };
        Ok(Self::begin(beginning, seams))
    }

    /// Decides what to write.
    pub(in crate::node) fn begin(from: Beginning<'_>, seams: &Seams) -> Self {
        let Beginning { founds, old_disk, incarnation, own, places, known, replaces, base, term, chain } = from;
        let random = || u64::from_le_bytes(seams.random());
        let disk = DiskId(std::iter::repeat_with(random).find(|id| *id != old_disk.0).expect("random"));
        let known = || known.iter().copied().chain([replaces]);
        // 0 means none, and a session's id holds only a part of the lineage.
        let new = |lineage: &Lineage| lineage.0 != 0 && known().all(|old| !differs_not(*lineage, old));
        let lineage = std::iter::repeat_with(|| Lineage(random())).find(new).expect("random");
        let own = Member { disk, voter: true, ..own.clone() };
        let command = Command::Recover { replaces, lineage };
        let entry = Entry { time_us: seams.clock.now_us(), seed: Seed(seams.random()), command };
        let entry = codec::encode(&entry);
        let (log, group, term, least_chain) = match chain {
            None => {
                let term = term.max(base.epoch).next();
                (offline::takeover(&own, places, Some(base), term, &entry), Vec::new(), term, 1)
            }
            Some((epoch, least)) => {
                let term = term.next();
                let epoch = epoch.max(base.epoch).next();
                let end = Position { epoch, index: base.index.next() };
                let log = vec![Record { position: end, payload: entry.into() }];
                let life = Life { disk, incarnation };
                (log, group::founding(&own, places, life, term, (epoch.next(), end), least), term, least)
            }
        };
        let kept = |records: Vec<Record>| records.into_iter().map(|r| (r.position, r.payload)).collect();
        let mut others: Vec<_> = places.iter().map(|place| (place.node.clone(), place.witness)).collect();
        others.sort();
        Self {
            founds,
            lineage,
            disk,
            incarnation,
            vote: offline::vote(term, disk),
            members: [&own].into_iter().chain(places).map(memory).collect(),
            base,
            log: kept(log),
            group: kept(group),
            others,
            least_chain,
        }
    }

    pub(in crate::node) fn outcome(&self, node: &str) -> Recovered {
        Recovered {
            node: node.to_owned(),
            disk: self.disk,
            lineage: self.lineage,
            others: self.others.clone(),
            least_chain: self.least_chain,
        }
    }

    /// Takes one step; durable on return.
    pub(in crate::node) fn take(&self, step: Step, dir: &NodeDir) -> Result<(), StorageError> {
        let open = |name| DiskLog::open(dir, name, DiskLogOptions::default()).map(|(log, _)| log);
        match step {
            Step::Mark => dir.update(|meta| meta.recovery = Some(codec::encode(&Begun::Recovery(self.clone())))),
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
                let founded = self.founds.as_ref().map(|(cluster, _)| *cluster);
                meta.cluster =
                    founded.or(meta.cluster.map(|(cluster, _)| cluster)).map(|cluster| (cluster, self.lineage));
                meta.mode = self.founds.as_ref().map(|(_, mode)| mode.clone()).or(meta.mode.take());
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
