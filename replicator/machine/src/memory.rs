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
    ops::Range,
    os::fd::OwnedFd,
    ptr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open},
    io,
    ioctl::{Opcode, Updater, ioctl, opcode},
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
    /// The base of the newest view, for its private pages; 0: none.
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

    /// Where the view of this file has private pages, in its first `bytes` bytes: all that was written through it.
    ///
    /// Nothing if the kernel can't tell (it has to be Linux 6.7), or if they are so many that dropping them is better.
    pub(crate) fn private_pages(&self, bytes: usize) -> Option<impl Iterator<Item = Range<usize>> + use<>> {
        static PAGEMAP: LazyLock<Option<OwnedFd>> =
            LazyLock::new(|| open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok());
        let base = self.view.load(Ordering::Relaxed);
        assert_ne!(base, 0, "there is a view");
        let mut regions = [PageRegion::default(); SCAN_REGIONS_MAX];
        let mut scan = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start: base as u64,
            end: (base + bytes) as u64,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            regions_len: SCAN_REGIONS_MAX as u64,
            pages_max: SCAN_PAGES_MAX,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_FILE,
            ..ScanArguments::default()
        };
        // SAFETY: the opcode takes this struct. The kernel writes to it and to at most `regions_len` regions, all of
        // which outlive the call; it changes no page, as no flag asks for that.
        unsafe { ioctl(PAGEMAP.as_ref()?, Updater::<PAGEMAP_SCAN, ScanArguments>::new(&mut scan)) }.ok()?;
        // It stops early when it found as many pages or regions as there is room for.
        let whole = scan.walk_end == scan.end;
        let found = regions.into_iter().take_while(|region| region.end != 0);
        whole.then(|| found.map(move |region| region.start as usize - base..region.end as usize - base))
    }
}

/// Private pages that are copied back at most.
const SCAN_PAGES_MAX: u64 = 64;
/// And the ranges in which they may lie.
const SCAN_REGIONS_MAX: usize = 32;

// From Linux's include/uapi/linux/fs.h.
const PAGEMAP_SCAN: Opcode = opcode::read_write::<ScanArguments>(b'f', 16);
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    pages_max: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
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

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
