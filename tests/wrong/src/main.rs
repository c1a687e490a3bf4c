//! The `replicator` program, but for a planted fault: with REPLICATOR_WRONG_ANSWERS=TEXT in its environment, a node appends TEXT to what
//! its module answered, and changes the digest. Its log and its state stay right: only what clients are told is wrong.

use std::process::ExitCode;

fn main() -> ExitCode {
    replicator::cli::main()
}
