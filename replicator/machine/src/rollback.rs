//! Rollback after a trap: a trap leaves no effect of the module (safety rule 17).
//!
//! The journal holds a copy of the module's state as it was some calls ago, and those calls. After a trap a fresh
//! instance gets the copy (memory can't shrink, so the old one won't do), and the calls run again; the trapped one isn't
//! among them. Each must come to the same output list and the same fuel, or the node halts. `_initialize`, `rsm_init`
//! and `rsm_input` never run again.
//!
//! How often a copy is taken is a matter of speed alone and differs between no results.

use bytes::Bytes;

use crate::guest::{GlobalBits, Guest, HEADER_BYTES, Witness};

/// A new copy is due when the calls since the last one hold more bytes than this, and than the memory.
const JOURNAL_BYTES_MIN: usize = 8 << 20;
/// Or when there are more of them than this, and than one for each KiB of memory: bounds how long a rollback takes.
const JOURNAL_CALLS_MIN: usize = 1 << 16;

/// Or when they have burned this much fuel, about a second's worth: costly calls are few, and would replay for hours.
const JOURNAL_FUEL_MAX: u64 = 1 << 30;

/// All of the module's state at one moment.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// The whole memory. Its length is a multiple of a page.
    pub(crate) memory: Vec<u8>,
    pub(crate) globals: Vec<GlobalBits>,
    /// What `rsm_input` answered.
    pub(crate) input: usize,
}

/// A call that ended well, to be made again.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) payload: Bytes,
    pub(crate) witness: Witness,
}

/// A copy and the calls since. Invariant: the copy, then the calls, is the live state.
#[derive(Debug)]
pub(crate) struct Journal {
    copy: Copy,
    calls: Vec<Call>,
    bytes: usize,
    fuel: u64,
}

impl Journal {
    /// Begins with a copy of `guest`.
    pub(crate) fn new(guest: &mut Guest) -> Self {
        let mut journal = Self { copy: Copy::default(), calls: Vec::new(), bytes: 0, fuel: 0 };
        journal.renew(guest);
        journal
    }

    /// Takes a new copy.
    pub(crate) fn renew(&mut self, guest: &mut Guest) {
        self.copy.memory.clear();
        self.copy.memory.extend_from_slice(guest.memory());
        self.copy.globals.clear();
        self.copy.globals.extend(guest.globals());
        self.copy.input = guest.input();
        self.calls.clear();
        (self.bytes, self.fuel) = (0, 0);
    }

    /// Keeps a call that ended well and burned `fuel`, and takes a new copy when that is due.
    #[inline]
    pub(crate) fn keep(&mut self, call: Call, fuel: u64, guest: &mut Guest) {
        self.fuel += fuel;
        self.bytes += size_of::<Call>() + call.payload.len();
        self.calls.push(call);
        let memory = self.copy.memory.len();
        let long = self.calls.len() > (memory >> 10).max(JOURNAL_CALLS_MIN);
        if long || self.bytes > memory.max(JOURNAL_BYTES_MIN) || self.fuel > JOURNAL_FUEL_MAX {
            self.renew(guest);
        }
    }

    /// Makes the first call another one than it was, as broken memory of the host would.
    #[cfg(test)]
    pub(crate) fn corrupt(&mut self) {
        self.calls[0].header[0] ^= 0xff;
    }

    /// The copy, and the calls since.
    pub(crate) fn parts(&self) -> (&Copy, &[Call]) {
        (&self.copy, &self.calls)
    }
}
