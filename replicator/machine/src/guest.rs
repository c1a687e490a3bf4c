//! One instance of the module, and the calls into it.
//!
//! All state of an instance is its memory and its mutable globals: tables and segments never change ([`crate::load`]
//! refuses the instructions), there are no imports, and fuel is set anew for each call.

use std::sync::Arc;

use wasmtime::{
    AsContextMut, Extern, Global, Instance, Memory, Module, ResourceLimiter, Store, TypedFunc, Val, WasmParams,
    WasmResults,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    decode::{Output, decode},
    description, engine,
    halt::Halt,
    instrument,
    limits::{Limits, PAGE_BYTES},
    load::{LoadError, ModuleInfo},
    memory::{HostMemoryError, MemoryFile, with_live_memory, with_view_memory},
    outcome::{Trap, TrapKind},
};

/// Bytes of the header before each request.
pub(crate) const HEADER_BYTES: usize = 64;
/// Fuel for `_initialize` and for `rsm_describe` of an instance that only describes itself.
const DESCRIBE_FUEL: u64 = 10_000_000;
/// Pages of an instance that only describes itself, if its memory doesn't begin larger.
const DESCRIBE_PAGES: u64 = 1_024;
const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Fuel for a call of `rsm_snapshot` or `rsm_restore`, whatever it does: what the host does around it.
const CALL_FUEL: u64 = 1_000;
/// Fuel for `rsm_panic_buf`.
const PANIC_FUEL: u64 = 100_000;
const PANIC_BYTES_MAX: usize = 4 << 10;

/// Why a call gave no output.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The guest's doing: a result.
    Trap(Trap),
    /// The host's: none.
    Halt(Halt),
}

impl From<Trap> for Failure {
    fn from(trap: Trap) -> Self {
        Self::Trap(trap)
    }
}

/// What a call came to, with what tells it from any other.
#[derive(Debug)]
pub(crate) struct Called {
    pub(crate) output: Output,
    pub(crate) witness: Witness,
}

/// What a replayed call must reproduce: its output list, byte by byte, and the fuel it burned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    list_hash: u64,
    pub(crate) fuel_left: u64,
}

/// A mutable global's value, as bits.
pub(crate) type GlobalBits = u64;

/// An instance, its calls and its state.
pub(crate) struct Guest {
    store: Store<Host>,
    instance: Instance,
    memory: Memory,
    globals: Vec<Global>,
    apply: TypedFunc<(u32, u32), u64>,
    query: TypedFunc<(u32, u32), u64>,
    panic_buf: Option<TypedFunc<(), u32>>,
    exhausted: Global,
    /// Where the guest wants its input. Invariant: `input_bytes` from there are within the memory.
    input: usize,
    input_bytes: usize,
    output_bytes: usize,
}

impl Guest {
    /// A new instance with a memory of its own, not yet begun.
    pub(crate) fn live(module: &Module, limits: &Limits) -> Result<(Self, Arc<MemoryFile>), Halt> {
        let (guest, file) = with_live_memory(|| Self::new(module, limits));
        Ok((guest?, file.ok_or_else(|| Halt::Engine("an instance without a memory".to_owned()))?))
    }

    /// A new instance over a private view of a live memory. Its own data segments are in the view: discard them first.
    pub(crate) fn view(module: &Module, limits: &Limits, file: &Arc<MemoryFile>) -> Result<Self, Halt> {
        with_view_memory(file, || Self::new(module, limits))
    }

    /// A new instance that takes over `file`, of whose memory it has the first `bytes` bytes. Whoever had it before must
    /// not be called any more.
    pub(crate) fn over(module: &Module, limits: &Limits, file: &Arc<MemoryFile>, bytes: usize) -> Result<Self, Halt> {
        // As a view at first, so that its data segments go to private pages, which are dropped.
        let mut guest = Self::view(module, limits, file)?;
        guest.grow_to(bytes)?;
        file.make_view_live(bytes).map_err(|error| Halt::HostMemory(error.to_string()))?;
        Ok(guest)
    }

