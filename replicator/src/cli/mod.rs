//! The command line: `replicator COMMAND`.
//!
//! Tables for people, `-o json` for programs. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 disagreement or damage found.

mod demo;
mod init;
mod member;
mod node;
mod output;
mod status;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::output::Format;

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
    /// Make a cluster of nodes that run and are blank
    Init(init::InitArgs),
    /// Show what the nodes of a cluster are, hold and see
    Status(status::StatusArgs),
    /// Change who does what in a cluster
    #[command(subcommand)]
    Member(member::MemberCommand),
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

/// Why a command failed, and with which exit code.
#[derive(Debug)]
enum Failure {
    /// It could not be done: 1.
    Failed(anyhow::Error),
    /// It was asked for wrongly: 2.
    Usage(String),
    /// Replicas disagree, or a disk can't be trusted: 3.
    Damage(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
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
            Command::Init(args) => init::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Member(command) => member::run(command).await,
        }
    });
    // Background tasks have nothing left to promise: what was acknowledged is on the disk.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => told(&words(&error), 1),
        Err(Failure::Usage(error)) => told(&error, 2),
        Err(Failure::Damage(error)) => told(&words(&error), 3),
    }
}

/// An error and its causes, those left out that it has told already.
fn words(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match cause.to_string() {
        cause if told.contains(&cause) => told,
        cause if told.is_empty() => cause,
        cause => format!("{told}: {cause}"),
    })
}

fn told(error: &str, code: u8) -> ExitCode {
    use std::io::Write as _;
    let red = output::paint(anstyle::AnsiColor::Red);
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {error}");
    ExitCode::from(code)
}
