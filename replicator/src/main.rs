//! The `replicator` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    replicator::cli::main()
}
