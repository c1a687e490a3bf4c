//! Files and folders: as a program sees them, and as they would be after a power loss.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    time::SystemTime,
};

use fuser::Errno;

use crate::{chance::Chance, file::File};

/// The number of the folder that all others are in.
pub(crate) const ROOT: u64 = 1;

/// The names in a folder.
#[derive(Debug, Default, Clone)]
pub(crate) struct Folder {
    names: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
}

impl Folder {
    pub(crate) fn names(&self) -> impl Iterator<Item = (&OsStr, u64)> {
        self.names.iter().map(|(name, number)| (name.as_os_str(), *number))
    }
}

#[derive(Debug)]
pub(crate) enum Kind {
    File(File),
    Folder(Folder),
}

/// A file or a folder. Its owner and its permissions are durable at once: nothing here depends on them.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Its last name.
    pub(crate) name: OsString,
    pub(crate) permissions: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: SystemTime,
}

/// One name of one folder.
#[derive(Debug)]
struct Edit {
    folder: u64,
    name: OsString,
    now: Option<u64>,
}

/// Edits of folders that survive together or not at all: two for a renaming.
type Change = Vec<Edit>;

/// All of a disk.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: BTreeMap<u64, Node>,
    /// Numbers are never given twice.
    next: u64,
    /// What no fsync of a folder has made durable, in order.
    unsynced: VecDeque<Change>,
}

/// What a power loss took, or could have taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unsynced {
    /// Blocks of 4 KiB that were written and not fsynced.
    pub blocks: u64,
    /// Names that were made, changed or removed in folders that were not fsynced afterwards.
    pub names: u64,
}

