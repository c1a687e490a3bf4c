//! The wasm engine: one per process, with exactly the settings of `docs/guest-abi.md`, and its cache of compiled modules.
//!
//! Whatever can change a result (fuel, features, NaN bits, instrumentation) is in [`engine_fingerprint`], which the
//! genesis entry logs. The host's CPU flags are not: they change the code, never the results.

use std::{
    io, panic,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    thread,
};

use replicator_types::ModuleHash;
use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, Module, OptLevel, RegallocAlgorithm, Strategy, WasmFeatures};
use wasmtime_wizer::Wizer;

use crate::{
    guest,
    halt::Halt,
    instrument,
    load::{self, LoadError, ModuleInfo},
    memory::Memories,
};

/// Wasm's share of the apply thread's stack: more than the frames can need that [`instrument`] lets a call have.
const WASM_STACK_BYTES: usize =
    instrument::NATIVE_BYTES_MAX as usize * instrument::BUDGET_BYTES as usize + instrument::UNCOUNTED_BYTES as usize;

/// The least stack for a thread that calls a [`crate::Machine`]: wasm's share, and the host's. Only what is used becomes memory.
pub const APPLY_STACK_BYTES_MIN: usize = WASM_STACK_BYTES + (1 << 20);

/// Raised whenever a load check, the instrumentation or a constant of the guest's calls changes: whatever can change a
/// result, but neither wasmtime's version nor the features.
const INSTRUMENTATION: u32 = 2;

/// Compiled modules that are kept for machines and activations to come, beside those that are in use.
const CACHE_ENTRIES_MAX: usize = 8;

const WASMTIME_VERSION: &str = "48.0.8";

/// What all nodes of a cluster must have in common, or fuel and so results would differ (safety rule 19).
///
/// The wasmtime version, the feature set, the stack that a call may use and the version of our instrumentation; not the CPU's features.
#[must_use]
pub fn engine_fingerprint() -> String {
    let features: Vec<&str> = load::features().iter_names().map(|(name, _)| name).collect();
    let features = features.join("+").to_lowercase();
    let stack = instrument::BUDGET_BYTES;
    format!("wasmtime-{WASMTIME_VERSION} features={features} stack={stack} instr={INSTRUMENTATION}")
}

/// A module that was checked, instrumented and compiled.
pub(crate) struct Prepared {
    pub(crate) hash: ModuleHash,
    pub(crate) info: ModuleInfo,
    pub(crate) module: Module,
}

/// The SHA-256 of a module's bytes.
pub(crate) fn hash(bytes: &[u8]) -> ModuleHash {
    ModuleHash(Sha256::digest(bytes).into())
}

/// A module that is ready to be activated: as long as this lives, a genesis or an activation with its bytes compiles nothing on the thread
/// that applies it.
///
/// Without it a module stays ready until eight others that nothing uses were more recently wanted.
#[derive(Clone)]
pub struct Precompiled(Arc<Prepared>);

impl Precompiled {
    /// The SHA-256 of its bytes.
    #[must_use]
    pub fn hash(&self) -> ModuleHash {
        self.0.hash
    }

    /// What is known of it, its own description among that.
    #[must_use]
    pub fn info(&self) -> &ModuleInfo {
        &self.0.info
    }
}

impl std::fmt::Debug for Precompiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Precompiled").field(&self.0.hash).finish()
    }
}

/// Checks `bytes`, compiles them, and asks the module for its description, in an instance of its own. Call it when a module arrives, on any
/// thread but the one that applies entries: it takes some 100 ms for a module of 250 KB.
///
/// # Errors
/// [`Halt::ModuleRefused`] if they are no module that can run here or anywhere; another halt if this host can't find out.
pub fn precompile(bytes: &[u8]) -> Result<Precompiled, Halt> {
    prepare(hash(bytes), bytes).map(Precompiled)
}

/// Checks, compiles and describes the module of these bytes and this hash, or finds that this was done already.
///
/// Only [`Halt::ModuleRefused`] is the module's fault, and a function of its bytes.
pub(crate) fn prepare(hash: ModuleHash, bytes: &[u8]) -> Result<Arc<Prepared>, Halt> {
    static CACHE: Cache = Cache(Mutex::new(Vec::new()));
    let is_cached = instrument::counts();
    if let Some(prepared) = is_cached.then(|| CACHE.get(hash)).flatten() {
        return Ok(prepared);
    }
    // Without the lock: other modules shouldn't wait for this one. Two threads may compile the same bytes; that's harmless.
    let mut info = load::check(bytes)?;
    let module = compile(&instrument(bytes)?)?;
    info.description = guest::describe(&module, &info)?;
    let prepared = Arc::new(Prepared { hash, info, module });
    Ok(if is_cached { CACHE.put(prepared) } else { prepared })
}

/// Compiled modules, the one that was wanted last at the end.
struct Cache(Mutex<Vec<Arc<Prepared>>>);

