//! The module at work: calls by the log, with rollback, and queries.

use std::sync::Arc;

use bytes::Bytes;
use replicator_types::{LogIndex, Seed, Sequence, SessionId};

use crate::{
    activation::ActivationRefusal,
    decode::Output,
    engine::Prepared,
    guest::{Failure, GlobalBits, Guest, HEADER_BYTES},
    halt::Halt,
    image::{Head, ImageError},
    limits::{Limits, PAGE_BYTES},
    load::ModuleInfo,
    memory::MemoryFile,
    outcome::{QueryOutcome, RequestResult, Trap},
    query::View,
    rollback::{Call, CopyTime, Journal},
    shadow::FrozenMemory,
    swap::{self, Stopped, Successor},
};

/// Why the module is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Request = 0,
    Tick = 1,
    Connect = 2,
    Disconnect = 3,
}

/// What the module learns beside a call's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) kind: Kind,
    pub(crate) index: LogIndex,
    pub(crate) client: SessionId,
    pub(crate) time_us: i64,
    pub(crate) sequence: Sequence,
    pub(crate) seed: Seed,
}

impl Context {
    /// The 64 bytes before the request, little-endian (`docs/guest-abi.md`).
    #[inline]
    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(self.kind as u32).to_le_bytes());
        header[8..16].copy_from_slice(&self.index.0.to_le_bytes());
        header[16..32].copy_from_slice(&self.client.0);
        header[32..40].copy_from_slice(&self.time_us.to_le_bytes());
        header[40..48].copy_from_slice(&self.sequence.0.to_le_bytes());
        header[48..64].copy_from_slice(&self.seed.0);
        header
    }
}

/// The module's live instance, and what rollback and queries need.
pub(crate) struct Application {
    prepared: Arc<Prepared>,
    limits: Limits,
    live: Guest,
    file: Arc<MemoryFile>,
    journal: Journal,
    view: Option<View>,
    traps: u64,
}

impl Application {
    /// Begins a history.
    pub(crate) fn begin(prepared: Arc<Prepared>, limits: &Limits, config: &[u8]) -> Result<Self, Halt> {
        prepared.info.fits(limits)?;
        let (mut live, file) = Guest::live(&prepared.module, limits)?;
        live.begin(limits, config)?;
        let journal = Journal::new(&mut live, &file)?;
        Ok(Self { prepared, limits: limits.clone(), live, file, journal, view: None, traps: 0 })
    }

    /// Goes on from an image: with the memory's size, the globals and the input's address of its head, and what `fill` writes
    /// to the memory, which is all zeros.
    ///
    /// Nothing of the module runs. What no image of this module says is refused before anything is allocated for it.
    pub(crate) fn restore(
        prepared: Arc<Prepared>,
        head: &Head,
        fill: impl FnOnce(&mut [u8]) -> Result<(), ImageError>,
    ) -> Result<Self, ImageError> {
        let (limits, bytes, globals) = (&head.genesis.limits, head.memory_bytes, &head.globals[..]);
        prepared.info.fits(limits).map_err(Halt::from)?;
        let (mut live, file) = Guest::live(&prepared.module, limits)?;
        let least = live.memory().len();
        let most = live.memory_bytes_max().unwrap_or(u64::MAX).min(limits.memory_bytes() as u64);
        if bytes % PAGE_BYTES as u64 != 0 || bytes > most || bytes < least as u64 {
            return Err(no_image(&format!("a memory of {bytes} bytes; it can have {least} to {most}")));
        }
        file.clear(0..least).map_err(|error| Halt::HostMemory(error.to_string()))?; // the module's data segments
        live.grow_to(usize::try_from(bytes).expect("at most the limit, which was a usize"))?;
        if globals.len() != live.globals().count() {
            return Err(no_image(&format!("{} mutable globals", globals.len())));
        }
        live.set_globals(globals)?;
        if !live.globals().eq(globals.iter().copied()) {
            return Err(no_image("such values in its globals"));
        }
        let input = usize::try_from(head.input).ok().filter(|&input| (input as u64) < bytes);
        input.and_then(|input| live.set_input(input).ok()).ok_or_else(|| no_image("its input there"))?;
        fill(live.memory_mut())?;
        let journal = Journal::new(&mut live, &file)?;
        Ok(Self { prepared, limits: limits.clone(), live, file, journal, view: None, traps: 0 })
    }

    /// Calls the module. A trap leaves no effect.
    #[inline]
    pub(crate) fn call(&mut self, context: &Context, payload: &Bytes) -> Result<Result<Output, Trap>, Halt> {
        let header = context.header();
        if let Some(view) = &mut self.view {
            view.live_has_changed();
        }
        match self.live.apply(&header, payload, self.limits.apply_fuel) {
            Ok(called) => {
                let call = Call { header, payload: payload.clone(), witness: called.witness };
                let fuel = self.limits.apply_fuel - called.witness.fuel_left;
                if self.journal.keep(call, fuel) {
                    self.journal.renew(&mut self.live, &self.file)?;
                }
                Ok(Ok(called.output))
            }
            Err(Failure::Trap(trap)) => {
                self.traps += 1;
                self.roll_back()?;
                Ok(Err(trap))
            }
            Err(Failure::Halt(halt)) => Err(halt),
        }
    }

