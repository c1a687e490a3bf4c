//! The tree as a file system of the kernel's.

use std::{
    ffi::OsStr,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags};

use crate::{
    file::{BLOCK_BYTES, File},
    tree::{Folder, Kind, Tree},
};

/// How long the kernel may trust what it was told: nobody changes a disk but through the kernel.
const TRUST: Duration = Duration::from_secs(3600);
/// What the disk says it holds, and has left: 16 GiB, as sparse as they are.
const DISK_BLOCKS: u64 = 4 << 20;
const NAME_BYTES_MAX: u32 = 255;
const GENERATION: Generation = Generation(0);
const HANDLE: FileHandle = FileHandle(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Power {
    #[default]
    On,
    /// Nobody is answered.
    Cut,
    /// Everything fails.
    Off,
}

/// What goes wrong on purpose.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) lies_about: Option<String>,
    /// Whose fsync fails, and how many more of them succeed first.
    pub(crate) failing: Option<(String, u64)>,
    pub(crate) failed: u64,
    pub(crate) syncs: u64,
    /// How long an fsync takes.
    pub(crate) sync_time: Duration,
}

/// What an fsync comes to.
enum Sync {
    Done,
    Lied,
    Failed,
}

impl Faults {
    fn sync(&mut self, name: &OsStr) -> Sync {
        self.syncs += 1;
        let is = |ending: &str| name.as_encoded_bytes().ends_with(ending.as_bytes());
        match &mut self.failing {
            Some((ending, 0)) if is(ending) => {
                self.failing = None;
                self.failed += 1;
                return Sync::Failed;
            }
            Some((ending, after)) if is(ending) => *after -= 1,
            _ => {}
        }
        if self.lies_about.as_deref().is_some_and(is) { Sync::Lied } else { Sync::Done }
    }
}

struct State {
    power: Power,
    tree: Tree,
    faults: Faults,
}

/// What outlives a mount.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Default for Shared {
    fn default() -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let state = State { power: Power::On, tree: Tree::new(owner), faults: Faults::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// The tree, for who doesn't go through the kernel.
pub(crate) struct TreeGuard<'a>(MutexGuard<'a, State>);

impl TreeGuard<'_> {
    pub(crate) fn forget(&mut self, torn: Option<&mut crate::Chance>) -> crate::Unsynced {
        self.0.tree.forget(torn)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_power(&self, power: Power) {
        self.lock().power = power;
        self.changed.notify_all();
    }

    pub(crate) fn tree(&self) -> TreeGuard<'_> {
        TreeGuard(self.lock())
    }

    pub(crate) fn faults<T>(&self, with: impl FnOnce(&mut Faults) -> T) -> T {
        with(&mut self.lock().faults)
    }

    /// The disk as a program has it; an error if the power is off.
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        self.powered_again(self.lock())
    }

    fn powered_again<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Errno> {
        let cut = |state: &mut State| state.power == Power::Cut;
        let state = self.changed.wait_while(state, cut).unwrap_or_else(PoisonError::into_inner);
        if state.power == Power::On { Ok(state) } else { Err(Errno::EIO) }
    }

    /// Lets the time of an fsync pass, in which others use the disk, and in which the power may go.
    fn take_time<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Errno> {
        let time = state.faults.sync_time;
        let on = |state: &mut State| state.power == Power::On;
        let waited = self.changed.wait_timeout_while(state, time, on).unwrap_or_else(PoisonError::into_inner);
        self.powered_again(waited.0)
    }

    fn sync_file<'a>(&'a self, mut state: MutexGuard<'a, State>, number: u64) -> Result<(), Errno> {
        let State { tree, faults, .. } = &mut *state;
        match faults.sync(&tree.node(number)?.name) {
            Sync::Done => {
                let staged = tree.file_mut(number)?.begin_sync();
                self.take_time(state)?.tree.file_mut(number)?.end_sync(staged);
                Ok(())
            }
            Sync::Lied => Ok(()),
            Sync::Failed => {
                tree.file_mut(number)?.fail_sync();
                Err(Errno::EIO)
            }
        }
    }

    fn sync_folder<'a>(&'a self, mut state: MutexGuard<'a, State>, number: u64) -> Result<(), Errno> {
        let State { tree, faults, .. } = &mut *state;
        match faults.sync(&tree.node(number)?.name) {
            Sync::Done => self.take_time(state)?.tree.sync_folder(number),
            Sync::Lied => Ok(()),
            Sync::Failed => Err(Errno::EIO),
        }
    }
}

