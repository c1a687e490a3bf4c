//! How a command ends badly: the words, the reason for programs, and the exit code.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use replicator_client::Error;
use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::output;

/// Why a command failed, and with which exit code.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be done: 1.
    Failed(anyhow::Error),
    /// It was asked for wrongly: 2.
    Usage(String),
    /// Replicas disagree, or a disk can't be trusted: 3.
    Damage(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        // A bad address is the caller's mistake wherever it is found.
        match error.downcast_ref() {
            Some(Error::InvalidEndpoint { .. } | Error::NoEndpoints) => Self::Usage(words(&error)),
            _ => Self::Failed(error),
        }
    }
}

impl Failure {
    /// Prints the failure on standard error, as a line for people or as JSON, and chooses the exit code.
    pub(super) fn tell(&self, as_json: bool) -> ExitCode {
        let (error, code) = match self {
            Self::Failed(error) if output::is_broken_pipe(error) => return ExitCode::SUCCESS,
            Self::Failed(error) => (described(error), 1),
            Self::Usage(message) => (json!({ "message": message }), 2),
            Self::Damage(error) => (described(error), 3),
        };
        // If nobody listens to standard error, the exit code has to do.
        let _ = if as_json {
            writeln!(std::io::stderr(), "{}", json!({ "error": error }))
        } else {
            let red = output::paint(anstyle::AnsiColor::Red);
            writeln!(anstream::stderr(), "{red}error:{red:#} {}", error["message"].as_str().unwrap_or_default())
        };
        ExitCode::from(code)
    }
}

/// An error for programs: `message`, and where there are such, `reason` (an `ErrorReason` without its prefix) and `log_index`.
pub(super) fn described(error: &anyhow::Error) -> Value {
    let mut described = json!({ "message": words(error) });
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    if let Some(reason) = cause.and_then(reason) {
        described["reason"] = reason.into();
    }
    if let Some(Error::ModuleTrapped { log_index, .. }) = cause
        && log_index.0 > 0
    {
        described["log_index"] = log_index.0.into();
    }
    described
}

fn reason(error: &Error) -> Option<String> {
    if let Error::Rpc(status) = error {
        return Some(status.get_details_error_info().filter(|info| info.domain == "replicator")?.reason);
    }
    Some(error.reason()?.as_str_name().trim_start_matches("ERROR_REASON_").to_owned())
}

/// An error and its causes, those left out that it has told already.
fn words(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match text(cause) {
        cause if told.contains(&cause) => told,
        cause if told.is_empty() => cause,
        cause => format!("{told}: {cause}"),
    })
}

/// Of a node's status its message alone.
fn text(cause: &(dyn std::error::Error + 'static)) -> String {
    let boxed = cause.downcast_ref::<Box<Status>>().map(|status| &**status);
    boxed.or_else(|| cause.downcast_ref()).map_or_else(|| cause.to_string(), |status| status.message().to_owned())
}

/// A command line that could not be understood.
pub(super) fn misunderstood(error: &clap::Error, as_json: bool) -> ExitCode {
    if as_json && error.use_stderr() {
        let message = error.render().to_string();
        return Failure::Usage(message.trim_start_matches("error: ").trim_end().to_owned()).tell(true);
    }
    let _ = error.print(); // as above
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Whether the arguments ask for JSON. Has to be known before they are understood, and also if they can't be.
pub(super) fn wants_json(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut value_follows = false;
    for argument in arguments {
        match argument.to_str().unwrap_or_default() {
            "json" if value_follows => return true,
            "-ojson" | "-o=json" | "--output=json" => return true,
            "--" => return false,
            argument => value_follows = matches!(argument, "-o" | "--output"),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_in_every_way_of_writing_it() {
        let asked = |line: &str| wants_json(line.split(' ').map(OsString::from));
        for line in ["status -o json", "status -ojson", "call --output=json x", "call x --output json", "x -o=json"] {
            assert!(asked(line), "{line}");
        }
        for line in ["status", "call json", "call -o table json", "call -- -o json", "status -o"] {
            assert!(!asked(line), "{line}");
        }
    }

    #[test]
    fn a_nodes_words_are_told_once() {
        let error = Error::Rpc(Box::new(Status::not_found("no such module")));
        assert_eq!(words(&anyhow::Error::new(error).context("n1")), "n1: no such module");
    }

    #[test]
    fn bad_address_is_a_mistake_of_usage() {
        let error = Error::InvalidEndpoint { endpoint: "foo".into() };
        assert!(matches!(Failure::from(error), Failure::Usage(message) if message.contains("host:port")));
        assert!(matches!(Failure::from(anyhow::anyhow!("x")), Failure::Failed(_)));
    }
}
