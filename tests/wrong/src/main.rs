//! The `replicator` program, but for a planted fault: with REPLICATOR_WRONG_ANSWERS=TEXT in its environment, a node appends TEXT to what
//! its module answered, and changes the digest. Its log and its state stay right: only what clients are told is wrong. With REPLICATOR_DIVERGE=FROM=>TO
//! its module gets the request TO where the log has FROM, as if it weren't deterministic: once, or REPLICATOR_DIVERGE_TIMES times.

use std::process::ExitCode;

fn main() -> ExitCode {
    replicator::cli::main()
}
