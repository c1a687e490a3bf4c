//! A node's data folder: locked, private, and either blank, whole, or refused.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use replicator_types::{ClusterId, DiskId, Incarnation};

use crate::{
    Meta, ModuleStore, Repair, SnapshotOptions, SnapshotStore, StorageError, atomic_file, disk_room,
    lock::{DirLock, LOCK_FILE},
    meta::{self, FoundMeta},
    spare,
};

/// Where [`NodeDir::set_aside`] moves things, followed by a number.
const SET_ASIDE: &str = "set-aside-";

/// An open, locked data folder. Clones share it; the lock is held until the last one, and every log opened in it, is gone.
#[derive(Clone)]
pub struct NodeDir {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    created: bool,
    state: Mutex<State>,
    /// What `state` holds, for readers, who must not wait for an fsync.
    current: RwLock<Arc<Meta>>,
    /// Held while modules change, so that two who put the same one don't share a temporary file.
    modules: Mutex<()>,
    mended: Vec<Repair>,
    /// Held while repairs are noted.
    noting: Mutex<()>,
    /// The logs and the stores of snapshots that are open.
    open: Mutex<BTreeSet<String>>,
    _lock: DirLock,
}

struct State {
    meta: Meta,
    /// Of what the files hold.
    generation: u64,
    /// The first failed write: what the file holds now is unknown.
    failed: Option<Arc<str>>,
}

