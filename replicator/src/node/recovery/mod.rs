//! An operator's recovery: a stopped node's folder becomes the first of a new lineage, in which it is the only member (safety rule 3).
//!
//! Both modes, one procedure. The logs are read to their ends, which checks every byte of them; [`Account`] tells what this disk has, and what
//! of the cluster's history may be lost with the others. Then [`plan`] decides every byte that will be written, before any is, and keeps it in
//! `meta`: a recovery that is cut off anywhere is carried on from there, and the folder can't be started meanwhile.
//!
//! **What is kept:** the whole application log, also entries that were perhaps never acknowledged: nobody is left who could tell. **What is
//! new:** the disk id, as nobody shall take this disk for the one that promised things to the old members; the lineage, in `meta` and, for the
//! machine, by a logged `Recover`; in chain mode the configuration group's log, which begins anew.
//!
//! What this can't see is whether the others are dead: the operator attests it. A node of the old lineage that lives after all is
//! refused by every node of the new one, and the other way round.

mod account;
pub(super) mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use replicator_machine::{Command, Entry};
use replicator_storage::{
    DiskLog, DiskLogOptions, Log, Meta, NodeDir, SnapshotManifest, SnapshotOptions, StorageError,
};
use replicator_types::{DiskId, Lineage, Position, codec};

pub use self::account::{Account, KnownChain};
use self::plan::{Begun, Plan, STEPS, Step};
use super::{
    images::IMAGES,
    startup::{GROUP_LOG, LOG},
};
use crate::{
    config::Mode,
    replication::{
        Member,
        chain::offline::{self as group, Book},
        majority::offline::{self, Ledger, LedgerError},
    },
    seams::Seams,
};

/// Why a folder can't be recovered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Its files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// One of its logs.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Something else that it holds.
    #[error("the folder's {what} can't be read: {source}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        source: codec::CodecError,
    },
    /// A restore of it was interrupted.
    #[error(
        "{}: a restore of a saved snapshot was begun here and has not ended; run `replicator snapshot restore` with the same file and folder again, \
         or remove the folder",
        dir.display()
    )]
    Restoring {
        /// The folder.
        dir: PathBuf,
    },
    /// It can't bring anything back.
    #[error(
        "{node} holds nothing to go on from: {why}. Recover the folder of a node with the application's log, if there is one"
    )]
    Nothing {
        /// Its name.
        node: String,
        /// Why.
        why: String,
    },
}

impl RecoveryError {
    /// Whether the disk can't be trusted.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Storage(StorageError::Damaged { .. })
                | Self::Ledger(LedgerError::Storage(StorageError::Damaged { .. }) | LedgerError::Entry { .. })
                | Self::Unreadable { .. }
        )
    }
}

/// A node's folder, locked and read, and what will be done to it.
#[derive(Debug)]
pub struct Recovery {
    dir: NodeDir,
    /// None: the recovery was begun before.
    account: Option<Account>,
    plan: Plan,
}

/// A recovered folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The node's name.
    pub node: String,
    /// The new disk id.
    pub disk: DiskId,
    /// The lineage that has begun.
    pub lineage: Lineage,
    /// The names of the others, and whether each is a witness: they may join anew.
    pub others: Vec<(String, bool)>,
    /// In chain mode: a shorter chain takes no writes.
    pub least_chain: u32,
}

impl Recovery {
    /// Locks the folder and reads all of it. Changes nothing, but what any start does: a torn tail of a log is cut off.
    ///
    /// # Errors
    /// If it is in use, damaged, no node's, or holds nothing to go on from.
    pub fn open(path: &Path, seams: &Seams) -> Result<Self, RecoveryError> {
        let dir = NodeDir::open_for_recovery(path)?;
        let meta = dir.meta();
        if let Some(begun) = &meta.recovery {
            let begun = codec::decode(begun)
                .map_err(|source| RecoveryError::Unreadable { what: "interrupted recovery", source })?;
            return match begun {
                Begun::Recovery(plan) => Ok(Self { dir, account: None, plan }),
                Begun::Restore(_) => Err(RecoveryError::Restoring { dir: path.to_owned() }),
            };
        }
        let found = Findings::of(&dir, &meta)?;
        let plan = Plan::make(&meta, &found, seams)?;
        Ok(Self { dir, account: Some(Account::of(&meta, &found)), plan })
    }

    /// What the folder tells. None: a recovery of it was begun before, and will be carried on.
    #[must_use]
    pub const fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Carries the recovery out, or on. Durable on return, the lock included: the node may be started.
    ///
    /// # Errors
    /// If the disk fails. Then the folder can't be started; recover it again.
    pub fn carry_out(self) -> Result<Recovered, RecoveryError> {
        self.run(&STEPS)?;
        Ok(self.plan.outcome(&self.dir.meta().node))
    }

