//! Rollback after a trap: a trap leaves no effect of the module (safety rule 17).
//!
//! The journal holds the shadow, a copy of the module's state as it was some calls ago, and those calls. After a trap
//! the pages that were written since get the copy's bytes back, the globals its values, and the calls run again; the
//! trapped one isn't among them. Each must come to the same output list and the same fuel, or the node halts.
//! `_initialize`, `rsm_init` and `rsm_input` never run again. As memory can't shrink, a memory that grew since the copy
//! goes to a fresh instance, its pages with it; what is beyond the copy's size is cleared.
//!
//! How often a copy is taken is a matter of speed alone and differs between no results.
//!
//! **What it costs**, where the system can tell written pages ([`crate::written`]): a new copy and a rollback look
//! through the page table (0.3 ms for each GiB of memory) and copy the pages that were written (0.5 µs each). Each page
//! also costs 1.3 µs at its first write after a copy: that is the price of copies that come often. Where it can't, both
//! copy the whole memory (100 ms for each GiB).
//!
//! **What others wait for one trap**: at most the replay of [`CALLS_MAX`] calls, which burned at most [`FUEL_MAX`] and what
//! one more call may burn; and 2 µs for each page that these calls and the trapped one wrote. Measured after many requests:
//! 11 ms at 512 MiB, where each wrote to a page at random; 25 ms where each was a message of chat.
//! **A burst of traps** is no worse: the calls that one rollback replays are in the next one's copy as soon as they are
//! more than a few ([`REPLAY_CALLS`], [`REPLAY_FUEL`]), so each further trap costs one or two looks through the page table
//! and the pages of a few calls: 0.05 ms at 64 MiB and 0.2 ms at 512 MiB. One that comes after `memory.grow` costs a new
//! instance with a new page table, too: 10 ms for each GiB, and 1 µs at its first access to each page.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    guest::{GlobalBits, Guest, HEADER_BYTES, Witness},
    halt::Halt,
    memory::{HostMemoryError, MemoryFile},
    page_sums::PageSums,
    shadow::{FrozenMemory, PAGE_BYTES, Shadow},
    written::WriteTracker,
};

/// A new copy is due when the calls since the last one hold more bytes than this.
const BYTES_MAX: usize = 8 << 20;
/// Or when they have burned this much fuel: 25 to 70 ms' worth, about as much as a single call may by default.
const FUEL_MAX: u64 = 1 << 26;
/// Or when there are more of them than a number between these: fewer if they write many pages, so that a copy takes some
/// milliseconds at most; more if they write few, so that it is worth the look through the page table.
const CALLS_MIN: usize = 1 << 10;
/// The same while another thread has the last copy: then a page costs up to 5 µs, as its old bytes go to new memory first.
const CALLS_MIN_FROZEN: usize = 1 << 7;
/// See [`CALLS_MIN`].
const CALLS_MAX: usize = 1 << 15;
/// The pages that a copy should have to take, at least and at most.
const PAGES_AIMED: Range<usize> = 1_536..4_096;

/// The same, where a copy takes the whole memory: more bytes than this, and than the memory.
const WHOLE_BYTES_MIN: usize = 8 << 20;
/// More calls than this, and than one for each KiB of memory.
const WHOLE_CALLS_MIN: usize = 1 << 16;
/// More fuel than this, about a second's worth.
const WHOLE_FUEL_MAX: u64 = 1 << 30;

/// A rollback that has replayed more calls than this takes a new copy, at about the cost of so many calls.
const REPLAY_CALLS: usize = 8;
/// Or calls that have burned more fuel.
const REPLAY_FUEL: u64 = 1 << 15;

/// A call that ended well, to be made again.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) payload: Bytes,
    pub(crate) witness: Witness,
}

/// How long a copy took: by the clock, and of this thread's own time. On a machine with more to do than it has cores, they differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyTime {
    /// By the clock.
    pub clock: Duration,
    /// The thread's own time.
    pub thread: Duration,
}

impl CopyTime {
    fn now() -> Self {
        let now = |clock| clock_gettime(clock).try_into().unwrap_or_default();
        Self { clock: now(ClockId::Monotonic), thread: now(ClockId::ThreadCPUTime) }
    }

    fn until_now(self) -> Self {
        let now = Self::now();
        Self { clock: now.clock.saturating_sub(self.clock), thread: now.thread.saturating_sub(self.thread) }
    }

    fn max(self, other: Self) -> Self {
        Self { clock: self.clock.max(other.clock), thread: self.thread.max(other.thread) }
    }
}

