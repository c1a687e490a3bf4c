//! `chat`: the command-line client of the replicated chat server.
//!
//! `args` says what can be asked for, `commands` does it or `talk` goes on with it, `account` talks to the cluster on behalf of a login that
//! `state` keeps between commands, and `output` prints. Errors end in `failure`, which chooses the exit code.

mod account;
mod args;
mod commands;
mod failure;
mod keys;
mod output;
mod password;
mod state;
mod talk;
mod vote;

use std::{env, process::ExitCode};

use crate::args::{Cli, Format};

fn main() -> ExitCode {
    let Cli { global, command } = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let args = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
            if error.use_stderr() && args::wants_json(args) {
                let message = error.to_string();
                let message = message.trim().trim_start_matches("error: ");
                return failure::report(&failure::usage(message), Format::Json, None);
            }
            let _ = error.print(); // a closed pipe is no reason to complain
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let format = global.output;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start"), format, None),
    };
    let done = runtime.block_on(async {
        match command {
            Some(command) => commands::run(&global, command).await,
            None => talk::talk(&global).await,
        }
    });
    // Not a drop: that would wait for a read of standard input that may never end.
    runtime.shutdown_background();
    let voted = global.votes.tell(format).map(ExitCode::from);
    match done {
        Ok(()) => voted.unwrap_or(ExitCode::SUCCESS),
        Err(error) => {
            let failed = failure::report(&error, format, global.votes.json());
            voted.unwrap_or(failed)
        }
    }
}
