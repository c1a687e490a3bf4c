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
    guest, instrument,
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

/// Compiled modules that are kept for machines to come: a few versions, in a process with several machines.
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

/// Checks, compiles and describes a module, or finds that this was done already.
pub(crate) fn prepare(bytes: &[u8]) -> Result<Arc<Prepared>, LoadError> {
    static CACHE: Mutex<Vec<Arc<Prepared>>> = Mutex::new(Vec::new());
    let hash = hash(bytes);
    let is_cached = instrument::counts();
    let cached =
        |cache: &Vec<Arc<Prepared>>| cache.iter().find(|prepared| is_cached && prepared.hash == hash).map(Arc::clone);
    if let Some(prepared) = cached(&CACHE.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(prepared);
    }
    // Without the lock: other modules shouldn't wait for this one. Two threads may compile the same bytes; that's harmless.
    let mut info = load::check(bytes)?;
    let module = compile(&instrument(bytes)?)?;
    info.description = guest::describe(&module, &info)?;
    let prepared = Arc::new(Prepared { hash, info, module });
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if is_cached && cached(&cache).is_none() {
        if cache.len() == CACHE_ENTRIES_MAX {
            cache.remove(0);
        }
        cache.push(Arc::clone(&prepared));
    }
    Ok(prepared)
}

/// What is compiled in place of `bytes`.
pub(crate) fn instrument(bytes: &[u8]) -> Result<Vec<u8>, LoadError> {
    // Exports every mutable global as `__wizer_global_N`, so that images hold them all.
    let (_, exporting) = Wizer::new().instrument(bytes).map_err(failed)?;
    instrument::instrument(&exporting).map_err(LoadError::Compile)
}

pub(crate) fn compile(instrumented: &[u8]) -> Result<Module, LoadError> {
    Module::new(engine(), instrumented).map_err(failed)
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

    #[test]
    fn the_fingerprint_names_the_version_that_is_linked() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME_VERSION}\"")));
    }
}