    fn new(module: &Module, limits: &Limits) -> Result<Self, Halt> {
        let (mut store, instance) = instantiate(module, limits.memory_bytes(), limits.apply_fuel)?;
        let memory = instance.get_memory(&mut store, "memory").ok_or_else(|| unchecked("memory"))?;
        // In the order of the export section, so the same for every instance of the module.
        let names: Vec<String> = module.exports().map(|export| export.name().to_owned()).collect();
        let globals = names.iter().filter(|name| name.starts_with("__wizer_global_"));
        let globals = globals.filter_map(|name| instance.get_global(&mut store, name)).collect();
        Ok(Self {
            apply: function(&mut store, &instance, "rsm_apply")?,
            query: function(&mut store, &instance, "rsm_query")?,
            panic_buf: optional(&mut store, &instance, "rsm_panic_buf")?,
            exhausted: exhausted(&mut store, &instance)?,
            store,
            instance,
            memory,
            globals,
            input: 0,
            input_bytes: HEADER_BYTES + limits.request_bytes as usize,
            output_bytes: limits.output_bytes as usize,
        })
    }

    /// Begins a history: `_initialize`, then `rsm_input`, then `rsm_init` with the application's configuration.
    pub(crate) fn begin(&mut self, limits: &Limits, config: &[u8]) -> Result<(), Halt> {
        let refused = |call, reason: String| Halt::from(LoadError::Call { call, reason });
        if config.len() > self.input_bytes - HEADER_BYTES {
            let max = limits.request_bytes;
            return Err(refused(
                "rsm_init",
                format!("the configuration has {} bytes, at most {max} are taken", config.len()),
            ));
        }
        let instance = self.instance;
        if let Some(initialize) = optional::<(), ()>(&mut self.store, &instance, "_initialize")? {
            self.run(&initialize, (), limits.apply_fuel).map_err(|failure| halted("_initialize", failure))?;
        }
        let input: TypedFunc<u32, u32> = function(&mut self.store, &instance, "rsm_input")?;
        let len = u32::try_from(self.input_bytes).expect("64 MiB and a header, at most");
        let address = self.run(&input, len, limits.apply_fuel).map_err(|failure| halted("rsm_input", failure))?;
        self.set_input(address as usize).map_err(|reason| refused("rsm_input", reason))?;

        self.memory.data_mut(&mut self.store)[self.input..][..config.len()].copy_from_slice(config);
        let init: TypedFunc<(u32, u32), u32> = function(&mut self.store, &instance, "rsm_init")?;
        let arguments = (address, u32::try_from(config.len()).expect("it was just compared"));
        match self.run(&init, arguments, limits.apply_fuel).map_err(|failure| halted("rsm_init", failure))? {
            0 => Ok(()),
            code => {
                let reason = self.panic_message().unwrap_or_else(|| format!("it answered {code}"));
                Err(refused("rsm_init", reason))
            }
        }
    }

    /// The next chunk of the logical snapshot, of at most `max` bytes; an empty one is the end. Takes what it burns from `fuel`.
    pub(crate) fn snapshot_chunk(&mut self, max: usize, fuel: &mut u64) -> Result<&[u8], Failure> {
        let snapshot: TypedFunc<u32, u64> =
            function(&mut self.store, &self.instance, "rsm_snapshot").map_err(Failure::Halt)?;
        let len = u32::try_from(max).expect("a chunk has 1 MiB at most");
        let region = self.run_from(&snapshot, len, fuel)?;
        let (start, len) = ((region >> 32) as usize, region as u32 as usize);
        let malformed = |what: String| Trap::because(TrapKind::MalformedOutput, format!("malformed chunk: {what}"));
        if len > max {
            return Err(malformed(format!("it has {len} bytes, and at most {max} were asked for")).into());
        }
        let chunk = self.memory.data(&self.store).get(start..start + len);
        chunk.ok_or_else(|| malformed("it isn't within the memory".to_owned()).into())
    }

    /// Bytes that an input can have, header and all.
    pub(crate) const fn input_bytes(&self) -> usize {
        self.input_bytes
    }

