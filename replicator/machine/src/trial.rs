//! A module run bare, with and without the counting of its stack, and the parser of output lists: for `make fuzz` and tests. Not an
//! interface: no promise whatever.

use bytes::Bytes;
use wasmtime::{Extern, Instance, Module, Store, Val};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    decode::decode,
    engine,
    guest::{Host, kind_of},
    halt::Halt,
    instrument,
    limits::PAGE_BYTES,
    load::{self, LoadError, ModuleInfo},
    memory::with_live_memory,
    outcome::{Push, Trap, TrapKind},
};

/// Parses an output list: its reply, its pushes, its log lines.
///
/// # Errors
/// The trap that the list is.
pub fn parse_list(list: &[u8]) -> Result<(Bytes, Vec<Push>, Vec<String>), Trap> {
    decode(list).map(|output| (output.reply, output.pushes, output.logs))
}

/// Runs `run` as if nothing counted how deep calls go, to measure what that costs.
pub fn without_counting<T>(run: impl FnOnce() -> T) -> T {
    instrument::without_counting(run)
}

/// A module that was loaded, but not asked what it is.
pub struct Trial {
    info: ModuleInfo,
    counted: Module,
    plain: Module,
    counted_bytes: Vec<u64>,
}

/// What one call came to, and what it left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The bits that it returned, or its trap.
    pub result: Result<u64, TrapKind>,
    /// The hash of the memory.
    pub memory: u64,
    /// Pages of the memory.
    pub pages: u64,
    /// The bits of the mutable globals.
    pub globals: Vec<u64>,
}

impl Step {
    /// Whether counting the stack may have changed what it came to: it costs fuel, and is there to end calls.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        matches!(self.result, Err(TrapKind::OutOfFuel | TrapKind::StackOverflow))
    }
}

impl Trial {
    /// Loads a module as the machine does, but for the module's description, and a second time without counting.
    ///
    /// # Errors
    /// As [`load::check`], and if it can't be compiled.
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        let info = load::check(bytes)?;
        let compile = || match engine::compile(&engine::instrument(bytes)?) {
            Err(Halt::ModuleRefused(refused)) => Err(refused),
            compiled => compiled.map_err(|halt| LoadError::Compile(halt.to_string())),
        };
        let counted = compile()?;
        let plain = instrument::without_counting(compile)?;
        let counted_bytes = instrument::frame_bytes(bytes).map_err(LoadError::Compile)?;
        Ok(Self { info, counted, plain, counted_bytes })
    }

    /// Of each function, in order: the bytes that its frame is counted as, those that it may have at most, and those that it has in
    /// the code that was made here. Empty where that can't be read from the code.
    #[must_use]
    pub fn frames(&self) -> Vec<(u64, u64, u64)> {
        let text = self.counted.text();
        let native = self.counted.functions().filter_map(|function| {
            let index = function.index.as_u32() as usize;
            let code = text.get(function.offset..function.offset + function.len)?;
            let counted = *self.counted_bytes.get(index)?; // wrappers come after all others
            Some((counted, counted * u64::from(instrument::NATIVE_BYTES_MAX), native_frame(code)?))
        });
        native.collect()
    }

    /// Makes an instance and calls its exports in turn: names and arguments. Nothing is rolled back after a trap. Needs
    /// [`crate::APPLY_STACK_BYTES_MIN`] of stack.
    ///
    /// # Errors
    /// If it can't be instantiated, or if something happens that is neither a result nor a trap.
    pub fn run(
        &self,
        is_counted: bool,
        calls: &[(&str, Vec<u32>)],
        pages: u64,
        fuel: u64,
    ) -> Result<Vec<Step>, String> {
        if self.info.memory_pages_min > pages {
            return Err("more memory than it may have".to_owned());
        }
        let module = if is_counted { &self.counted } else { &self.plain };
        let host = Host { memory_bytes_max: pages as usize * PAGE_BYTES, limited: false };
        let mut store = Store::new(engine::engine(), host);
        store.limiter(|host| host);
        store.set_fuel(fuel).map_err(|error| error.to_string())?;
        let (instance, _) = with_live_memory(|| Instance::new(&mut store, module, &[]));
        let instance = instance.map_err(|error| format!("instantiation: {error:#}"))?;
        let step = |(name, arguments): &(&str, Vec<u32>)| {
            store.set_fuel(fuel).map_err(|error| error.to_string())?;
            step(&mut store, &instance, is_counted, name, arguments)
        };
        calls.iter().map(step).collect()
    }
}

