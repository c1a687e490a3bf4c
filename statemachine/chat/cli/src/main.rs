//! `chat`: the command-line client of the replicated chat server.
//!
//! `args` says what can be asked for, `commands` does it, `account` talks to the cluster on behalf of a login that
//! `state` keeps between commands, and `output` prints. Errors end in `failure`, which chooses the exit code.

mod account;
mod args;
mod commands;
mod failure;
mod keys;
mod output;
mod password;
mod state;

use std::{io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // a closed pipe is no reason to complain
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let Some(command) = cli.command else {
        let help = Cli::command().render_help();
        let _ = write!(anstream::stdout(), "{}", help.ansi()); // as above
        return ExitCode::SUCCESS;
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start")),
    };
    let done = runtime.block_on(commands::run(&cli.global, command));
    // Not a drop: that would wait for a read of standard input that may never end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
