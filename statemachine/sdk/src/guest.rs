//! One hosted machine with its buffers: what the exports do, without their pointers. The test harness drives the same.

use crate::{Context, Kind, Output, StateMachine, slot::Slot, stream::RestoreStream};

/// A machine as the host sees it.
pub(crate) struct Guest<M> {
    /// Where the host puts the bytes of a call. Never moves once it is there.
    input: Vec<u8>,
    output: Output,
    slot: Slot<M>,
    /// The chunk of a snapshot that the host is reading.
    chunk: Vec<u8>,
    restore: RestoreStream,
}

impl<M: StateMachine> Guest<M> {
    pub(crate) const fn new() -> Self {
        Self {
            input: Vec::new(),
            output: Output::new(),
            slot: Slot::empty(),
            chunk: Vec::new(),
            restore: RestoreStream::new(),
        }
    }

    /// Makes room for inputs of at most `len` bytes.
    pub(crate) fn allocate_input(&mut self, len: usize) {
        assert!(self.input.is_empty(), "rsm_input is called once");
        self.input = vec![0; len];
    }

    /// Where inputs go.
    pub(crate) fn input(&mut self) -> &mut [u8] {
        &mut self.input
    }

    /// The machine.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn machine(&self) -> &M {
        self.slot.get()
    }

    /// Makes the machine from the configuration in the first `len` bytes of the input.
    pub(crate) fn init(&mut self, len: usize) -> Result<(), String> {
        self.slot.fill(M::init(&self.input[..len])?);
        Ok(())
    }

    /// Executes the entry in the first `len` bytes of the input.
    #[inline]
    pub(crate) fn apply(&mut self, len: usize) -> &[u8] {
        let (context, request) = Context::split(&self.input[..len]);
        let (machine, output) = (self.slot.get_mut(), &mut self.output);
        output.begin(context.kind == Kind::Request);
        match context.kind {
            Kind::Request => machine.apply(&context, request, output),
            Kind::Tick => machine.tick(&context, output),
            Kind::Connect => machine.connect(&context, output),
            Kind::Disconnect => machine.disconnect(&context, output),
        }
        output.list()
    }

    /// Answers the query in the first `len` bytes of the input.
    #[inline]
    pub(crate) fn query(&mut self, len: usize) -> &[u8] {
        let (context, request) = Context::split(&self.input[..len]);
        assert!(context.kind == Kind::Request, "a query has the kind of a request");
        self.output.begin(true);
        self.slot.get().query(&context, request, &mut self.output);
        self.output.list()
    }

    /// The next chunk of the snapshot, of at most `max` bytes. An empty one ends it; the call after that begins a new one.
    pub(crate) fn snapshot(&mut self, max: usize) -> &[u8] {
        assert!(max > 0, "a chunk of a snapshot has room for a byte");
        self.slot.snapshot().fill(&mut self.chunk, max);
        if self.chunk.is_empty() {
            self.slot.end_snapshot();
        }
        &self.chunk
    }

    /// Takes the chunk of a snapshot in the first `len` bytes of the input.
    pub(crate) fn restore(&mut self, len: usize, schema: u32, last: bool) -> Result<(), String> {
        if self.slot.is_empty() {
            return Err("rsm_init comes before rsm_restore".to_owned());
        }
        if schema != M::SCHEMA && !M::ACCEPTS_FROM.contains(&schema) {
            let (app, version, own, older) = (M::APP, M::VERSION, M::SCHEMA, M::ACCEPTS_FROM);
            return Err(format!(
                "{app} {version} reads snapshots of schema {own} and of the older {older:?}, this one is of {schema}"
            ));
        }
        let machine = self.slot.get_mut();
        self.restore.feed(&self.input[..len], last, &mut |record| machine.restore(schema, record))?;
        if last {
            self.restore = RestoreStream::new();
            self.slot.get_mut().restored(schema)?;
        }
        Ok(())
    }
}
