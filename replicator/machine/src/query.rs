//! Queries: calls on a second instance, over a private view of the live memory.
//!
//! Before each query the view's globals are set from the live ones and its memory has the live size; after it, the
//! pages that it wrote are copied back or dropped, and a view whose memory a query grew is dropped as a whole. So each
//! query, whatever it does, is a function of the state and its own bytes: it changes neither the state nor what the
//! queries beside it see.

use std::sync::Arc;

use crate::{
    engine::Prepared,
    guest::{Called, Failure, GlobalBits, Guest, HEADER_BYTES},
    halt::Halt,
    limits::Limits,
    memory::MemoryFile,
};

/// The second instance.
///
/// Invariant between queries: its memory is no larger than the live one and, unless `stale`, equal to it.
pub(crate) struct View {
    guest: Guest,
    file: Arc<MemoryFile>,
    globals: Vec<GlobalBits>,
    /// The live memory may have changed beneath private pages.
    stale: bool,
}

impl View {
    /// A view of `live`, whose memory file is `file`.
    pub(crate) fn new(
        prepared: &Prepared,
        limits: &Limits,
        live: &Guest,
        file: &Arc<MemoryFile>,
    ) -> Result<Self, Halt> {
        let guest = Guest::view(&prepared.module, limits, file)?;
        let mut view = Self { guest, file: Arc::clone(file), globals: Vec::new(), stale: false };
        view.discard()?; // instantiation wrote the module's data segments
        view.guest.grow_to(live.memory().len())?;
        view.guest.set_input(live.input()).map_err(Halt::Engine)?;
        Ok(view)
    }

    /// The instance, set to the live state: a copy of it, of which nobody sees what becomes.
    pub(crate) fn into_fork(mut self, live: &mut Guest) -> Result<Guest, Halt> {
        self.synchronise(live)?;
        Ok(self.guest)
    }

    /// The live instance was called.
    #[inline]
    pub(crate) const fn live_has_changed(&mut self) {
        self.stale = true;
    }

    /// Answers one query. Returns whether the view can be used again, too.
    pub(crate) fn query(
        &mut self,
        live: &mut Guest,
        header: &[u8; HEADER_BYTES],
        request: &[u8],
        fuel: u64,
    ) -> (Result<Called, Failure>, bool) {
        let called = match self.synchronise(live) {
            Ok(()) => self.guest.query(header, request, fuel),
            Err(halt) => Err(Failure::Halt(halt)),
        };
        match self.renew_pages(live) {
            Ok(()) => (called, self.guest.memory().len() == live.memory().len()),
            Err(halt) => (Err(Failure::Halt(halt)), false),
        }
    }

    fn synchronise(&mut self, live: &mut Guest) -> Result<(), Halt> {
        self.guest.grow_to(live.memory().len())?;
        if self.stale {
            self.renew_pages(live)?;
        }
        self.globals.clear();
        self.globals.extend(live.globals());
        self.guest.set_globals(&self.globals)
    }

    /// Makes private pages equal to the live ones: those that a query wrote, and those that an entry has changed since.
    fn renew_pages(&mut self, live: &Guest) -> Result<(), Halt> {
        let Some(pages) = self.file.private_pages(live.memory().len()) else { return self.discard() };
        for range in pages {
            self.guest.memory_mut()[range.clone()].copy_from_slice(&live.memory()[range]);
        }
        self.stale = false;
        Ok(())
    }

    fn discard(&mut self) -> Result<(), Halt> {
        let bytes = self.guest.memory().len();
        self.file.discard_view(bytes).map_err(|error| Halt::HostMemory(error.to_string()))?;
        self.stale = false;
        Ok(())
    }
}
