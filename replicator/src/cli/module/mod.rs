//! `replicator module`: what an author and an operator do with modules.

mod check;
pub(super) mod diff;
mod online;

use clap::Subcommand;

use super::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum ModuleCommand {
    /// Check a module file without any cluster: its form, and whether it is deterministic
    Check(check::CheckArgs),
    /// Run a new module beside the one that runs, over a snapshot and the real log after it, and show what differs, before anything is switched
    Diff(diff::DiffArgs),
}

pub(super) async fn run(command: ModuleCommand) -> Result<(), Failure> {
    match command {
        ModuleCommand::Check(args) => check::run(&args),
        ModuleCommand::Diff(args) => diff::run(args).await,
    }
}
