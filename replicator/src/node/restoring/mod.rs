//! A saved snapshot becomes the first node of a new cluster (safety rule 3).
//!
//! [`Restore::open`] reads and checks all of the file before anything is written, to the point that the machine has really gone on from it.
//! Then every byte to be written is decided and kept in `meta`, as a recovery does ([`super::recovery`]): until the last step the folder is no node's,
//! and a restore that was cut off anywhere is carried on by the same command.
//!
//! **What is kept:** state, retained pushes, time, digest and position: the log goes on behind the image. **What is new:** cluster, lineage and disk id, so
//! nobody of the old cluster and nobody's session or cursor is taken for one of the new. Its first entry behind the image is a `Recover`, where
//! all sessions close. The node leads alone; the others of its configuration have places without a vote, and join as new disks.

mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use replicator_machine::{ImageError, Machine, ModuleSource};
use replicator_storage::{NodeDir, SavedHead, SavedSnapshot, StorageError};
use replicator_types::{ClusterId, DiskId, Lineage, ModuleHash, codec};

pub(super) use self::plan::RestorePlan;
use self::plan::{Asked, Step};
use super::recovery::plan::Begun;
use crate::{
    config::{Mode, NodeConfig},
    seams::Seams,
};

/// Why a snapshot isn't restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file, or the folder.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is whole, and the machine can't go on from the image in it.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// The file says something else than the image in it.
    #[error("{}: its head says that the image's {what}. Nothing was changed; save the snapshot again", path.display())]
    Contradicts {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// The node's settings allow no such cluster.
    #[error("{0}. Nothing was changed")]
    Settings(String),
    /// Something else was begun in this folder.
    #[error("{}: {what} was begun here and has not ended. Nothing was changed; {instead}", dir.display())]
    OtherBegun {
        /// The folder.
        dir: PathBuf,
        /// What.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// What was begun in this folder can't be read.
    #[error("{}: what was begun here can't be read: {source}. Remove the folder, and restore into an empty one", dir.display())]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: codec::CodecError,
    },
}

impl RestoreError {
    /// Whether the file or the folder isn't as it was written.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Storage(error) => matches!(
                error,
                StorageError::DamagedSave { .. }
                    | StorageError::DamagedSnapshot { .. }
                    | StorageError::Damaged { .. }
                    | StorageError::Version { .. }
            ),
            Self::Image { source, .. } => !matches!(source, ImageError::Refused(_)),
            Self::Contradicts { .. } => true,
            Self::Settings(_) | Self::OtherBegun { .. } | Self::Unreadable { .. } => false,
        }
    }
}

/// A saved snapshot that was read to its end, and is whole.
#[derive(Debug)]
pub struct Restore {
    saved: SavedSnapshot,
    modules: Vec<Bytes>,
    lineages: Vec<Lineage>,
}

/// A restored folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The node's name.
    pub node: String,
    /// Its disk.
    pub disk: DiskId,
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its history.
    pub lineage: Lineage,
    /// The names of the others, and whether each is a witness: they join as new disks.
    pub others: Vec<(String, bool)>,
    /// In chain mode: a shorter chain takes no writes.
    pub least_chain: u32,
    /// Whether it was begun before, and carried on.
    pub carried_on: bool,
}

