//! `replicator module`: what authors and operators do with modules.

pub(super) mod activate;
mod check;
pub(super) mod diff;
pub(super) mod download;
mod list;
mod new;
pub(super) mod nodes;
mod online;
mod remove;
pub(super) mod upload;

use clap::Subcommand;

use super::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum ModuleCommand {
    /// Make a crate for a module of your own, with its tests and the SDK: it builds, and runs in `replicator demo --module`
    New(new::NewArgs),
    /// Check a module file without any cluster: its form, and whether it is deterministic
    Check(check::CheckArgs),
    /// Run a new module beside the one that runs, over a snapshot and the real log after it, and show what differs, before anything is switched
    Diff(diff::DiffArgs),
    /// Give a module to all replicas, which check and compile it; nothing runs it yet
    Upload(upload::UploadArgs),
    /// List the modules that the replicas have: which one runs, since when, and who is ready to run each
    List(list::ListArgs),
    /// Write a module that the cluster has into a file
    Download(download::DownloadArgs),
    /// Go on with another module, at one log index everywhere; one that can't take over leaves the active one running
    Activate(activate::ActivateArgs),
    /// Go back to the module that ran before, with all that was written since
    Rollback(activate::RollbackArgs),
    /// Delete a module that nothing needs from all replicas
    Remove(remove::RemoveArgs),
}

pub(super) async fn run(command: ModuleCommand) -> Result<(), Failure> {
    match command {
        ModuleCommand::New(args) => new::run(args),
        ModuleCommand::Check(args) => check::run(&args),
        ModuleCommand::Diff(args) => diff::run(args).await,
        ModuleCommand::Upload(args) => upload::run(args).await,
        ModuleCommand::List(args) => list::run(args).await,
        ModuleCommand::Download(args) => download::run(args).await,
        ModuleCommand::Activate(args) => activate::run(args).await,
        ModuleCommand::Rollback(args) => activate::roll_back(args).await,
        ModuleCommand::Remove(args) => remove::run(args).await,
    }
}