/// A copy and the calls since. Invariant: the copy, then the calls, is the live state.
#[derive(Debug)]
pub(crate) struct Journal {
    shadow: Shadow,
    /// The shadow's size.
    memory_bytes: usize,
    globals: Vec<GlobalBits>,
    /// What `rsm_input` answered.
    input: usize,
    tracker: Option<WriteTracker>,
    /// Of the shadow. None where the tracker is missing: hashing the whole memory for each copy would double its price.
    sums: Option<PageSums>,
    calls: Vec<Call>,
    bytes: usize,
    fuel: u64,
    /// A new copy is due after this many calls.
    calls_max: usize,
    /// The longest that one copy took since the last that an image was made of, that one included.
    copy_longest: CopyTime,
    /// Room for ranges of memory, kept from copy to copy.
    ranges: Vec<Range<usize>>,
}

impl Journal {
    /// Begins with a copy of `guest`, whose memory file is `file`.
    pub(crate) fn new(guest: &mut Guest, file: &MemoryFile) -> Result<Self, Halt> {
        let mut journal = Self::empty(Shadow::default(), file);
        journal.renew(guest, file)?;
        Ok(journal)
    }

    /// Begins anew with a copy of another module's instance. What this one holds goes away before that, so that the copy finds its room; but what
    /// a reader of it still needs stays.
    pub(crate) fn succeed(&mut self, guest: &mut Guest, file: &MemoryFile) -> Result<(), Halt> {
        self.tracker = None;
        let (shadow, copy_longest) = (std::mem::take(&mut self.shadow).successor(), self.copy_longest);
        *self = Self::empty(shadow, file);
        self.renew(guest, file)?;
        self.copy_longest = copy_longest; // This one is a part of the swap's pause, and no image's.
        Ok(())
    }

    fn empty(shadow: Shadow, file: &MemoryFile) -> Self {
        Self {
            shadow,
            memory_bytes: 0,
            globals: Vec::new(),
            input: 0,
            tracker: WriteTracker::new(file.live(), file.capacity()),
            sums: Some(PageSums::default()),
            calls: Vec::new(),
            bytes: 0,
            fuel: 0,
            calls_max: CALLS_MAX / 8,
            copy_longest: CopyTime::default(),
            ranges: Vec::new(),
        }
    }

    /// Takes a new copy.
    pub(crate) fn renew(&mut self, guest: &mut Guest, file: &MemoryFile) -> Result<(), Halt> {
        let began = CopyTime::now();
        let size = guest.memory().len();
        self.find_written(true, size, file)?;
        self.shadow.take(guest.memory(), &self.ranges);
        match (&mut self.sums, &self.tracker) {
            (Some(sums), Some(_)) => sums.take(guest.memory(), &self.ranges),
            _ => self.sums = None,
        }
        self.track(size);
        self.memory_bytes = size;
        self.globals.clear();
        self.globals.extend(guest.globals());
        self.input = guest.input();
        self.pace();
        self.calls.clear();
        (self.bytes, self.fuel) = (0, 0);
        self.copy_longest = self.copy_longest.max(began.until_now());
        Ok(())
    }

    /// Sets how many calls the next copy comes after, by how many pages this one took; a few calls say nothing.
    fn pace(&mut self) {
        if self.calls.len() < CALLS_MIN_FROZEN / 2 {
            return;
        }
        let pages = self.ranges.iter().map(Range::len).sum::<usize>() / PAGE_BYTES;
        let expected = pages * self.calls_max / self.calls.len();
        // For a reader each page is copied twice, the first time to new memory.
        let (weight, least) = if self.shadow.is_frozen() { (6, CALLS_MIN_FROZEN) } else { (1, CALLS_MIN) };
        if expected * weight >= PAGES_AIMED.end {
            self.calls_max = (self.calls_max / 2).max(least);
        } else if expected * weight < PAGES_AIMED.start {
            self.calls_max = (self.calls_max * 2).min(CALLS_MAX);
        }
    }

    /// Finds where the live memory, now of `size` bytes, may differ from the copy: in [`Journal::ranges`].
    fn find_written(&mut self, protect: bool, size: usize, file: &MemoryFile) -> Result<(), Halt> {
        self.ranges.clear();
        let mut tracked = 0;
        if let Some(tracker) = &mut self.tracker {
            tracked = tracker.bytes().min(size);
            if let Err(error) = tracker.written(protect, &mut self.ranges) {
                self.stop_tracking(&error);
                self.ranges.clear();
                tracked = 0;
            }
        }
        file.pages(tracked..size, &mut self.ranges).map_err(host_memory)
    }

