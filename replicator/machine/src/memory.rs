//! Linear memories over memory files: the live instance's, and views of it for queries.
//!
//! The live memory is a shared mapping of a memory file (memfd). A query's instance maps the same file privately: it reads
//! what the live instance wrote, and the kernel gives it a page of its own at its first write there. Dropping those
//! pages ([`View::discard`]) takes back whatever the query wrote, so no query can change state.
//!
//! ```text
//! base                     size                     capacity (4 GiB)         + guard
//! | read, write            | no access              | no access              |
//! | file, shared or private                         | reserved               |
//! ```
//!
//! *Invariant:* compiled code can address 4 GiB, plus an offset that is bounded by the guard, from `base`; all of that is
//! reserved, and only `[base, base + size)` is accessible.
//!
//! A private page that was not yet written shows later writes of the live instance. So queries run on the apply thread,
//! between entries, and pages are discarded before the next entry.

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io,
    mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap},
};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// The host couldn't give memory that is within the logged limit. Fatal to the node, never a result.
#[derive(Debug, thiserror::Error)]
#[error("the host can't give the module memory that it may have: {0}")]
pub(crate) struct HostMemoryError(#[from] io::Errno);

/// How the next memory that is made on this thread is backed.
#[derive(Clone, Default)]
enum Backing {
    /// By a new file, shared: a live memory.
    #[default]
    Live,
    /// By a live memory's file, private: a view.
    View(Arc<MemoryFile>),
}

thread_local! {
    /// wasmtime makes memories inside of `Instance::new`, on the caller's thread, and hands no argument through.
    static NEXT: RefCell<(Backing, Option<Arc<MemoryFile>>)> = const { RefCell::new((Backing::Live, None)) };
}

/// Makes an instance, by `make`, whose memory is new; returns its file too.
pub(crate) fn with_live_memory<T>(make: impl FnOnce() -> T) -> (T, Option<Arc<MemoryFile>>) {
    NEXT.set((Backing::Live, None));
    let made = make();
    (made, NEXT.take().1)
}

/// Makes an instance, by `make`, whose memory is a view of `file`.
pub(crate) fn with_view_memory<T>(file: &Arc<MemoryFile>, make: impl FnOnce() -> T) -> T {
    NEXT.set((Backing::View(Arc::clone(file)), None));
    let made = make();
    NEXT.take();
    made
}

/// The memory file of a live memory, and where it is mapped.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    fd: OwnedFd,
    /// The base of the newest view, for [`MemoryFile::discard_view`]; 0: none.
    view: AtomicUsize,
}

impl MemoryFile {
    fn new(capacity: usize) -> io::Result<Self> {
        let fd = memfd_create("replicator-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, capacity as u64)?; // sparse: pages exist once they are written
        Ok(Self { fd, view: AtomicUsize::new(0) })
    }

    /// Drops the private pages of the view of this file, in its first `bytes` bytes.
    ///
    /// `&mut` of the store that owns the view's instance is what the caller holds, so no guest runs in it meanwhile.
    pub(crate) fn discard_view(&self, bytes: usize) -> Result<(), HostMemoryError> {
        let base = self.view.load(Ordering::Relaxed);
        assert_ne!(base, 0, "there is a view");
        // SAFETY: `view` is the base of a mapping that lives (its drop resets the field) and is larger than any memory.
        // Only untouched file pages reappear, and as wasm memory is plain bytes, any contents are valid.
        unsafe { madvise(ptr::with_exposed_provenance_mut(base), bytes, Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

/// wasmtime's source of linear memories.
pub(crate) struct Memories;

// SAFETY: a `Mapping` is zero-filled at first (a new file, or a view of one which the caller asked for), reserves the
// asked size with its guard, and never moves.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let capacity = reserved.ok_or("a reservation is always set")?;
        let backing = NEXT.with_borrow(|next| next.0.clone());
        let mapping = Mapping::new(backing, minimum, capacity, guard).map_err(|error| error.to_string())?;
        NEXT.with_borrow_mut(|next| next.1 = Some(Arc::clone(&mapping.file)));
        Ok(Box::new(mapping))
    }
}

/// One linear memory.
struct Mapping {
    base: *mut u8,
    /// Invariant: at most `capacity`.
    size: usize,
    capacity: usize,
    guard: usize,
    file: Arc<MemoryFile>,
    is_view: bool,
}

// SAFETY: the mapping belongs to this value alone, and its methods that change something take `&mut self`.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&self` only reads plain fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(backing: Backing, size: usize, capacity: usize, guard: usize) -> io::Result<Self> {
        let (file, is_view) = match backing {
            Backing::Live => (Arc::new(MemoryFile::new(capacity)?), false),
            Backing::View(file) => (file, true),
        };
        let reserve = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), capacity + guard, ProtFlags::empty(), reserve) }?;
        let mut mapping = Self { base: base.cast(), size: 0, capacity, guard, file, is_view };
        let sharing = if is_view { MapFlags::PRIVATE } else { MapFlags::SHARED };
        // SAFETY: it replaces the first `capacity` bytes of the reservation that was just made and is ours alone.
        unsafe {
            let flags = sharing | MapFlags::FIXED | MapFlags::NORESERVE;
            mmap(base, capacity, ProtFlags::empty(), flags, &mapping.file.fd, 0)
        }?;
        mapping.make_accessible(size)?;
        if is_view {
            mapping.file.view.store(base.expose_provenance(), Ordering::Relaxed);
        }
        Ok(mapping)
    }

    fn make_accessible(&mut self, size: usize) -> io::Result<()> {
        assert!(size >= self.size && size <= self.capacity, "a memory of {} grows to {size}", self.size);
        if size > self.size {
            // SAFETY: within our own mapping, as just asserted; nothing refers to those bytes, which had no access.
            unsafe {
                let start = self.base.add(self.size).cast();
                mprotect(start, size - self.size, MprotectFlags::READ | MprotectFlags::WRITE)
            }?;
            self.size = size;
        }
        Ok(())
    }
}

// SAFETY: `as_ptr` is valid for `byte_size` bytes, and growing never moves it.
unsafe impl LinearMemory for Mapping {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        Ok(self.make_accessible(size).map_err(HostMemoryError)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.is_view {
            // A newer view may have taken the place already.
            let base = self.base.expose_provenance();
            let _ = self.file.view.compare_exchange(base, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        // SAFETY: the mapping is ours, and whoever owned this value can't reach it any more.
        let unmapped = unsafe { munmap(self.base.cast(), self.capacity + self.guard) };
        debug_assert!(unmapped.is_ok(), "our own mapping can be unmapped");
    }
}