    /// Puts a piece of a snapshot where inputs go.
    pub(crate) fn put_piece(&mut self, piece: &[u8]) {
        self.memory.data_mut(&mut self.store)[self.input..][..piece.len()].copy_from_slice(piece);
    }

    /// Calls `rsm_restore` with the `len` bytes that were put last. Takes what it burns from `fuel`. Returns the module's reason if it says no.
    pub(crate) fn restore_piece(
        &mut self,
        len: usize,
        schema: u32,
        last: bool,
        fuel: &mut u64,
    ) -> Result<Result<(), (u32, String)>, Failure> {
        let restore: TypedFunc<(u32, u32, u32, u32), u32> =
            function(&mut self.store, &self.instance, "rsm_restore").map_err(Failure::Halt)?;
        let arguments = (self.input as u32, len as u32, schema, u32::from(last));
        Ok(match self.run_from(&restore, arguments, fuel)? {
            0 => Ok(()),
            code => Err((code, self.panic_message().unwrap_or_else(|| "it gives no reason".to_owned()))),
        })
    }

    /// Whether the limit has kept the memory from growing, since this was asked last.
    pub(crate) fn took_memory_limit(&mut self) -> bool {
        std::mem::take(&mut self.store.data_mut().limited)
    }

    /// Calls `rsm_apply` with an input: the header, then the payload.
    ///
    #[inline(never)]
    pub(crate) fn apply(&mut self, header: &[u8; HEADER_BYTES], payload: &[u8], fuel: u64) -> Result<Called, Failure> {
        let arguments = self.put_input(header, payload);
        self.store.set_fuel(fuel).map_err(engine_failed)?;
        // Not through `run`: a clone of the function, which that would take, costs as much as the call.
        match self.apply.call(&mut self.store, arguments) {
            Ok(region) => self.take_output(region),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Calls `rsm_query` in the same way.
    #[inline(never)]
    pub(crate) fn query(&mut self, header: &[u8; HEADER_BYTES], payload: &[u8], fuel: u64) -> Result<Called, Failure> {
        let arguments = self.put_input(header, payload);
        self.store.set_fuel(fuel).map_err(engine_failed)?;
        match self.query.call(&mut self.store, arguments) {
            Ok(region) => self.take_output(region),
            Err(error) => Err(self.failure(&error)),
        }
    }

    #[inline]
    fn put_input(&mut self, header: &[u8; HEADER_BYTES], payload: &[u8]) -> (u32, u32) {
        let len = HEADER_BYTES + payload.len();
        assert!(len <= self.input_bytes, "an input of {len} bytes, at most {} fit", self.input_bytes);
        let place = &mut self.memory.data_mut(&mut self.store)[self.input..][..len];
        place[..HEADER_BYTES].copy_from_slice(header);
        place[HEADER_BYTES..].copy_from_slice(payload);
        (self.input as u32, len as u32)
    }

    #[inline]
    fn take_output(&self, region: u64) -> Result<Called, Failure> {
        let list = self.list(region)?;
        let (output, list_hash) = (decode(list)?, xxh3_64(list));
        let fuel_left = self.store.get_fuel().map_err(engine_failed)?;
        Ok(Called { output, witness: Witness { list_hash, fuel_left } })
    }

    /// The bytes of `(ptr << 32) | len`.
    #[inline]
    fn list(&self, region: u64) -> Result<&[u8], Trap> {
        let (start, len) = ((region >> 32) as usize, region as u32 as usize);
        if len > self.output_bytes {
            let (kind, max) = (TrapKind::OutputTooLarge, self.output_bytes);
            return Err(Trap::because(kind, format!("output list of {len} bytes; at most {max} are taken")));
        }
        self.memory.data(&self.store).get(start..start + len).ok_or_else(|| {
            Trap::because(TrapKind::MalformedOutput, "malformed output list: it isn't within the memory")
        })
    }

    /// Runs an export with fresh fuel.
    fn run<P: WasmParams, R: WasmResults>(
        &mut self,
        function: &TypedFunc<P, R>,
        arguments: P,
        fuel: u64,
    ) -> Result<R, Failure> {
        self.store.set_fuel(fuel).map_err(engine_failed)?;
        function.call(&mut self.store, arguments).map_err(|error| self.failure(&error))
    }

    /// Runs an export with what is left of `fuel`, and leaves there what then is left. A call burns [`CALL_FUEL`] beside its own, so that
    /// calls which do nothing come to an end, too.
    fn run_from<P: WasmParams, R: WasmResults>(
        &mut self,
        function: &TypedFunc<P, R>,
        arguments: P,
        fuel: &mut u64,
    ) -> Result<R, Failure> {
        let given = fuel.checked_sub(CALL_FUEL).ok_or_else(|| Trap::of(TrapKind::OutOfFuel))?;
        let result = self.run(function, arguments, given)?;
        *fuel = self.store.get_fuel().map_err(engine_failed)?;
        Ok(result)
    }

    #[cold]
    fn failure(&mut self, error: &wasmtime::Error) -> Failure {
        match classify(error, self.exhausted, &mut self.store) {
            Ok(TrapKind::Unreachable) => Failure::Trap(match self.panic_message() {
                Some(message) => Trap::because(TrapKind::Unreachable, message),
                None => Trap::of(TrapKind::Unreachable),
            }),
            Ok(kind) => Failure::Trap(Trap::of(kind)),
            Err(halt) => Failure::Halt(halt),
        }
    }

    /// What the guest left in its panic buffer, `{u32 len; UTF-8}`; nothing if that isn't well-formed.
    fn panic_message(&mut self) -> Option<String> {
        let panic_buf = self.panic_buf.clone()?;
        self.store.set_fuel(PANIC_FUEL).ok()?;
        let called = panic_buf.call(&mut self.store, ());
        if called.is_err() {
            clear(self.exhausted, &mut self.store);
        }
        let address = called.ok()? as usize;
        let (len, text) = self.memory.data(&self.store).get(address..)?.split_first_chunk()?;
        let text = text.get(..u32::from_le_bytes(*len) as usize)?;
        let text = &text[..text.len().min(PANIC_BYTES_MAX)];
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }

    /// Calls an export by its name.
    pub(crate) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &'static str,
        arguments: P,
        fuel: u64,
    ) -> Result<R, Failure> {
        let instance = self.instance;
        let function: TypedFunc<P, R> = function(&mut self.store, &instance, name).map_err(Failure::Halt)?;
        self.run(&function, arguments, fuel)
    }

    /// Where the input is.
    pub(crate) const fn input(&self) -> usize {
        self.input
    }

    /// Sets where the input is: what `rsm_input` answered, once in the history.
    pub(crate) fn set_input(&mut self, address: usize) -> Result<(), String> {
        let end = address + self.input_bytes;
        if address == 0 || end > self.memory.data_size(&self.store) {
            return Err(format!("it answered address {address}, where {} bytes don't fit", self.input_bytes));
        }
        self.input = address;
        Ok(())
    }

    /// The whole memory.
    pub(crate) fn memory(&self) -> &[u8] {
        self.memory.data(&self.store)
    }

    /// How large the module says its memory may become, if it says so.
    pub(crate) fn memory_bytes_max(&self) -> Option<u64> {
        self.memory.ty(&self.store).maximum().map(|pages| pages * PAGE_BYTES as u64)
    }

    /// The whole memory, to restore it.
    pub(crate) fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.data_mut(&mut self.store)
    }

