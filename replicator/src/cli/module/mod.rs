//! `replicator module`: what an author and an operator do with modules.

pub(super) mod diff;

use clap::Subcommand;

use super::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum ModuleCommand {
    /// Run a new module beside the one that runs, over a snapshot and the real log after it, and show what differs, before anything is switched
    Diff(diff::DiffArgs),
}

pub(super) async fn run(command: ModuleCommand) -> Result<(), Failure> {
    match command {
        ModuleCommand::Diff(args) => diff::run(args).await,
    }
}