impl Cache {
    fn get(&self, hash: ModuleHash) -> Option<Arc<Prepared>> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = cache.iter().position(|prepared| prepared.hash == hash)?;
        let prepared = cache.remove(place);
        cache.push(Arc::clone(&prepared));
        Some(prepared)
    }

    /// Puts a module in, and drops those that were not wanted for long and that nobody holds. Returns the one that was there before, if any.
    fn put(&self, prepared: Arc<Prepared>) -> Arc<Prepared> {
        if let Some(before) = self.get(prepared.hash) {
            return before;
        }
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = cache.iter().filter(|prepared| Arc::strong_count(prepared) == 1).count();
        cache.retain(|prepared| {
            let goes = unused >= CACHE_ENTRIES_MAX && Arc::strong_count(prepared) == 1;
            unused -= usize::from(goes);
            !goes
        });
        cache.push(Arc::clone(&prepared));
        prepared
    }
}

/// What is compiled in place of `bytes`.
pub(crate) fn instrument(bytes: &[u8]) -> Result<Vec<u8>, LoadError> {
    // Exports every mutable global as `__wizer_global_N`, so that images hold them all.
    let (_, exporting) = Wizer::new().instrument(bytes).map_err(failed)?;
    instrument::instrument(&exporting).map_err(LoadError::Compile)
}

/// Memory that the system doesn't give says nothing of the module, and must not become a result.
pub(crate) fn compile(instrumented: &[u8]) -> Result<Module, Halt> {
    Module::new(engine(), instrumented).map_err(|error| {
        let systems = error.chain().any(|cause| cause.is::<rustix::io::Errno>() || cause.is::<io::Error>());
        if systems { Halt::HostMemory(format!("a module can't be compiled: {error:#}")) } else { failed(error).into() }
    })
}

fn failed(error: wasmtime::Error) -> LoadError {
    LoadError::Compile(format!("{error:#}"))
}

/// Runs `run` on a thread whose stack is large enough to call a [`crate::Machine`], and waits for it.
///
/// # Errors
/// If the system gives no thread.
///
/// # Panics
/// If `run` does.
pub fn with_apply_stack<T: Send>(run: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("apply-stack".to_owned()).stack_size(APPLY_STACK_BYTES_MIN);
        let running = thread.spawn_scoped(scope, run)?;
        running.join().map_or_else(|panicked| panic::resume_unwind(panicked), Ok)
    })
}

/// The process's engine.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        Engine::new(&config()).expect("the settings are constant, and every supported host has what they ask for")
    });
    &ENGINE
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(load::features(), true)
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        .cranelift_nan_canonicalization(true)
        .consume_fuel(true)
        .epoch_interruption(false)
        .async_stack_size(APPLY_STACK_BYTES_MIN) // not used, and must not be less than the next
        .max_wasm_stack(WASM_STACK_BYTES)
        .memory_may_move(false)
        .memory_reservation(4 << 30)
        .memory_guard_size(32 << 20)
        .guard_before_linear_memory(false)
        .memory_init_cow(false)
        .with_host_memory(Arc::new(Memories))
        .wasm_backtrace_max_frames(None)
        .native_unwind_info(false);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_names_version_features_and_instrumentation() {
        assert_eq!(
            engine_fingerprint(),
            "wasmtime-48.0.8 features=mutable_global+saturating_float_to_int+sign_extension+reference_types+multi_value+\
             bulk_memory+floats+extended_const stack=4194304 instr=2"
        );
    }

    fn unique(name: &str, number: usize) -> Vec<u8> {
        let guest = include_str!("../tests/machine/guest.wat");
        let text = guest.replace("app=hostile version=1", &format!("app={name:.6}{} version=1", number % 10));
        wat::parse_str(text).expect("it is valid")
    }

    #[test]
    fn a_module_that_is_held_stays_compiled_and_others_make_room() {
        let prepared = |bytes: &[u8]| prepare(hash(bytes), bytes).expect("it is good");
        let (held, left) = (unique("helder", 0), unique("lefter", 0));
        let (holder, first) = (precompile(&held).expect("it is good"), Arc::downgrade(&prepared(&left)));
        (0..CACHE_ENTRIES_MAX).for_each(|number| drop(prepared(&unique("others", number))));
        assert!(Arc::ptr_eq(&holder.0, &prepared(&held)), "it was not compiled again");
        assert!(first.upgrade().is_none(), "nobody wanted it any more");
        let newest = unique("others", CACHE_ENTRIES_MAX - 1);
        assert!(Arc::ptr_eq(&prepared(&newest), &prepared(&newest)));
        assert!(matches!(precompile(b"no wasm"), Err(Halt::ModuleRefused(LoadError::NotWasm))));
    }

    #[test]
    fn the_fingerprint_names_the_version_that_is_linked() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME_VERSION}\"")));
    }
}
