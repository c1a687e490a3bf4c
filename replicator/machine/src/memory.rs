//! Linear memories over memory files: the live instance's, and views of it for queries.
//!
//! The live memory is a shared mapping of a memory file (memfd). A query's instance maps the same file privately: it reads
//! what the live instance wrote, and the kernel gives it a page of its own at its first write there. Dropping those
//! pages takes back whatever the query wrote, so no query can change state. The kernel says, too, which pages those
//! are: while they are few, copying the live ones over them is quicker than dropping them.
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
//! A private page that was not yet written shows later writes of the live instance, and one that was doesn't. So queries
//! run on the apply thread, between entries, and all private pages are renewed before the first query after an entry.

use std::{
    cell::RefCell,
    ffi::c_void,
    ops::Range,
    os::fd::OwnedFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, ftruncate, memfd_create, seek},
    io,
    mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap},
};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use crate::pagemap::{Find, PageRegion, scan};

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

/// The memory file of a live memory, and where it is mapped. All of its methods but those of the view are for the thread
/// that owns the live instance.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    fd: OwnedFd,
    capacity: usize,
    /// The base of the live memory.
    live: AtomicUsize,
    /// The base of the newest view, for its private pages; 0: none.
    view: AtomicUsize,
}

impl MemoryFile {
    fn new(capacity: usize) -> io::Result<Self> {
        let fd = memfd_create("replicator-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, capacity as u64)?; // sparse: pages exist once they are written
        Ok(Self { fd, capacity, live: AtomicUsize::new(0), view: AtomicUsize::new(0) })
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

    /// Where the view of this file has private pages, in its first `bytes` bytes: all that was written through it.
    ///
    /// Nothing if the kernel can't tell (it has to be Linux 6.7), or if they are so many that dropping them is better.
    pub(crate) fn private_pages(&self, bytes: usize) -> Option<impl Iterator<Item = Range<usize>> + use<>> {
        let base = self.view.load(Ordering::Relaxed);
        assert_ne!(base, 0, "there is a view");
        let mut regions = [PageRegion::default(); SCAN_REGIONS_MAX];
        let addresses = base..base + bytes;
        let (found, walked) = scan(&addresses, Find::Private { pages_max: SCAN_PAGES_MAX }, &mut regions).ok()?;
        // It stops early when it found as many pages or regions as there is room for.
        (walked == addresses.end).then(|| regions.into_iter().take(found).map(move |region| region.after(base)))
    }

    /// Makes the view of this file its live memory: accessible in its first `bytes` bytes, private pages dropped. The memory
    /// that was live before sees the same file until it is dropped, and must not be used any more.
    ///
    /// As for [`MemoryFile::discard_view`], the caller holds the store that owns the view's instance.
    pub(crate) fn make_view_live(&self, bytes: usize) -> Result<(), HostMemoryError> {
        let base = self.view.swap(0, Ordering::Relaxed);
        assert_ne!(base, 0, "there is a view");
        let start = ptr::with_exposed_provenance_mut(base);
        // SAFETY: it replaces a mapping of this size that lives, and that nobody else uses. Wasm memory is plain bytes, so
        // any contents are valid.
        unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
            mmap(start, self.capacity, ProtFlags::empty(), flags, &self.fd, 0)?;
            forbid_huge_pages(start, self.capacity);
            mprotect(start, bytes, MprotectFlags::READ | MprotectFlags::WRITE)?;
        }
        self.live.store(base, Ordering::Relaxed);
        Ok(())
    }

    /// The base of the live memory.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// How far the live memory can grow, in bytes.
    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds to `ranges` where, within `bytes`, the file has pages: everywhere else it holds zeros, and takes no room.
    pub(crate) fn pages(&self, bytes: Range<usize>, ranges: &mut Vec<Range<usize>>) -> Result<(), HostMemoryError> {
        let mut at = bytes.start as u64;
        while at < bytes.end as u64 {
            let start = match seek(&self.fd, SeekFrom::Data(at)) {
                Ok(start) if start < bytes.end as u64 => start,
                Ok(_) | Err(io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            at = seek(&self.fd, SeekFrom::Hole(start))?.min(bytes.end as u64);
            ranges.push(start as usize..at as usize);
        }
        Ok(())
    }

    /// Makes `bytes` of the file zeros that take no room.
    pub(crate) fn clear(&self, bytes: Range<usize>) -> Result<(), HostMemoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.fd, flags, bytes.start as u64, bytes.len() as u64)?)
    }
}

/// Keeps the kernel from mapping a live memory by huge pages: which were written is to be known by small ones.
///
/// # Safety
/// The mapping is the caller's.
unsafe fn forbid_huge_pages(start: *mut c_void, bytes: usize) {
    // SAFETY: it changes no contents. A kernel without huge pages refuses it, rightly.
    let _ = unsafe { madvise(start, bytes, Advice::LinuxNoHugepage) };
}

/// Private pages that are copied back at most.
const SCAN_PAGES_MAX: u64 = 64;
/// And the ranges in which they may lie.
const SCAN_REGIONS_MAX: usize = 32;

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
        } else {
            mapping.file.live.store(base.expose_provenance(), Ordering::Relaxed);
            // SAFETY: the mapping that was just made.
            unsafe { forbid_huge_pages(base, capacity) };
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

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