    /// Grows the memory to `bytes`, which must be a size that it had.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Halt> {
        let more = bytes - self.memory.data_size(&self.store);
        let grown = self.memory.grow(&mut self.store, (more / PAGE_BYTES) as u64);
        grown.map(|_| ()).map_err(|error| Halt::HostMemory(format!("{error:#}")))
    }

    /// All mutable globals.
    pub(crate) fn globals(&mut self) -> impl Iterator<Item = GlobalBits> {
        let (globals, store) = (&self.globals, &mut self.store);
        globals.iter().map(move |global| bits(&global.get(&mut *store)))
    }

    /// Sets all mutable globals, in the order of [`Guest::globals`].
    pub(crate) fn set_globals(&mut self, values: &[GlobalBits]) -> Result<(), Halt> {
        assert_eq!(values.len(), self.globals.len(), "instances of one module have the same globals");
        for (global, &bits) in self.globals.iter().zip(values) {
            let value = match global.get(&mut self.store) {
                Val::I32(_) => Val::I32(bits as u32 as i32),
                Val::I64(_) => Val::I64(bits as i64),
                Val::F32(_) => Val::F32(bits as u32),
                Val::F64(_) => Val::F64(bits),
                _ => return Err(unchecked("a mutable global that is no number")),
            };
            global.set(&mut self.store, value).map_err(halted_engine)?;
        }
        Ok(())
    }
}