impl State {
    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let node = self.tree.node(number)?;
        let (kind, size) = match &node.kind {
            Kind::File(file) => (FileType::RegularFile, file.bytes()),
            Kind::Folder(_) => (FileType::Directory, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: node.modified,
            mtime: node.modified,
            ctime: node.modified,
            crtime: node.modified,
            kind,
            perm: node.permissions,
            nlink: 1,
            uid: node.owner.0,
            gid: node.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        })
    }

    fn make(&mut self, at: (INodeNo, &OsStr), kind: Kind, mode: u32, request: &Request) -> Result<FileAttr, Errno> {
        let permissions = u16::try_from(mode & 0o7777).expect("12 bits");
        let number = self.tree.make(at.0.into(), at.1, kind, permissions, (request.uid(), request.gid()))?;
        self.attributes(number)
    }

    fn allocate(&mut self, number: u64, end: u64, mode: i32) -> Result<(), Errno> {
        let keep_size = FallocateFlags::KEEP_SIZE.bits();
        match u32::try_from(mode) {
            Ok(0) => {
                let file = self.tree.file_mut(number)?;
                let bytes = file.bytes().max(end);
                file.resize(bytes);
                Ok(())
            }
            Ok(mode) if mode == keep_size => Ok(()),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

/// Answers with what `given` is, or its error.
macro_rules! answer {
    ($reply:ident, $given:expr, $good:expr) => {
        match $given {
            Ok(value) => $good($reply, value),
            Err(error) => $reply.error(error),
        }
    };
}

/// The file system of one mount.
pub(crate) struct Mounted(pub(crate) Arc<Shared>);

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.powered().and_then(|state| state.attributes(state.tree.lookup(parent.into(), name)?));
        answer!(reply, found, |reply: ReplyEntry, found| reply.entry(&TRUST, &found, GENERATION));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.0.powered().and_then(|state| state.attributes(ino.into()));
        answer!(reply, found, |reply: ReplyAttr, found| reply.attr(&TRUST, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.0.powered().and_then(|mut state| {
            if let Some(size) = size {
                state.tree.file_mut(ino.into())?.resize(size);
            }
            let node = state.tree.node_mut(ino.into())?;
            if let Some(mode) = mode {
                node.permissions = u16::try_from(mode & 0o7777).expect("12 bits");
            }
            node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => node.modified = time,
                Some(TimeOrNow::Now) => node.modified = SystemTime::now(),
                None => {}
            }
            state.attributes(ino.into())
        });
        answer!(reply, set, |reply: ReplyAttr, set| reply.attr(&TRUST, &set));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let kind = Kind::Folder(Folder::default());
        let made = self.0.powered().and_then(|mut state| state.make((parent, name), kind, mode & !umask, request));
        answer!(reply, made, |reply: ReplyEntry, made| reply.entry(&TRUST, &made, GENERATION));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let kind = Kind::File(File::default());
        let made = self.0.powered().and_then(|mut state| state.make((parent, name), kind, mode & !umask, request));
        answer!(reply, made, |reply: ReplyCreate, made| {
            reply.created(&TRUST, &made, GENERATION, HANDLE, FopenFlags::empty());
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.0.powered().and_then(|mut state| state.tree.remove(parent.into(), name, false));
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.0.powered().and_then(|mut state| state.tree.remove(parent.into(), name, true));
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.0.powered().and_then(|mut state| {
            if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
                return Err(Errno::EINVAL);
            }
            let replace = flags.is_empty();
            state.tree.rename((parent.into(), name), (new_parent.into(), new_name), replace)
        });
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let count = usize::try_from(size).expect("an address has 32 bits");
        let read = self.0.powered().and_then(|state| Ok(state.tree.file(ino.into())?.read(offset, count)));
        answer!(reply, read, |reply: ReplyData, read: Vec<u8>| reply.data(&read));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.powered().and_then(|mut state| {
            state.tree.file_mut(ino.into())?.write(offset, data);
            // O_SYNC has the bit of O_DSYNC too. The kernel may send no fsync after a direct write.
            if OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(OFlags::DSYNC) {
                self.0.sync_file(state, ino.into())?;
            }
            Ok(u32::try_from(data.len()).expect("the kernel writes less at once"))
        });
        answer!(reply, written, |reply: ReplyWrite, written| reply.written(written));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.saturating_add(length);
        let done = self.0.powered().and_then(|mut state| state.allocate(ino.into(), end, mode));
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    /// A descriptor was closed: which makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let done = self.0.powered().and_then(|state| self.0.sync_file(state, ino.into()));
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let done = self.0.powered().and_then(|state| self.0.sync_folder(state, ino.into()));
        answer!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // The place in a listing is the number of the file before it: it stays what it is when names come and go.
        let listed = self.0.powered().and_then(|state| {
            let mut names: Vec<_> = state.tree.folder(ino.into())?.names().collect();
            names.sort_by_key(|(_, number)| *number);
            for (name, number) in names.into_iter().filter(|(_, number)| *number > offset) {
                let kind = state.attributes(number)?.kind;
                if reply.add(INodeNo(number), number, kind, name) {
                    break;
                }
            }
            Ok(())
        });
        answer!(reply, listed, |reply: ReplyDirectory, ()| reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let block = BLOCK_BYTES as u32;
        reply.statfs(DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS, block, NAME_BYTES_MAX, block);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
