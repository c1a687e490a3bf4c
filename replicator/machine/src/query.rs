//! Queries: calls on a second instance, over a private view of the live memory.
//!
//! Before each query the view's globals are set from the live ones and its memory has the live size; after it, the
//! pages that it wrote are dropped, and a view whose memory a query grew is dropped as a whole. So each query, whatever
//! it does, is a function of the state and its own bytes, and never changes the state.

use std::sync::Arc;

use crate::{
    engine::Prepared,
    guest::{Called, Failure, Guest, GlobalBits, HEADER_BYTES},
    halt::Halt,
    limits::Limits,
    memory::MemoryFile,
};

/// The second instance. Invariant between queries: no private pages, and a memory no larger than the live one.
pub(crate) struct View {
    guest: Guest,
    file: Arc<MemoryFile>,
    globals: Vec<GlobalBits>,
}

impl View {
    /// A view of `live`, whose memory file is `file`.
    pub(crate) fn new(prepared: &Prepared, limits: &Limits, live: &Guest, file: &Arc<MemoryFile>) -> Result<Self, Halt> {
        let guest = Guest::view(&prepared.module, limits, file)?;
        let mut view = Self { guest, file: Arc::clone(file), globals: Vec::new() };
        view.discard()?; // instantiation wrote the module's data segments
        view.guest.grow_to(live.memory().len())?;
        view.guest.set_input(live.input()).map_err(Halt::Engine)?;
        Ok(view)
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
        let reusable = match self.discard() {
            Ok(()) => self.guest.memory().len() == live.memory().len(),
            Err(halt) => return (Err(Failure::Halt(halt)), false),
        };
        (called, reusable)
    }

    fn synchronise(&mut self, live: &mut Guest) -> Result<(), Halt> {
        self.guest.grow_to(live.memory().len())?;
        self.globals.clear();
        self.globals.extend(live.globals());
        self.guest.set_globals(&self.globals)
    }

    fn discard(&self) -> Result<(), Halt> {
        self.file.discard_view(self.guest.memory().len()).map_err(|error| Halt::HostMemory(error.to_string()))
    }
}