/// The module's own description, asked of an instance that is thrown away, on a thread of its own.
///
/// Only [`Halt::ModuleRefused`] is the module's fault.
pub(crate) fn describe(module: &Module, info: &ModuleInfo) -> Result<String, Halt> {
    let described = engine::with_apply_stack(|| describe_here(module, info));
    described.unwrap_or_else(|error| Err(Halt::HostMemory(format!("the system gives no thread: {error}"))))
}

fn describe_here(module: &Module, info: &ModuleInfo) -> Result<String, Halt> {
    let bytes = info.memory_pages_min.max(DESCRIBE_PAGES) as usize * PAGE_BYTES;
    let (made, _) = with_live_memory(|| instantiate(module, bytes, DESCRIBE_FUEL));
    let (mut store, instance) = made?;
    let marker = exhausted(&mut store, &instance)?;
    let failed = |call, error: &wasmtime::Error, store: &mut Store<Host>| match classify(error, marker, store) {
        Ok(kind) => Halt::from(LoadError::Call { call, reason: kind.to_string() }),
        Err(halt) => halt,
    };
    if let Some(initialize) = optional::<(), ()>(&mut store, &instance, "_initialize")? {
        initialize.call(&mut store, ()).map_err(|error| failed("_initialize", &error, &mut store))?;
    }
    let describe: TypedFunc<(), u64> = function(&mut store, &instance, "rsm_describe")?;
    let region = describe.call(&mut store, ()).map_err(|error| failed("rsm_describe", &error, &mut store))?;

    let bad = |reason: String| Halt::from(LoadError::Call { call: "rsm_describe", reason });
    let (start, len) = ((region >> 32) as usize, region as u32 as usize);
    let memory = instance.get_memory(&mut store, "memory").map_or(&[][..], |memory| memory.data(&store));
    let text = memory.get(start..start + len).filter(|_| len <= DESCRIPTION_BYTES_MAX);
    let text = text.ok_or_else(|| bad(format!("it must answer at most {DESCRIPTION_BYTES_MAX} bytes")))?;
    let text = String::from_utf8_lossy(text).into_owned();
    description::check(&text).map_err(bad)?;
    Ok(text)
}

/// What a store knows beside the guest: its memory limit.
pub(crate) struct Host {
    pub(crate) memory_bytes_max: usize,
    /// Whether the memory was to grow beyond that.
    pub(crate) limited: bool,
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory_bytes_max;
        self.limited |= !granted;
        Ok(granted)
    }

    /// Past the memory's own type the guest gets -1, everywhere. A host without memory must not give it that.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if error.is::<HostMemoryError>() { Err(error) } else { Ok(()) }
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true) // only at instantiation, and the load checks bound it
    }
}

fn instantiate(module: &Module, memory_bytes_max: usize, fuel: u64) -> Result<(Store<Host>, Instance), Halt> {
    let mut store = Store::new(engine::engine(), Host { memory_bytes_max, limited: false });
    store.limiter(|host| host);
    store.set_fuel(fuel).map_err(halted_engine)?;
    let instance = Instance::new(&mut store, module, &[]).map_err(|error| match kind_of(&error) {
        // An active segment that doesn't fit: the module's fault.
        Ok(kind) => Halt::ModuleRefused(LoadError::Call { call: "instantiation", reason: kind.to_string() }),
        Err(_) => Halt::HostMemory(format!("{error:#}")),
    })?;
    Ok((store, instance))
}

