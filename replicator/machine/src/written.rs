//! Which pages of the live memory were written: userfaultfd's write protection in its asynchronous mode (Linux 6.7).
//!
//! A protected page is written like any other: the kernel itself takes the protection off at the first write (about a
//! microsecond), be it the guest's, the host's or one of the kernel's own, and nobody is asked. What is no longer
//! protected was written. Looking through a memory takes 0.3 ms for each GiB of it.
//!
//! It takes no rights: the descriptor is made for faults of user mode only, as this mode hands out no faults at all.
//! Where it isn't to be had (an older kernel, a sandbox that forbids the call) there is no tracker, and whoever would
//! ask it takes every page for written.

use std::{cell::Cell, ops::Range, os::fd::OwnedFd, sync::Once};

use rustix::{
    io,
    ioctl::{Opcode, Updater, ioctl, opcode},
    mm::{UserfaultfdFlags, userfaultfd},
};

use crate::pagemap::{Find, PageRegion, scan};

// From Linux's include/uapi/linux/userfaultfd.h.
const USER_MODE_ONLY: u32 = 1;
const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(0xaa, 0x06);

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// Regions for one scan.
const REGIONS: usize = 1_024;
/// Up to so many ranges are protected one by one; more, by looking through the whole memory once more.
const RANGES_PROTECTED_SINGLY: usize = 128;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `run` as if the kernel couldn't track writes, for tests.
pub(crate) fn without_tracking<T>(run: impl FnOnce() -> T) -> T {
    let before = FORBIDDEN.replace(true);
    let done = run();
    FORBIDDEN.set(before);
    done
}

/// Knows which pages of a mapping were written.
#[derive(Debug)]
pub(crate) struct WriteTracker {
    uffd: OwnedFd,
    base: usize,
    /// The tracked part of the mapping, in bytes from `base`.
    bytes: usize,
    regions: Vec<PageRegion>,
}

impl WriteTracker {
    /// Tracks the mapping of `capacity` bytes at `base`, which is a shared one of a memory file, and of which no byte is
    /// protected yet. Nothing if it can't be done here.
    ///
    /// The mapping must outlive the tracker, or at least its use.
    pub(crate) fn new(base: usize, capacity: usize) -> Option<Self> {
        if FORBIDDEN.get() {
            return None;
        }
        match Self::try_new(base, capacity) {
            Ok(tracker) => Some(tracker),
            Err(error) => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    tracing::warn!(
                        %error,
                        "this system can't tell which pages a module wrote (it takes Linux 6.7, and userfaultfd), so each \
                         rollback and each image copies the module's whole memory"
                    );
                });
                None
            }
        }
    }

    fn try_new(base: usize, capacity: usize) -> io::Result<Self> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let flags = flags | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
        // SAFETY: the descriptor stays in here, and is used for protection alone.
        let uffd = unsafe { userfaultfd(flags) }?;
        let features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_ASYNC;
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: the opcode takes this struct; it changes no memory but that.
        unsafe { ioctl(&uffd, Updater::<UFFDIO_API, Api>::new(&mut api)) }?;
        let (start, len) = (base as u64, capacity as u64);
        let mut register = Register { start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: as above. Asynchronous protection never stops an access, so the mapping stays what it was.
        unsafe { ioctl(&uffd, Updater::<UFFDIO_REGISTER, Register>::new(&mut register)) }?;
        let mut tracker = Self { uffd, base, bytes: 0, regions: vec![PageRegion::default(); REGIONS] };
        // An empty scan, to find out whether there is one at all.
        let find = Find::Written { protect: true };
        scan(&(base..base), find, &mut tracker.regions)?;
        Ok(tracker)
    }

    /// The tracked part, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tracks what lies between the tracked part and `bytes`, too, from now on.
    ///
    /// # Errors
    /// If the kernel can't; then the tracker is of no use any more.
    pub(crate) fn extend_to(&mut self, bytes: usize) -> io::Result<()> {
        if bytes > self.bytes {
            self.protect(&(self.bytes..bytes))?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Adds to `ranges` where the tracked part was written since it was last protected; with `protect`, protects it again.
    ///
    /// # Errors
    /// If the kernel can't; then the tracker is of no use any more, and `ranges` isn't complete.
    pub(crate) fn written(&mut self, protect: bool, ranges: &mut Vec<Range<usize>>) -> io::Result<()> {
        let mut left = self.base..self.base + self.bytes;
        while left.start < left.end {
            let (found, walked) = scan(&left, Find::Written { protect }, &mut self.regions)?;
            for range in self.regions[..found].iter().map(|region| region.after(self.base)) {
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
            assert!(walked > left.start, "a scan gets on: {walked:#x} of {left:#x?}");
            left.start = walked;
        }
        Ok(())
    }

    /// Protects `ranges`, which [`WriteTracker::written`] found just now without doing so.
    ///
    /// # Errors
    /// If the kernel can't; then the tracker is of no use any more.
    pub(crate) fn protect_again(&mut self, ranges: &[Range<usize>]) -> io::Result<()> {
        if ranges.len() > RANGES_PROTECTED_SINGLY {
            return self.written(true, &mut Vec::new());
        }
        ranges.iter().try_for_each(|range| self.protect(range))
    }

    fn protect(&self, range: &Range<usize>) -> io::Result<()> {
        let (start, len) = ((self.base + range.start) as u64, range.len() as u64);
        let mut protect = WriteProtect { start, len, mode: WRITEPROTECT_MODE_WP };
        // SAFETY: as for the registration.
        unsafe { ioctl(&self.uffd, Updater::<UFFDIO_WRITEPROTECT, WriteProtect>::new(&mut protect)) }
    }
}

#[cfg(test)]
#[path = "written_tests.rs"]
mod tests;
