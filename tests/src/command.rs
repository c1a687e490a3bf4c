//! Running a program to its end.

use std::{
    io::{Seek as _, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Ran {
    /// What was run, for messages.
    pub what: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Checks the exit code.
    ///
    /// # Errors
    /// With everything that the command printed, if it is another.
    pub fn exits(self, code: i32) -> Result<Self> {
        let Self { what, stdout, stderr, .. } = &self;
        ensure!(
            self.code == Some(code),
            "`{what}` ended with {:?}, not {code}\nstdout: {stdout}\nstderr: {stderr}",
            self.code
        );
        Ok(self)
    }

    /// Checks that standard error holds all of `words`.
    ///
    /// # Errors
    /// With what it holds, if one is missing.
    pub fn complains_of(self, words: &[&str]) -> Result<Self> {
        for word in words {
            ensure!(self.stderr.contains(word), "`{}` did not mention {word:?}: {}", self.what, self.stderr);
        }
        Ok(self)
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("`{}` printed no JSON: {}", self.what, self.stdout))
    }
}

/// Removes what the caller's environment would say to our programs.
pub(crate) fn clean(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("REPLICATOR_") || key.starts_with("CHAT_")) {
            command.env_remove(key);
        }
    }
}

/// A command without our programs' environment but for this one.
pub fn prepared<S: AsRef<std::ffi::OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = S>,
    environment: &[(&str, &str)],
) -> Command {
    let mut command = Command::new(program);
    clean(&mut command);
    command.args(args).envs(environment.iter().copied());
    command
}

/// Runs `program` to its end, with these bytes as its standard input and without our programs' environment.
///
/// # Errors
/// If it can't be started, or doesn't end.
pub async fn run_with<S: AsRef<std::ffi::OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = S>,
    environment: &[(&str, &str)],
    input: &[u8],
) -> Result<Ran> {
    // In a file, so that no pipe has to be filled while the other is read.
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    file.rewind()?;
    run_from(program, args, environment, file.into()).await
}

/// Runs `program` to its end, without standard input and without our programs' environment.
///
/// # Errors
/// If it can't be started, or doesn't end.
pub async fn run<S: AsRef<std::ffi::OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = S>,
    environment: &[(&str, &str)],
) -> Result<Ran> {
    run_from(program, args, environment, Stdio::null()).await
}

async fn run_from<S: AsRef<std::ffi::OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = S>,
    environment: &[(&str, &str)],
    input: Stdio,
) -> Result<Ran> {
    let mut command = prepared(program, args, environment);
    command.stdin(input);
    let what = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(COMMAND_MAX, output).await.with_context(|| format!("`{what}` does not end"))?;
    let Output { status, stdout, stderr } = output.with_context(|| format!("can't start `{what}`"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { what, code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}