impl Restore {
    /// Reads all of the file and checks it; the machine goes on from its image, as a trial. Writes nothing.
    ///
    /// # Errors
    /// If the file is damaged, of another version or none, with the place; or if this program can't go on from its image.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let saved = SavedSnapshot::open(path)?;
        saved.verify()?;
        let modules = saved.modules()?;
        let hashes = saved.head().modules.iter().map(|module| module.hash);
        let held = Held(hashes.zip(modules.iter().cloned()).collect());
        let machine = Machine::from_image(&mut saved.image()?, Arc::new(held));
        let machine = machine.map_err(|source| RestoreError::Image { path: path.to_owned(), source })?;
        let info = &saved.head().manifest.info;
        let (position, digest) = (machine.applied().unwrap_or_default(), machine.digest());
        let module = machine.active_module().unwrap_or_default();
        let contradiction = if position != info.position {
            Some(format!("position is {}, and it is {position}", info.position))
        } else if u128::from(digest.0) != info.digest {
            Some(format!("digest is {:016x}, and it is {digest}", info.digest))
        } else if module != info.module {
            Some(format!("module is {}, and it is {module}", info.module))
        } else {
            None
        };
        if let Some(what) = contradiction {
            return Err(RestoreError::Contradicts { path: path.to_owned(), what });
        }
        let lineages = machine.lineages().to_vec();
        Ok(Self { saved, modules, lineages })
    }

    /// What is in the file.
    #[must_use]
    pub const fn head(&self) -> &SavedHead {
        self.saved.head()
    }

    /// Makes the folder of the node that `config` describes, or carries on with one that was begun. `witnesses` are those of its peers that hold no
    /// data; `progress` is told the bytes of the image that are there, and all of them. Durable on return: the node may be started.
    ///
    /// # Errors
    /// If the settings allow no such cluster, or the folder holds anything else: then nothing was written. If the disk fails or is full: the
    /// folder can't be started; restore again.
    pub fn carry_out(
        &self,
        config: &NodeConfig,
        witnesses: &[String],
        seams: &Seams,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Restored, RestoreError> {
        self.run(config, witnesses, seams, &Step::ALL, progress)
    }

    fn run(
        &self,
        config: &NodeConfig,
        witnesses: &[String],
        seams: &Seams,
        steps: &[Step],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Restored, RestoreError> {
        let asked = Asked::of(config, witnesses);
        check(config, witnesses)?;
        let path = &config.data_dir;
        let begin = |disk| {
            let plan = RestorePlan::make(&self.saved, &self.lineages, asked.clone(), disk, seams);
            codec::encode(&Begun::Restore(Box::new(plan)))
        };
        let dir = NodeDir::open_for_restore(path, config.name.as_str(), begin)?;
        let carried_on = !dir.created();
        let begun = dir.meta().recovery.clone().unwrap_or_default();
        let begun = codec::decode(&begun).map_err(|source| RestoreError::Unreadable { dir: path.clone(), source })?;
        let other = |what, instead| Err(RestoreError::OtherBegun { dir: path.clone(), what, instead });
        let plan = match begun {
            Begun::Recovery(_) => return other("a recovery", "carry that on with `replicator recover`"),
            Begun::Restore(plan) if plan.seal != self.saved.seal() => {
                return other("the restore of another file", "name that file, or remove the folder");
            }
            Begun::Restore(plan) if plan.asked != asked => {
                return other(
                    "a restore with other settings",
                    "give the same name, addresses, peers and mode, or remove the folder",
                );
            }
            Begun::Restore(plan) => plan,
        };
        for step in steps {
            plan.take(*step, &dir, &self.saved, &self.modules, progress)?;
        }
        Ok(plan.outcome(config.name.as_str(), carried_on))
    }
}

/// Refuses what could never be started, or never take a write.
fn check(config: &NodeConfig, witnesses: &[String]) -> Result<(), RestoreError> {
    let settings = |why: String| Err(RestoreError::Settings(why));
    if config.witness {
        return settings("a witness holds no data: restore into a replica's folder".into());
    }
    let peers: BTreeSet<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    if let Some(stranger) = witnesses.iter().find(|name| !peers.contains(name.as_str())) {
        let own = if *stranger == config.name.as_str() { "it is this node" } else { "no peer is called so" };
        return settings(format!("--witness names {stranger:?}: {own}"));
    }
    match config.mode {
        Mode::Majority if !witnesses.is_empty() => {
            settings("only a chain has witnesses; set mode = \"chain\", or leave --witness out".into())
        }
        Mode::Chain => {
            let witnesses: BTreeSet<&str> = witnesses.iter().map(String::as_str).collect();
            let replicas = 1 + peers.len() - witnesses.len();
            let least = config.chain.least_length;
            if usize::try_from(least).map_or(true, |least| least > replicas) {
                return settings(format!(
                    "chain.least_length = {least}, and there are {replicas} replicas: it would never take a write"
                ));
            }
            Ok(())
        }
        Mode::Majority => Ok(()),
    }
}

/// The modules in the file.
struct Held(Vec<(ModuleHash, Bytes)>);

impl ModuleSource for Held {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        self.0.iter().find(|(held, _)| held == hash).map(|(_, bytes)| bytes.clone())
    }
}