impl fmt::Debug for NodeDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDir").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl NodeDir {
    /// Opens the folder of the node called `node`, or makes it, with a new disk id, if it is blank. Takes the exclusive lock. A folder
    /// that was made is durable on return.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has it; [`StorageError::NotOurs`] if it belongs to another node; [`StorageError::Foreign`] if
    /// what it holds is no node's, in which case nothing in it is touched;
    /// [`StorageError::Damaged`] if `meta` is damaged, or missing beside other files: then it is not blank, and what its disk had
    /// promised is unknown; [`StorageError::Recovering`] if a recovery was interrupted.
    pub fn open(path: impl Into<PathBuf>, node: &str) -> Result<Self, StorageError> {
        let path = path.into();
        refuse_foreign(&path)?;
        let lock = enter(&path)?;
        let found = meta::read(&path)?;
        let created = found.is_none();
        let found = match found {
            Some(found) => found,
            None => create_blank(&path, node)?,
        };
        let meta = &found.meta;
        if meta.node != node {
            let what = format!("it belongs to the node {:?}, and this one is {node:?}", meta.node);
            return Err(StorageError::NotOurs { path, what });
        }
        if meta.recovery.is_some() {
            return Err(StorageError::Recovering { path });
        }
        Self::of(path, found, created, lock)
    }

    /// Opens the folder of whichever node has it, for an operator's recovery; also one whose recovery was begun. Takes the exclusive lock,
    /// and makes nothing.
    ///
    /// # Errors
    /// [`StorageError::NoNode`] if there is no `meta`; [`StorageError::Locked`] and [`StorageError::Damaged`] as [`Self::open`].
    pub fn open_for_recovery(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        if !meta::META_FILES.iter().any(|name| path.join(name).is_file()) {
            return Err(StorageError::NoNode { path });
        }
        let lock = enter(&path)?;
        match meta::read(&path)? {
            Some(found) => Self::of(path, found, false, lock),
            None => Err(StorageError::NoNode { path }),
        }
    }

    /// Makes the folder of a node that is to be restored, with a new disk id and what `plan` makes of that id, as its recovery: until that has ended
    /// it is no node's. A folder whose recovery was begun is opened as it is. Takes the exclusive lock; durable on return.
    ///
    /// # Errors
    /// [`StorageError::NotEmpty`] if the folder holds anything else; [`StorageError::Locked`] and [`StorageError::Damaged`] as [`Self::open`].
    pub fn open_for_restore(
        path: impl Into<PathBuf>,
        node: &str,
        plan: impl FnOnce(DiskId) -> Vec<u8>,
    ) -> Result<Self, StorageError> {
        let path = path.into();
        if let Some(what) = content(&path)?.filter(|_| !meta::META_FILES.iter().any(|name| path.join(name).is_file())) {
            return Err(StorageError::NotEmpty { path, what });
        }
        let lock = enter(&path)?;
        if let Some(found) = meta::read(&path)? {
            if found.meta.recovery.is_none() {
                let what = format!("the node {:?}", found.meta.node);
                return Err(StorageError::NotEmpty { path, what });
            }
            return Self::of(path, found, false, lock);
        }
        let disk = DiskId(random(&path)?);
        let meta = Meta { recovery: Some(plan(disk)), ..Meta::new(node, disk) };
        let found = create(&path, meta)?;
        Self::of(path, found, true, lock)
    }

    /// Takes a folder whose meta is known. What is wrong with one of its two files is mended first.
    fn of(path: PathBuf, found: FoundMeta, created: bool, lock: DirLock) -> Result<Self, StorageError> {
        let FoundMeta { meta, mut generation, damages, outdated } = found;
        if outdated || !damages.is_empty() {
            generation += 1;
            write_meta(&path, generation, &meta)?;
        }
        let current = RwLock::new(Arc::new(meta.clone()));
        let state = Mutex::new(State { meta, generation, failed: None });
        let (modules, noting, open) = (Mutex::new(()), Mutex::new(()), Mutex::default());
        let mended = damages.iter().map(meta_repair).collect();
        let dir = Self {
            shared: Arc::new(Shared { path, created, state, current, modules, noting, mended, open, _lock: lock }),
        };
        if !dir.shared.mended.is_empty() {
            for repair in &dir.shared.mended {
                tracing::warn!("mended {repair}");
            }
            dir.note_repairs(&dir.shared.mended)?;
        }
        Ok(dir)
    }

    /// What was mended when the folder was opened: one of the two files of `meta`, from the other one.
    #[must_use]
    pub fn mended(&self) -> &[Repair] {
        &self.shared.mended
    }

    /// Whether [`Self::open`] made it: then this disk is new to everybody.
    #[must_use]
    pub fn created(&self) -> bool {
        self.shared.created
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The meta as it is on the disk. Never waits for one that is being written.
    #[must_use]
    pub fn meta(&self) -> Arc<Meta> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the meta; durable on return. Updates are made one after the other, in the order of the calls. A change that
    /// changes nothing writes nothing.
    ///
    /// # Errors
    /// If it can't be written. Which meta is on the disk is unknown then, every later update fails too, and the process must end.
    ///
    /// # Panics
    /// If the change would break a promise of the disk: another node, another disk id (but where a recovery ends), or a lower
    /// incarnation, sealed epoch or attempt.
    pub fn update(&self, change: impl FnOnce(&mut Meta)) -> Result<(), StorageError> {
        self.update_with(|meta| {
            change(meta);
            Ok(())
        })
    }

    /// Raises the incarnation by one; durable on return (safety rule 2). Call it once at each start, before any network I/O.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn raise_incarnation(&self) -> Result<Incarnation, StorageError> {
        let mut raised = Incarnation(0);
        self.update(|meta| {
            meta.incarnation = Incarnation(meta.incarnation.0 + 1);
            raised = meta.incarnation;
        })?;
        Ok(raised)
    }

    /// Refuses the folder if it takes part in another cluster than `cluster`. One that takes part in none passes.
    ///
    /// # Errors
    /// [`StorageError::NotOurs`] if so.
    pub fn require_cluster(&self, cluster: ClusterId) -> Result<(), StorageError> {
        match self.state().meta.cluster {
            Some((ours, _)) if ours != cluster => {
                let what = format!("it belongs to the cluster {ours}, and this one is {cluster}");
                Err(StorageError::NotOurs { path: self.shared.path.clone(), what })
            }
            _ => Ok(()),
        }
    }

    /// The store of modules in this folder.
    ///
    /// # Errors
    /// If its folder can't be made or read.
    pub fn modules(&self) -> Result<ModuleStore, StorageError> {
        ModuleStore::open(self.clone())
    }

    /// The store of snapshots in the folder called `name`: `snapshots`, or for another log something that ends with `-snapshots`. What a
    /// crash left half written is removed; what was half received stays, for [`SnapshotStore::receive`]. It is open once; clones share it.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if it is open already, or if its folder can't be made, read or cleaned.
    ///
    /// # Panics
    /// If the name has another ending: verification knows the folders by it.
    pub fn snapshots(&self, name: &str, options: SnapshotOptions) -> Result<SnapshotStore, StorageError> {
        SnapshotStore::open(self, name, options)
    }

    /// Bytes that are free for this process on the folder's disk, so that a node can refuse new writes before the log fails.
    ///
    /// # Errors
    /// If the file system doesn't say.
    pub fn free_bytes(&self) -> Result<u64, StorageError> {
        disk_room::free_bytes(&self.shared.path)
    }

    /// Keeps some room on the disk for the meta, which must be durable even where everything else has to wait: 256 KiB, given up when the disk is
    /// full. Cheap while that is there; call it now and then.
    ///
    /// # Errors
    /// If it can't be written though the disk has room.
    pub fn keep_spare_room(&self) -> Result<(), StorageError> {
        let _excluded = self.state();
        spare::keep(&self.shared.path)
    }

    /// Moves everything in the folder at `path` into `set-aside-<n>` inside it, so that the node can join again as a blank one.
    /// Deletes nothing; durable on return. Returns the folder made, or `None` if there was nothing to move.
    ///
    /// Interrupted, it leaves a folder whose log is missing, which is refused as damaged; call it again.
    ///
    /// # Errors
    /// If the folder is in use or no node's, or something can't be moved.
    pub fn set_aside(path: impl AsRef<Path>) -> Result<Option<PathBuf>, StorageError> {
        let path = path.as_ref();
        refuse_foreign(path)?;
        let _lock = enter(path)?;
        let moving: Vec<_> = atomic_file::names(path)?.into_iter().filter(|name| is_content(name)).collect();
        if moving.is_empty() {
            return Ok(None);
        }
        let target = (1_u32..)
            .map(|n| path.join(format!("{SET_ASIDE}{n}")))
            .find(|target| !target.exists())
            .expect("a folder has fewer than 2^32 entries");
        atomic_file::create_dir(&target)?;
        // `meta` goes last: as long as anything is left behind, so is the evidence that the folder isn't blank.
        let (metas, others): (Vec<_>, Vec<_>) =
            moving.into_iter().partition(|name| meta::META_FILES.contains(&name.as_str()));
        for name in others.iter().chain(&metas) {
            fs::rename(path.join(name), target.join(name)).map_err(StorageError::io("move away", path.join(name)))?;
            atomic_file::sync_dir(path)?;
        }
        atomic_file::sync_dir(&target)?;
        Ok(Some(target))
    }

    pub(crate) fn update_with<T>(
        &self,
        change: impl FnOnce(&mut Meta) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let mut state = self.state();
        if let Some(what) = &state.failed {
            return Err(StorageError::failed(what.clone()));
        }
        let mut next = state.meta.clone();
        let answer = change(&mut next)?;
        if next == state.meta {
            return Ok(answer);
        }
        state.meta.assert_may_become(&next);
        let (path, generation) = (&self.shared.path, state.generation + 1);
        if let Err(error) = write_meta(path, generation, &next) {
            state.failed = Some(error.to_string().into());
            return Err(error);
        }
        state.generation = generation;
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next.clone());
        state.meta = next;
        Ok(answer)
    }

    /// Claims the folder called `name`, so that it is open once: another opening would repair it while it is written.
    pub(crate) fn claim(&self, name: &str) -> Result<Claim, StorageError> {
        if !self.opened().insert(name.to_owned()) {
            return Err(StorageError::Locked { path: self.shared.path.join(name), pid: Some(std::process::id()) });
        }
        Ok(Claim { dir: self.clone(), name: name.to_owned() })
    }

    fn opened(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Excludes everybody else from changing the folder of modules.
    pub(crate) fn changing_modules(&self) -> MutexGuard<'_, ()> {
        self.shared.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Excludes everybody else from noting repairs.
    pub(crate) fn noting_repairs(&self) -> MutexGuard<'_, ()> {
        self.shared.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic in a change leaves the state as it was, so a poisoned lock is sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to have a folder of a node's open. It keeps the folder's lock too.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: NodeDir,
    name: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.dir.opened().remove(&self.name);
    }
}