impl Tree {
    pub(crate) fn new(owner: (u32, u32)) -> Self {
        let modified = SystemTime::now();
        let root = Node { kind: Kind::Folder(Folder::default()), name: "".into(), permissions: 0o755, owner, modified };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, unsynced: VecDeque::new() }
    }

    pub(crate) fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    pub(crate) fn node_mut(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    pub(crate) fn folder(&self, number: u64) -> Result<&Folder, Errno> {
        match &self.node(number)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn file(&self, number: u64) -> Result<&File, Errno> {
        match &self.node(number)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Folder(_) => Err(Errno::EISDIR),
        }
    }

    /// For a change of its bytes.
    pub(crate) fn file_mut(&mut self, number: u64) -> Result<&mut File, Errno> {
        let node = self.node_mut(number)?;
        node.modified = SystemTime::now();
        match &mut node.kind {
            Kind::File(file) => Ok(file),
            Kind::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(crate) fn lookup(&self, folder: u64, name: &OsStr) -> Result<u64, Errno> {
        self.folder(folder)?.names.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Makes an empty file or folder.
    pub(crate) fn make(
        &mut self,
        folder: u64,
        name: &OsStr,
        kind: Kind,
        permissions: u16,
        owner: (u32, u32),
    ) -> Result<u64, Errno> {
        if self.folder(folder)?.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        let node = Node { kind, name: name.to_owned(), permissions, owner, modified: SystemTime::now() };
        self.nodes.insert(number, node);
        self.change(vec![Edit { folder, name: name.to_owned(), now: Some(number) }])?;
        Ok(number)
    }

    /// Removes a name. Its bytes stay for those who have it open.
    pub(crate) fn remove(&mut self, folder: u64, name: &OsStr, wanted_folder: bool) -> Result<(), Errno> {
        match (&self.node(self.lookup(folder, name)?)?.kind, wanted_folder) {
            (Kind::Folder(inner), true) if !inner.names.is_empty() => return Err(Errno::ENOTEMPTY),
            (Kind::Folder(_), false) => return Err(Errno::EISDIR),
            (Kind::File(_), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.change(vec![Edit { folder, name: name.to_owned(), now: None }])
    }

    /// Gives a file or a folder another name, in the place of what has it now.
    pub(crate) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<(), Errno> {
        let number = self.lookup(from.0, from.1)?;
        if let Ok(there) = self.lookup(to.0, to.1) {
            match &self.node(there)?.kind {
                _ if !replace => return Err(Errno::EEXIST),
                _ if there == number => return Ok(()),
                Kind::Folder(inner) if !inner.names.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.node_mut(number)?.name = to.1.to_owned();
        self.change(vec![
            Edit { folder: from.0, name: from.1.to_owned(), now: None },
            Edit { folder: to.0, name: to.1.to_owned(), now: Some(number) },
        ])
    }

    fn change(&mut self, change: Change) -> Result<(), Errno> {
        for Edit { folder, .. } in &change {
            self.folder(*folder)?;
        }
        for Edit { folder, name, now } in &change {
            let node = self.node_mut(*folder)?;
            node.modified = SystemTime::now();
            if let Kind::Folder(folder) = &mut node.kind {
                apply(&mut folder.names, name, *now);
            }
        }
        self.unsynced.push_back(change);
        Ok(())
    }

    /// The whole of an fsync of a file.
    #[cfg(test)]
    fn sync_file(&mut self, number: u64) -> Result<(), Errno> {
        let file = self.file_mut(number)?;
        let staged = file.begin_sync();
        file.end_sync(staged);
        Ok(())
    }

    /// An fsync of a folder: its names, and whatever had to be on the disk before them.
    pub(crate) fn sync_folder(&mut self, number: u64) -> Result<(), Errno> {
        self.folder(number)?;
        let mut folders = BTreeSet::from([number]);
        let (mut later, mut now) = (VecDeque::new(), Vec::new());
        for change in std::mem::take(&mut self.unsynced).into_iter().rev() {
            if change.iter().any(|edit| folders.contains(&edit.folder)) {
                folders.extend(change.iter().map(|edit| edit.folder));
                now.push(change);
            } else {
                later.push_front(change);
            }
        }
        self.unsynced = later;
        now.into_iter().rev().for_each(|change| self.make_durable(change));
        Ok(())
    }

    fn make_durable(&mut self, change: Change) {
        for Edit { folder, name, now } in change {
            if let Some(Node { kind: Kind::Folder(folder), .. }) = self.nodes.get_mut(&folder) {
                apply(&mut folder.durable, &name, now);
            }
        }
    }

    /// A power loss. Of what was not fsynced nothing survives; or, if `torn`, some of the bytes in any order, and the first so many changes of names:
    /// file systems keep those in a journal.
    pub(crate) fn forget(&mut self, mut torn: Option<&mut Chance>) -> Unsynced {
        let mut lost = Unsynced { names: self.unsynced.len() as u64, ..Unsynced::default() };
        let kept = torn.as_mut().map_or(0, |chance| chance.up_to(lost.names));
        for change in std::mem::take(&mut self.unsynced).into_iter().take(usize::try_from(kept).unwrap_or(0)) {
            self.make_durable(change);
        }
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(file) => lost.blocks += file.forget(torn.as_deref_mut()),
                Kind::Folder(folder) => folder.names.clone_from(&folder.durable),
            }
        }
        let (mut reached, mut next) = (BTreeSet::new(), vec![ROOT]);
        while let Some(number) = next.pop() {
            if reached.insert(number)
                && let Ok(folder) = self.folder(number)
            {
                next.extend(folder.names.values());
            }
        }
        self.nodes.retain(|number, _| reached.contains(number));
        lost
    }

    /// How many files have bytes that no fsync has made durable.
    #[cfg(test)]
    fn unsynced_files(&self) -> usize {
        let files = self.nodes.values().filter(|node| matches!(&node.kind, Kind::File(file) if file.is_unsynced()));
        files.count()
    }
}

fn apply(names: &mut BTreeMap<OsString, u64>, name: &OsStr, now: Option<u64>) {
    match now {
        Some(number) => drop(names.insert(name.to_owned(), number)),
        None => drop(names.remove(name)),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
