//! `replicator module`: what authors and operators do with modules.

mod new;

use clap::Subcommand;

use super::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum ModuleCommand {
    /// Make a crate for a module of your own, with its tests and the SDK: it builds, and runs in `replicator demo --module`
    New(new::NewArgs),
}

pub(super) async fn run(command: ModuleCommand) -> Result<(), Failure> {
    match command {
        ModuleCommand::New(args) => new::run(args),
    }
}