/// Makes the folder if need be, sees to its privacy, and locks it.
fn enter(path: &Path) -> Result<DirLock, StorageError> {
    atomic_file::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(StorageError::io("make private", path))?;
    DirLock::acquire(path)
}

/// Every folder that a node was started in has its lock file, whatever else is lost.
fn refuse_foreign(path: &Path) -> Result<(), StorageError> {
    let is_nodes = meta::META_FILES.iter().chain([&LOCK_FILE]).any(|name| path.join(name).is_file());
    match content(path)? {
        Some(what) if !is_nodes => Err(StorageError::Foreign { path: path.to_owned(), what }),
        _ => Ok(()),
    }
}

/// Makes the meta of a blank folder.
fn create_blank(path: &Path, node: &str) -> Result<FoundMeta, StorageError> {
    if let Some(others) = content(path)? {
        let what = format!("the file is missing, though the folder holds {others}");
        return Err(StorageError::damaged(path.join(meta::META_FILE), None, what));
    }
    create(path, Meta::new(node, DiskId(random(path)?)))
}

fn create(path: &Path, meta: Meta) -> Result<FoundMeta, StorageError> {
    let generation = 1;
    write_meta(path, generation, &meta)?;
    Ok(FoundMeta { meta, generation, damages: Vec::new(), outdated: false })
}