fn step(
    store: &mut Store<Host>,
    instance: &Instance,
    is_counted: bool,
    name: &str,
    arguments: &[u32],
) -> Result<Step, String> {
    let function = instance.get_func(&mut *store, name).ok_or_else(|| format!("no function {name}"))?;
    let arguments: Vec<Val> = arguments.iter().map(|&argument| Val::I32(argument as i32)).collect();
    let mut results = vec![Val::I64(0); function.ty(&*store).results().len()];
    let marker = instance.get_global(&mut *store, instrument::EXHAUSTED);
    let result = match function.call(&mut *store, &arguments, &mut results) {
        Ok(()) => Ok(results.first().map_or(0, bits)),
        Err(error) => match kind_of(&error) {
            Ok(kind) => Err(kind),
            Err(Halt::NativeStack) if !is_counted => Err(TrapKind::StackOverflow),
            Err(halt) => return Err(halt.to_string()),
        },
    };
    let is_exhausted = marker.is_some_and(|marker| bits(&marker.get(&mut *store)) != 0);
    if let Some(marker) = marker {
        marker.set(&mut *store, Val::I32(0)).map_err(|error| error.to_string())?;
    }
    let result = if is_exhausted { Err(TrapKind::StackOverflow) } else { result };
    let names: Vec<String> = instance.exports(&mut *store).map(|export| export.name().to_owned()).collect();
    let mut globals = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("__wizer_global_")) {
        if let Some(Extern::Global(global)) = instance.get_export(&mut *store, name) {
            globals.push(bits(&global.get(&mut *store)));
        }
    }
    let memory = instance.get_memory(&mut *store, "memory").ok_or("no memory")?;
    let pages = memory.size(&*store);
    Ok(Step { result, memory: xxh3_64(memory.data(&*store)), pages, globals })
}

fn bits(value: &Val) -> u64 {
    match *value {
        Val::I32(value) => u64::from(value as u32),
        Val::I64(value) => value as u64,
        Val::F32(bits) => bits.into(),
        Val::F64(bits) => bits,
        _ => 0,
    }
}

/// What a function takes from the stack, as its first instructions say: a larger frame is checked against the limit with its size (`add r10`)
/// and touched page by page, a smaller one is just taken (`sub rsp`).
#[cfg(target_arch = "x86_64")]
fn native_frame(code: &[u8]) -> Option<u64> {
    const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5]; // push rbp; mov rbp, rsp
    const PROLOGUE_BYTES_MAX: usize = 96;
    let linkage = 16;
    let code = code.strip_prefix(&PROLOGUE)?;
    let code = &code[..code.len().min(PROLOGUE_BYTES_MAX)];
    for (place, window) in code.windows(3).enumerate() {
        let rest = &code[place + 3..];
        match *window {
            [0x48, 0x81, 0xec] | [0x49, 0x81, 0xc2] => {
                return Some(linkage + u64::from(u32::from_le_bytes(*rest.first_chunk()?)));
            }
            [0x48, 0x83, 0xec] | [0x49, 0x83, 0xc2] => return Some(linkage + u64::from(*rest.first()?)),
            _ => {}
        }
    }
    Some(linkage)
}

#[cfg(not(target_arch = "x86_64"))]
fn native_frame(_: &[u8]) -> Option<u64> {
    None
}
