//! The command line: `replicator COMMAND`.
//!
//! Tables for people, `-o json` for programs. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 disagreement (of replicas, or of one run with another) or damage found.

mod bench;
mod call;
mod chain;
mod cluster;
mod demo;
mod failure;
mod init;
mod journal;
mod log;
mod member;
mod module;
mod node;
mod output;
mod recover;
mod replay;
mod restart;
mod shape;
mod snapshot;
mod status;
mod torture;
mod upgrade;
mod watch;

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use self::{failure::Failure, output::Format};

/// Keeps a wasm state machine identical on several machines
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine with the chat application, to play with, or watch it tell its story
    Demo(demo::DemoArgs),
    /// Run one node
    Node(node::NodeArgs),
    /// Run a witness: a voter of a chain's configuration group, without application data
    Witness(node::NodeArgs),
    /// Make a cluster of nodes that run and are blank
    Init(init::InitArgs),
    /// Show what the nodes of a cluster are, hold and see
    Status(status::StatusArgs),
    /// Execute a request, exactly once
    Call(call::CallArgs),
    /// Read without changing anything
    Query(call::query::QueryArgs),
    /// Change who does what in a cluster
    #[command(subcommand)]
    Member(member::MemberCommand),
    /// Swap the program that the cluster runs: upload another module, activate it, go back; check or compare one; or make one of your own
    #[command(subcommand)]
    Module(module::ModuleCommand),
    /// Put an engine barrier into the log, to go on with this program where its engine is another one
    Upgrade(upgrade::UpgradeArgs),
    /// Take images of a node's whole state, look at them, save one in a file, restore it into a new cluster
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Look at a stopped node's folder: check every byte, print its log
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Run a stopped node's log again, offline: the state at any index, what changed between two, a run kept as a test
    Replay(replay::ReplayArgs),
    /// Bring a cluster back from one folder, after the others are lost for ever: may lose what only they held
    Recover(recover::RecoverArgs),
    /// Measure how much a cluster does, and how fast it answers
    Bench(bench::BenchArgs),
    /// Kill and stop nodes under load, and account for every request afterwards
    Torture(torture::TortureArgs),
    /// Print a script that lets a shell complete the command line
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the cluster is.
#[derive(Debug, Clone, Args)]
struct Endpoints {
    /// Client addresses of one or more nodes
    #[arg(long, env = "REPLICATOR_ENDPOINTS", value_name = "HOST:PORT,…", value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
struct Output {
    /// A table for people, or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let as_json = failure::wants_json(std::env::args_os().skip(1));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::misunderstood(&error, as_json),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Node(args) => node::run(args).await,
            Command::Witness(args) => node::run_witness(args).await,
            Command::Init(args) => init::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Call(args) => call::run(args).await,
            Command::Query(args) => call::query::run(args).await,
            Command::Completions { shell } => completions(shell),
            Command::Member(command) => member::run(command).await,
            Command::Module(command) => module::run(command).await,
            Command::Upgrade(args) => upgrade::run(args).await,
            Command::Snapshot(command) => snapshot::run(command).await,
            Command::Log(command) => log::run(command),
            Command::Replay(args) => replay::run(&args),
            Command::Recover(args) => recover::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Torture(args) => torture::run(args).await,
        }
    });
    // Background tasks have nothing left to promise: what was acknowledged is on the disk.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(as_json),
    }
}

/// Half of the cores, as replication and the machine have threads of their own. One worker is better off without a work-stealing scheduler: tasks
/// that were woken together run before the connection that they write to, which then sends all in one go.
fn runtime() -> std::io::Result<Runtime> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
    match workers {
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        workers => Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

/// Prints the script that lets a shell complete our command lines.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "replicator", &mut script);
    Ok(std::io::Write::write_all(&mut std::io::stdout(), &script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