    #[cold]
    fn roll_back(&mut self) -> Result<(), Halt> {
        self.journal.put_back(&mut self.live, &self.file)?;
        let (size, grown) = (self.journal.memory_bytes(), self.live.memory().len());
        if grown > size {
            self.view = None;
            self.live = Guest::over(&self.prepared.module, &self.limits, &self.file, size)?;
            self.file.clear(size..grown).map_err(|error| Halt::HostMemory(error.to_string()))?;
            self.journal.moved(&self.file);
        }
        self.live.set_globals(self.journal.globals())?;
        self.live.set_input(self.journal.input()).map_err(Halt::Engine)?;
        for Call { header, payload, witness } in self.journal.calls() {
            match self.live.apply(header, payload, self.limits.apply_fuel) {
                Ok(called) if called.witness == *witness => {}
                Ok(_) | Err(Failure::Trap(_)) => return Err(Halt::RollbackDiffers { index: index_of(header) }),
                Err(Failure::Halt(halt)) => return Err(halt),
            }
        }
        if self.journal.is_long() {
            self.journal.renew(&mut self.live, &self.file)?;
        }
        Ok(())
    }

    /// Replaces the module by `incoming`, which takes over the logical state and is begun with `config`; returns the bytes of that state.
    ///
    /// If it is refused, everything is as it was. An image that is being written stays what it is.
    pub(crate) fn activate(
        &mut self,
        incoming: Arc<Prepared>,
        config: &[u8],
    ) -> Result<Result<u64, ActivationRefusal>, Halt> {
        let mut fork = self.fork()?;
        let schema = self.prepared.info.schema();
        let successor = swap::successor(&mut fork, schema, &incoming, &self.limits, config);
        drop(fork);
        let Successor { live, file, state_bytes } = match successor {
            Ok(successor) => successor,
            Err(Stopped::Refused(refusal)) => return Ok(Err(refusal)),
            Err(Stopped::Halt(halt)) => return Err(halt),
        };
        (self.prepared, self.live, self.file) = (incoming, live, file);
        self.journal.succeed(&mut self.live, &self.file)?;
        Ok(Ok(state_bytes))
    }

    /// The logical state, as the module writes it, of which nobody else sees anything.
    pub(crate) fn logical_state(&mut self) -> Result<Result<Vec<u8>, ActivationRefusal>, Halt> {
        match swap::logical_state(&mut self.fork()?, &self.limits) {
            Ok(state) => Ok(Ok(state)),
            Err(Stopped::Refused(refusal)) => Ok(Err(refusal)),
            Err(Stopped::Halt(halt)) => Err(halt),
        }
    }

    /// A copy of the live instance that can be called without any effect.
    pub(crate) fn fork(&mut self) -> Result<Guest, Halt> {
        self.view = None; // the file knows one view at a time
        View::new(&self.prepared, &self.limits, &self.live, &self.file)?.into_fork(&mut self.live)
    }

    /// What an image needs of the module: its memory for another thread, its globals, the address of its input.
    /// Nothing if there is such an image already.
    pub(crate) fn freeze(&mut self) -> Result<Option<(FrozenMemory, Vec<GlobalBits>, u64)>, Halt> {
        if self.journal.is_frozen() {
            return Ok(None);
        }
        self.journal.time_copies_anew();
        self.journal.renew(&mut self.live, &self.file)?;
        let memory = self.journal.freeze();
        Ok(memory.map(|memory| (memory, self.journal.globals().to_vec(), self.journal.input() as u64)))
    }

    /// Numbers that tell this memory and these globals from others, without reading all of it; none where the system can't tell
    /// which pages were written.
    pub(crate) fn fingerprint(&mut self) -> Result<Option<impl Iterator<Item = u64>>, Halt> {
        if self.journal.page_sum().is_some() && !self.journal.calls().is_empty() {
            self.journal.renew(&mut self.live, &self.file)?;
        }
        // Without a call since the copy, the copy is the live state.
        let Some(sum) = self.journal.page_sum() else { return Ok(None) };
        let numbers = [self.journal.memory_bytes() as u64, sum];
        Ok(Some(numbers.into_iter().chain(self.journal.globals().to_vec())))
    }

    /// Answers a query, without any effect.
    pub(crate) fn query(&mut self, context: &Context, request: &[u8]) -> Result<QueryOutcome, Halt> {
        let view = match &mut self.view {
            Some(view) => view,
            empty => empty.insert(View::new(&self.prepared, &self.limits, &self.live, &self.file)?),
        };
        let (called, reusable) = view.query(&mut self.live, &context.header(), request, self.limits.query_fuel);
        if !reusable {
            self.view = None;
        }
        let (result, output) = match called {
            Ok(called) => (RequestResult::Reply(called.output.reply.clone()), called.output),
            Err(Failure::Trap(trap)) => (RequestResult::Trap(trap), Output::default()),
            Err(Failure::Halt(halt)) => return Err(halt),
        };
        Ok(QueryOutcome::Answered { result, pushes: output.pushes, logs: output.logs })
    }