    fn track(&mut self, size: usize) {
        if let Some(Err(error)) = self.tracker.as_mut().map(|tracker| tracker.extend_to(size)) {
            self.stop_tracking(&error);
        }
    }

    /// From now on every page is taken for written, so nothing goes wrong but the time it takes.
    fn stop_tracking(&mut self, error: &dyn std::fmt::Display) {
        tracing::warn!(%error, "the system no longer tells which pages the module wrote; its whole memory is copied instead");
        self.tracker = None;
    }

    /// Keeps a call that ended well and burned `fuel`. Returns whether a new copy is due.
    #[inline]
    pub(crate) fn keep(&mut self, call: Call, fuel: u64) -> bool {
        self.fuel += fuel;
        self.bytes += size_of::<Call>() + call.payload.len();
        self.calls.push(call);
        let memory = self.memory_bytes;
        if self.tracker.is_some() {
            self.calls.len() > self.calls_max || self.bytes > BYTES_MAX || self.fuel > FUEL_MAX
        } else {
            self.calls.len() > (memory >> 10).max(WHOLE_CALLS_MIN)
                || self.bytes > memory.max(WHOLE_BYTES_MIN)
                || self.fuel > WHOLE_FUEL_MAX
        }
    }

    /// Puts the copy's bytes back into the memory of `guest`, within the copy's size.
    pub(crate) fn put_back(&mut self, guest: &mut Guest, file: &MemoryFile) -> Result<(), Halt> {
        self.find_written(false, self.memory_bytes, file)?;
        self.shadow.put_back(guest.memory_mut(), &self.ranges);
        // What was just put back is equal to the copy again: the next rollback need not look at it.
        if let Some(Err(error)) = self.tracker.as_mut().map(|tracker| tracker.protect_again(&self.ranges)) {
            self.stop_tracking(&error);
        }
        Ok(())
    }

    /// The memory is mapped elsewhere now: it is equal to the copy, and of its size.
    pub(crate) fn moved(&mut self, file: &MemoryFile) {
        self.tracker = self.tracker.as_ref().and_then(|_| WriteTracker::new(file.live(), file.capacity()));
        self.track(self.memory_bytes);
    }

    /// Whether replaying the calls once more would cost more than a new copy.
    pub(crate) fn is_long(&self) -> bool {
        self.calls.len() > REPLAY_CALLS || self.fuel > REPLAY_FUEL
    }

    /// The longest that one copy has taken since the last that an image was made of, that one included.
    pub(crate) const fn copy_longest(&self) -> CopyTime {
        self.copy_longest
    }

    /// Forgets how long copies took.
    pub(crate) fn time_copies_anew(&mut self) {
        self.copy_longest = CopyTime::default();
    }

    /// The size of the copy, in bytes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The sum over the copy's pages; none where the system can't tell written ones.
    pub(crate) fn page_sum(&self) -> Option<u64> {
        self.sums.as_ref().map(PageSums::sum)
    }

    /// The copy's globals.
    pub(crate) fn globals(&self) -> &[GlobalBits] {
        &self.globals
    }

    /// What `rsm_input` answered.
    pub(crate) const fn input(&self) -> usize {
        self.input
    }

    /// The calls since the copy.
    pub(crate) fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The copy's memory, for another thread; nothing if one has it already.
    pub(crate) fn freeze(&mut self) -> Option<FrozenMemory> {
        self.calls_max = (self.calls_max / 8).max(CALLS_MIN_FROZEN); // see `pace`: a page costs more from now on
        self.shadow.freeze()
    }

    /// Whether another thread has the copy's memory.
    pub(crate) fn is_frozen(&self) -> bool {
        self.shadow.is_frozen()
    }

    /// The bytes that would be copied now, if they can be told.
    #[cfg(test)]
    pub(crate) fn written(&mut self) -> Option<usize> {
        self.ranges.clear();
        self.tracker.as_mut()?.written(false, &mut self.ranges).ok()?;
        Some(self.ranges.iter().map(Range::len).sum())
    }

    /// Makes the first call another one than it was, as broken memory of the host would.
    #[cfg(test)]
    pub(crate) fn corrupt(&mut self) {
        self.calls[0].header[0] ^= 0xff;
    }
}

fn host_memory(error: HostMemoryError) -> Halt {
    Halt::HostMemory(error.to_string())
}
