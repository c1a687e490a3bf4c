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
            let (app, version, own, others) = (M::APP, M::VERSION, M::SCHEMA, M::ACCEPTS_FROM);
            return Err(format!(
                "{app} {version} reads snapshots of schema {own} and of the others {others:?}, this one is of {schema}"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionId;

    /// Keeps every request.
    struct Keeper(Vec<Vec<u8>>);

    impl StateMachine for Keeper {
        const APP: &'static str = "keeper";
        const VERSION: &'static str = "1";
        const SCHEMA: u32 = 1;

        fn init(_: &[u8]) -> Result<Self, String> {
            Ok(Self(Vec::new()))
        }
        fn apply(&mut self, _: &Context, request: &[u8], _: &mut Output) {
            self.0.push(request.to_vec());
        }
        fn query(&self, _: &Context, _: &[u8], output: &mut Output) {
            output.reply(&self.0.concat());
        }
        fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
            self.0.iter().cloned()
        }
        fn restore(&mut self, _: u32, record: &[u8]) -> Result<(), String> {
            self.0.push(record.to_vec());
            Ok(())
        }
    }

    fn guest() -> Guest<Keeper> {
        let mut guest = Guest::new();
        guest.allocate_input(1 << 10);
        guest
    }

    fn put(guest: &mut Guest<Keeper>, kind: Kind, request: &[u8]) -> usize {
        let context = Context { kind, index: 1, session: SessionId::default(), time_us: 0, sequence: 0, seed: [0; 16] };
        let input = [&context.header()[..], request].concat();
        guest.input()[..input.len()].copy_from_slice(&input);
        input.len()
    }

    fn apply(guest: &mut Guest<Keeper>, request: &[u8]) {
        let len = put(guest, Kind::Request, request);
        assert_eq!(guest.apply(len), b"");
    }

    #[test]
    fn an_entry_between_two_chunks_breaks_the_snapshot_off() {
        let mut guest = guest();
        guest.init(0).unwrap();
        apply(&mut guest, b"first");
        assert_eq!(guest.snapshot(6), b"\x05\0\0\0fi");
        // The vector that the snapshot borrows from moves.
        (0..100).for_each(|_| apply(&mut guest, b"x"));
        assert_eq!(guest.snapshot(6), b"\x05\0\0\0fi", "a new one begins");
        let len = put(&mut guest, Kind::Request, b"");
        assert!(guest.query(len).len() > 100, "a query leaves it alone");
        assert_eq!(guest.snapshot(6), b"rst\x01\0\0");
    }

    #[test]
    fn the_call_after_the_end_begins_again() {
        let mut guest = guest();
        guest.init(0).unwrap();
        for _ in 0..2 {
            assert_eq!(guest.snapshot(100).len(), 12);
            assert_eq!(guest.snapshot(100), b"");
        }
    }

    #[test]
    fn a_restore_without_init_is_refused() {
        assert_eq!(guest().restore(0, 1, true), Err("rsm_init comes before rsm_restore".to_owned()));
    }

    #[test]
    #[should_panic(expected = "rsm_init comes first")]
    fn an_entry_without_init_panics() {
        apply(&mut guest(), b"");
    }

    #[test]
    #[should_panic(expected = "rsm_init is called once")]
    fn a_second_init_panics() {
        let mut guest = guest();
        guest.init(0).unwrap();
        let _ = guest.init(0);
    }

    #[test]
    #[should_panic(expected = "the kind of a request")]
    fn a_query_of_another_kind_panics() {
        let mut guest = guest();
        guest.init(0).unwrap();
        let len = put(&mut guest, Kind::Tick, b"");
        guest.query(len);
    }
}