/// Writes both files of the meta, on a full disk in the room that is kept for them.
fn write_meta(path: &Path, generation: u64, meta: &Meta) -> Result<(), StorageError> {
    spare::with_room(path, || meta::write(path, generation, meta))
}

/// What opening the folder did about a damage of one of the two files.
fn meta_repair(damage: &StorageError) -> Repair {
    match damage {
        StorageError::Damaged { path, offset, what } => {
            Repair::new(path, *offset, format!("{what}; written again from its copy"))
        }
        other => Repair::new(Path::new(meta::META_FILE), None, other.to_string()),
    }
}

/// So many of a folder's files an error names.
const NAMED_MAX: usize = 8;

/// What the folder holds that no blank one does; `None`: nothing.
fn content(path: &Path) -> Result<Option<String>, StorageError> {
    let leftovers = meta::META_FILES.map(|name| format!("{name}.{}", atomic_file::TEMPORARY));
    let names = atomic_file::names(path)?.into_iter();
    let content: Vec<_> = names.filter(|name| is_content(name) && !leftovers.contains(name)).collect();
    Ok(match content.len() {
        0 => None,
        n if n > NAMED_MAX => Some(format!("{}, and {} more", content[..NAMED_MAX].join(", "), n - NAMED_MAX)),
        _ => Some(content.join(", ")),
    })
}

/// Whether a name in the folder is a node's content, and not what may lie in a blank one.
fn is_content(name: &str) -> bool {
    name != LOCK_FILE && name != spare::SPARE_FILE && name != "lost+found" && !is_set_aside(name)
}

/// Whether this was moved away by [`NodeDir::set_aside`].
pub(crate) fn is_set_aside(name: &str) -> bool {
    name.starts_with(SET_ASIDE)
}

/// A number from the operating system's generator.
pub(crate) fn random(path: &Path) -> Result<u64, StorageError> {
    getrandom::u64().map_err(|error| {
        let source = std::io::Error::other(error.to_string());
        StorageError::Io { path: path.to_owned(), action: "draw a random number for", source }
    })
}

/// Makes all files that this process creates from now on private to their owner. Those in the folder are made so anyway; this
/// covers whatever else the process leaves on the disk.
pub fn restrict_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}
