//! How a command ends badly: what is printed, and the exit code.

use std::{io, process::ExitCode};

use replicator_client::Error;
use replicator_proto::chat::v1::{ChatError, ChatErrorCode};

/// The command line asks for what can't be done. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(String);

/// An [`Usage`] error.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// The cluster refused a request, without effect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

/// What to tell about a refusal.
pub(crate) fn refused(error: ChatError, account: &str) -> anyhow::Error {
    let hint = match error.code() {
        ChatErrorCode::NotLoggedIn => format!("; run `chat login {account}`"),
        ChatErrorCode::NoSuchAccount => "; `chat list` shows all accounts".to_owned(),
        ChatErrorCode::AccountExists => format!("; choose another name, or run `chat login {account}`"),
        ChatErrorCode::WrongPassword => "; try again, or make the account with `chat register`".to_owned(),
        ChatErrorCode::AlreadyLoggedIn => "; run `chat logout` first".to_owned(),
        _ => String::new(),
    };
    // The module's own words may already say what to do.
    let message = error.message.trim_end_matches('.');
    let said = message.contains("chat ") || message.contains(';');
    Refused(if said { message.to_owned() } else { format!("{message}{hint}") }).into()
}

/// Adds what to do to an error of the client library.
pub(crate) fn explain(error: Error, account: &str) -> anyhow::Error {
    let hint = match &error {
        Error::SessionExpired { .. } => {
            return anyhow::anyhow!("the login of {account} has expired; run `chat login {account}`");
        }
        Error::LineageMismatch { .. } => {
            return anyhow::anyhow!(
                "the servers were restored or recovered since the login of {account}; run `chat login {account}`"
            );
        }
        Error::OutcomeUnknown { .. } => {
            "no server answered in time, so this may or may not have been done. Repeat just this, before any other command of \
             this login: it is then done once, not twice"
        }
        Error::Unavailable { .. } => {
            "no server could answer, and nothing was done. Check --endpoints and the servers, then try again"
        }
        _ => return error.into(),
    };
    anyhow::Error::new(error).context(hint)
}

/// Whether `error` means that the reader of our output is gone.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe))
}

/// Prints `error` and chooses the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // as `chat list | head -1`: the reader has what it wanted
    }
    let red = anstyle::AnsiColor::Red.on_default().bold();
    use std::io::Write as _;
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {error:#}"); // nobody is left to tell
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let refusal = |code: ChatErrorCode, message: &str| {
            refused(ChatError { code: code.into(), message: message.into() }, "alice").to_string()
        };
        assert_eq!(
            refusal(ChatErrorCode::NotLoggedIn, "the session is not logged in"),
            "the session is not logged in; run `chat login alice`"
        );
        assert_eq!(refusal(ChatErrorCode::MailboxFull, "bob's mailbox is full"), "bob's mailbox is full");
        assert_eq!(refusal(ChatErrorCode::NotLoggedIn, "log in; then try again"), "log in; then try again");
    }

    #[test]
    fn exit_codes() {
        let pipe = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing");
        assert_eq!(format!("{:?}", report(&pipe)), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(format!("{:?}", report(&usage("x"))), format!("{:?}", ExitCode::from(2)));
        assert_eq!(format!("{:?}", report(&anyhow::anyhow!("x"))), format!("{:?}", ExitCode::from(1)));
    }
}
