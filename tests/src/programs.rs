//! Where the built programs and modules are.

use std::{
    env,
    path::{Path, PathBuf},
};

fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    target.canonicalize().unwrap_or(target)
}

fn built(path: &str) -> PathBuf {
    built_by(path, "run `make` first, which builds programs and modules")
}

fn built_by(path: &str, how: &str) -> PathBuf {
    let path = target().join(path);
    assert!(path.is_file(), "{} is not there: {how}", path.display());
    path
}

/// The program `replicator`.
///
/// # Panics
/// If it isn't built.
#[must_use]
pub fn replicator() -> PathBuf {
    built("release/replicator")
}

/// The program `chat`.
///
/// # Panics
/// If it isn't built.
#[must_use]
pub fn chat() -> PathBuf {
    built("release/chat")
}

/// The program `wrong-replicator`: `replicator` with a planted fault.
///
/// # Panics
/// If it isn't built.
#[must_use]
pub fn wrong_replicator() -> PathBuf {
    built_by("release/wrong-replicator", "run `cargo build --release -p replicator-wrong` first, as `make test` does")
}

/// Where `.ci/run` keeps a Python with gRPC.
#[must_use]
pub fn python_environment() -> PathBuf {
    target().join("python")
}

/// The top of the source tree.
#[must_use]
pub fn source() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    workspace.canonicalize().unwrap_or(workspace)
}

/// A module: `chat`, `echo` or `counter`.
///
/// # Panics
/// If it isn't built.
#[must_use]
pub fn module(name: &str) -> PathBuf {
    built(&format!("modules/{name}.wasm"))
}

/// Where test processes of this checkout meet.
pub(crate) fn meeting_place() -> PathBuf {
    target().join("tmp")
}
