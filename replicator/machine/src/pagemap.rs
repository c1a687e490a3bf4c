//! Which pages of a mapping have some property: Linux's PAGEMAP_SCAN, from 6.7 on.

use std::{ffi::c_void, ops::Range, os::fd::OwnedFd, ptr, sync::LazyLock};

use rustix::{
    fs::{Mode, OFlags, open},
    io,
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode},
};

// From Linux's include/uapi/linux/fs.h.
const PAGEMAP_SCAN: Opcode = opcode::read_write::<Arguments>(b'f', 16);
/// Protects the pages that are found.
const WP_MATCHING: u64 = 1 << 0;
/// Fails where pages can't be protected so that writes go on by themselves.
const CHECK_WPASYNC: u64 = 1 << 1;
const IS_WRITTEN: u64 = 1 << 1;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Arguments {
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
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

impl PageRegion {
    /// The addresses, counted from `base`.
    pub(crate) const fn after(self, base: usize) -> Range<usize> {
        self.start as usize - base..self.end as usize - base
    }
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Find {
    /// Pages of a private mapping of a file that are its own.
    Private {
        /// The scan ends after this many.
        pages_max: u64,
    },
    /// Pages that were written since they were last protected.
    ///
    /// The kernel counts a page without an entry of its own as written, too, such as one that was swapped out: more than
    /// were written may be found, never fewer.
    Written {
        /// Whether to protect them.
        protect: bool,
    },
}

/// The scan, with the number of regions as its result.
struct Scan<'a>(&'a mut Arguments);

// SAFETY: the opcode takes this struct, reads and writes it, and writes to at most `regions_len` regions; it answers how many.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(found: IoctlOutput, _: *mut c_void) -> io::Result<usize> {
        Ok(found as usize)
    }
}

/// Looks through the pages of `addresses`, in their order, for as long as `regions` has room. Returns how many regions it
/// found, and the address up to which it looked.
///
/// # Errors
/// If the kernel can't do it.
pub(crate) fn scan(addresses: &Range<usize>, find: Find, regions: &mut [PageRegion]) -> io::Result<(usize, usize)> {
    static PAGEMAP: LazyLock<io::Result<OwnedFd>> =
        LazyLock::new(|| open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()));
    let mut arguments = Arguments {
        size: size_of::<Arguments>() as u64,
        start: addresses.start as u64,
        end: addresses.end as u64,
        regions: regions.as_mut_ptr().expose_provenance() as u64,
        regions_len: regions.len() as u64,
        ..Arguments::default()
    };
    match find {
        Find::Private { pages_max } => {
            arguments.pages_max = pages_max;
            (arguments.category_inverted, arguments.category_mask) = (IS_FILE, IS_FILE);
            (arguments.category_anyof_mask, arguments.return_mask) = (IS_PRESENT | IS_SWAPPED, IS_FILE);
        }
        // Exactly these masks: with others the kernel leaves out pages without an entry.
        Find::Written { protect } => {
            arguments.flags = CHECK_WPASYNC | if protect { WP_MATCHING } else { 0 };
            (arguments.category_mask, arguments.return_mask) = (IS_WRITTEN, IS_WRITTEN);
        }
    }
    let pagemap = PAGEMAP.as_ref().map_err(|error| *error)?;
    // SAFETY: `arguments` and `regions` outlive the call. Protecting pages changes none of their bytes.
    let found = unsafe { ioctl(pagemap, Scan(&mut arguments)) }?;
    Ok((found, arguments.walk_end as usize))
}