    pub(crate) fn wants_ticks(&self) -> bool {
        self.prepared.info.wants_ticks()
    }

    pub(crate) fn info(&self) -> &ModuleInfo {
        &self.prepared.info
    }

    pub(crate) const fn traps(&self) -> u64 {
        self.traps
    }

    /// See [`Journal::copy_longest`].
    pub(crate) const fn copy_longest(&self) -> CopyTime {
        self.journal.copy_longest()
    }

    pub(crate) fn memory(&self) -> &[u8] {
        self.live.memory()
    }

    pub(crate) fn globals(&mut self) -> impl Iterator<Item = GlobalBits> {
        self.live.globals()
    }
}

/// The head of an image says something that no instance of the module has.
fn no_image(what: &str) -> ImageError {
    ImageError::Malformed { offset: 0, what: format!("the module can't have {what}") }
}

fn index_of(header: &[u8; HEADER_BYTES]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    fn begun(memory_pages: u32) -> Application {
        let module = wat::parse_str(include_str!("../tests/machine/guest.wat")).unwrap();
        let limits = Limits { request_bytes: 100, memory_pages, ..Limits::default() };
        Application::begin(engine::prepare(engine::hash(&module), &module).unwrap(), &limits, b"").unwrap()
    }

    fn call(application: &mut Application, request: &'static [u8]) -> Result<Result<Output, Trap>, Halt> {
        let context = Context {
            kind: Kind::Request,
            index: LogIndex(41),
            client: SessionId::default(),
            time_us: 0,
            sequence: Sequence(1),
            seed: Seed::default(),
        };
        application.call(&context, &Bytes::from_static(request))
    }

    fn pages(application: &Application) -> usize {
        let mut ranges = Vec::new();
        application.file.pages(0..application.file.capacity(), &mut ranges).unwrap();
        ranges.iter().map(|range| range.len() / 4_096).sum()
    }

    #[test]
    fn a_replay_that_differs_halts() {
        let mut application = begun(8);
        // The header comes back, so another header is another output.
        assert!(call(&mut application, b"h").unwrap().is_ok());
        assert!(call(&mut application, b"u").unwrap().is_err());
        assert!(call(&mut application, b"h").unwrap().is_ok());
        application.journal.corrupt();
        assert!(matches!(call(&mut application, b"u"), Err(Halt::RollbackDiffers { index: 41 })));
    }

    #[test]
    fn memory_that_a_trapped_call_grew_is_given_back() {
        let mut application = begun(8);
        assert!(call(&mut application, b"c").unwrap().is_ok());
        let (size, before) = (application.memory().len(), pages(&application));
        for _ in 0..20 {
            assert!(call(&mut application, b"g").unwrap().is_err());
            assert_eq!((application.memory().len(), pages(&application)), (size, before));
        }
        assert!(call(&mut application, b"m").unwrap().is_ok(), "and can be had again, all zeros");
        assert!(application.memory()[size..application.memory().len() - 4].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_rollback_leaves_written_pages_few() {
        let mut application = begun(8);
        for _ in 0..3 {
            assert!(call(&mut application, b"u").unwrap().is_err());
        }
        application.journal.put_back(&mut application.live, &application.file).unwrap();
        let written = application.journal.written();
        assert!(written.is_none_or(|bytes| bytes == 0), "{written:?} bytes are to be copied after a rollback");
    }

    #[test]
    fn a_restored_memory_has_only_the_pages_of_its_image() {
        let Application { prepared, limits, mut live, .. } = begun(300);
        let genesis = crate::entry::Genesis {
            cluster: replicator_types::ClusterId([1; 16]),
            lineage: replicator_types::Lineage(1),
            module: prepared.hash,
            app_config: Bytes::new(),
            limits,
            engine: engine::engine_fingerprint(),
        };
        let head = Head {
            position: replicator_types::Position::new(1, 1),
            digest: replicator_types::Digest(0),
            history: crate::history::History::begin(&genesis),
            genesis,
            lineages: vec![replicator_types::Lineage(1)],
            time_us: 0,
            clock_us: 0,
            ticked_at_us: 0,
            memory_bytes: 300 << 16,
            globals: live.globals().collect(),
            input: live.input() as u64,
            sessions: 0,
            pushes: 0,
            trimmed: None,
        };
        let restored = Application::restore(prepared, &head, |memory| {
            memory[7 << 16] = 1;
            Ok(())
        });
        let mut restored = restored.unwrap();
        assert_eq!((restored.memory().len(), pages(&restored)), (300 << 16, 1));
        assert!(call(&mut restored, b"u").unwrap().is_err());
        assert!(
            restored.file.pages(0..1, &mut Vec::new()).is_ok() && pages(&restored) < 8,
            "nor does a rollback add any"
        );
    }
}
