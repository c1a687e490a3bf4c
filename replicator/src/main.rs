//! The `replicator` program.

use std::process::ExitCode;

/// Entries are allocated on one thread and freed on another, some ten allocations each; glibc's allocator spends a fifth of a busy node's time on that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    replicator::cli::main()
}