fn function<P: WasmParams, R: WasmResults>(
    store: impl AsContextMut,
    instance: &Instance,
    name: &'static str,
) -> Result<TypedFunc<P, R>, Halt> {
    instance.get_typed_func(store, name).map_err(|_| unchecked(name))
}

fn optional<P: WasmParams, R: WasmResults>(
    mut store: impl AsContextMut,
    instance: &Instance,
    name: &'static str,
) -> Result<Option<TypedFunc<P, R>>, Halt> {
    match instance.get_export(&mut store, name) {
        Some(Extern::Func(_)) => function(store, instance, name).map(Some),
        _ => Ok(None),
    }
}

/// The global that is 1 after a call found no stack left.
fn exhausted(store: impl AsContextMut, instance: &Instance) -> Result<Global, Halt> {
    instance.get_global(store, instrument::EXHAUSTED).ok_or_else(|| unchecked(instrument::EXHAUSTED))
}

fn clear(exhausted: Global, store: &mut Store<Host>) {
    exhausted.set(store, Val::I32(0)).expect("instrumentation makes it a mutable i32");
}

/// Which trap the error of a call is, or that it is none. `exhausted` is 0 again afterwards.
fn classify(error: &wasmtime::Error, exhausted: Global, store: &mut Store<Host>) -> Result<TrapKind, Halt> {
    let is_exhausted = !matches!(exhausted.get(&mut *store), Val::I32(0));
    clear(exhausted, store);
    match kind_of(error)? {
        TrapKind::Unreachable if is_exhausted => Ok(TrapKind::StackOverflow),
        kind => Ok(kind),
    }
}

/// Which trap an error is by itself, or that it is none.
pub(crate) fn kind_of(error: &wasmtime::Error) -> Result<TrapKind, Halt> {
    use wasmtime::Trap as T;
    if let Some(error) = error.downcast_ref::<HostMemoryError>() {
        return Err(Halt::HostMemory(error.to_string()));
    }
    Ok(match error.downcast_ref::<T>() {
        Some(T::UnreachableCodeReached) => TrapKind::Unreachable,
        Some(T::MemoryOutOfBounds) => TrapKind::MemoryOutOfBounds,
        Some(T::TableOutOfBounds | T::IndirectCallToNull | T::BadSignature) => TrapKind::BadIndirectCall,
        Some(T::IntegerDivisionByZero) => TrapKind::DivideByZero,
        Some(T::IntegerOverflow) => TrapKind::IntegerOverflow,
        Some(T::BadConversionToInteger) => TrapKind::BadConversion,
        Some(T::OutOfFuel) => TrapKind::OutOfFuel,
        Some(T::StackOverflow) => return Err(Halt::NativeStack),
        _ => return Err(Halt::Engine(format!("{error:#}"))),
    })
}

/// At genesis a trap is the module's refusal.
fn halted(call: &'static str, failure: Failure) -> Halt {
    match failure {
        Failure::Trap(trap) => LoadError::Call { call, reason: trap.message }.into(),
        Failure::Halt(halt) => halt,
    }
}

fn engine_failed(error: wasmtime::Error) -> Failure {
    Failure::Halt(halted_engine(error))
}

fn halted_engine(error: wasmtime::Error) -> Halt {
    Halt::Engine(format!("{error:#}"))
}

/// A hole in the load checks.
fn unchecked(what: &str) -> Halt {
    Halt::Engine(format!("the module lacks {what:?}, which the load checks make sure of"))
}

fn bits(value: &Val) -> GlobalBits {
    match *value {
        Val::I32(value) => u64::from(value as u32),
        Val::I64(value) => value as u64,
        Val::F32(bits) => bits.into(),
        Val::F64(bits) => bits,
        _ => unreachable!("the load checks let only numbers be mutable globals"),
    }
}