    pub(super) fn run(&self, steps: &[Step]) -> Result<(), StorageError> {
        steps.iter().try_for_each(|step| self.plan.take(*step, &self.dir))
    }
}

/// What the files hold.
struct Findings {
    mode: Mode,
    /// The ends of the application's log, and where its history stands.
    last: replicator_types::Position,
    lineages: Vec<Lineage>,
    /// The group whose members count: the application's, or in chain mode the configuration group.
    ledger: Ledger,
    /// In chain mode: the configuration group's log.
    chain: Option<(Book, Option<replicator_types::Position>)>,
    /// This node in the membership, in whatever disk.
    own: Member,
    /// Every other disk of it.
    others: Vec<Member>,
}

impl Findings {
    fn of(dir: &NodeDir, meta: &Meta) -> Result<Self, RecoveryError> {
        let nothing = |why: &str| RecoveryError::Nothing { node: meta.node.clone(), why: why.to_owned() };
        let chain_mode = match meta.mode.as_deref() {
            Some(mode) if mode.starts_with(&Mode::Chain.to_string()) => true,
            Some(_) => false,
            None => return Err(nothing("it never took part in a cluster")),
        };
        let log = DiskLog::open(dir, LOG, DiskLogOptions::default())?.0;
        let image = newest_image(dir, log.ends().purged)?;
        if image.is_none() && log.ends().purged.is_some() {
            return Err(nothing("its log begins after an image, and none is whole"));
        }
        let mut lineages: Vec<Lineage> = image.iter().map(|image| image.info.lineage).collect();
        let mut entry = |encoded: &[u8]| codec::decode::<Entry>(encoded).map(|entry| note(&entry, &mut lineages));
        let (ledger, chain) = if chain_mode {
            offline::for_each(&log, |record| {
                let position = record.position;
                entry(&record.payload).map_err(|source| LedgerError::Entry { position, source })
            })?;
            let group_log = DiskLog::open(dir, GROUP_LOG, DiskLogOptions::default())?.0;
            let mut book = group::read(&group_log)?;
            (std::mem::take(&mut book.ledger), Some((book, group_log.ends().last)))
        } else {
            let imaged = image.as_ref().map_or_else(|| Ok(Vec::new()), |i| offline::members_of_image(&i.info.extra));
            let imaged = imaged.map_err(|source| RecoveryError::Unreadable { what: "newest image", source })?;
            (offline::read(&log, imaged, |_, encoded| entry(encoded))?, None)
        };
        let named = |members: &mut dyn Iterator<Item = &Member>| {
            let members: Vec<&Member> = members.filter(|member| member.node == meta.node).collect();
            members.iter().find(|member| member.disk == meta.disk).or(members.first()).map(|member| (*member).clone())
        };
        let own = named(&mut ledger.members.iter()).or_else(|| named(&mut ledger.ever.values()));
        let own = own.ok_or_else(|| nothing("no entry of its log tells who the members are"))?;
        if own.witness {
            return Err(nothing("it is a witness, without application data"));
        }
        // An image that the log doesn't reach was fetched to take its place.
        let image = image.map(|image| image.position());
        let last = match image {
            Some(image) if !log.holds(image)? => Some(image),
            _ => log.ends().last,
        };
        let last = last.filter(|_| !lineages.is_empty());
        let last = last.ok_or_else(|| nothing("its log doesn't hold the beginning of the history"))?;
        let others = ledger.members.iter().filter(|member| member.disk != meta.disk).cloned().collect();
        let mode = if chain_mode { Mode::Chain } else { Mode::Majority };
        Ok(Self { mode, last, lineages, ledger, chain, own, others })
    }

    /// The name of a disk, as far as the log has ever told.
    fn name(&self, disk: DiskId) -> String {
        self.ledger.ever.get(&disk).map_or_else(|| format!("disk {disk}"), |member| member.node.clone())
    }

    fn other_names(&self) -> BTreeSet<&str> {
        self.others.iter().map(|member| member.node.as_str()).collect()
    }
}

/// The newest image that is whole, and from which on the log is there.
fn newest_image(dir: &NodeDir, purged: Option<Position>) -> Result<Option<SnapshotManifest>, StorageError> {
    let images = dir.snapshots(IMAGES, SnapshotOptions::default())?;
    let mut whole = images.list()?.into_iter().rev().filter_map(|image| image.manifest.ok());
    Ok(whole.find(|image| Some(image.position()) >= purged && images.verify(image.position()).is_ok()))
}

fn note(entry: &Entry, lineages: &mut Vec<Lineage>) {
    match &entry.command {
        Command::Genesis(genesis) if lineages.is_empty() => lineages.push(genesis.lineage),
        Command::Recover { lineage, .. } if !lineages.contains(lineage) => lineages.push(*lineage),
        _ => {}
    }
}
