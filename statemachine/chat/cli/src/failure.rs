//! How a command ends badly: what is printed, and the exit code.

use std::{io, process::ExitCode};

use replicator_client::Error;
use replicator_proto::chat::v1::{ChatError, ChatErrorCode};
use serde_json::{Value, json};

use crate::args::Format;

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
#[error("{message}")]
pub(crate) struct Refused {
    code: ChatErrorCode,
    message: String,
}

impl Refused {
    /// Whether it is about this one text: another one to the same recipient may be taken.
    pub(crate) fn is_about_the_text(&self) -> bool {
        self.code == ChatErrorCode::Invalid
    }
}

/// There is no login to act with: none was made, or it has ended.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct NoLogin {
    message: String,
    reason: &'static str,
}

/// A [`NoLogin`] error: none was made.
pub(crate) fn not_logged_in(message: impl Into<String>) -> anyhow::Error {
    NoLogin { message: message.into(), reason: "NOT_LOGGED_IN" }.into()
}

/// Whether another login would help.
pub(crate) fn needs_login(error: &anyhow::Error) -> bool {
    error.is::<NoLogin>()
        || error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == ChatErrorCode::NotLoggedIn)
}

/// Whether no server could be reached, and nothing was done.
pub(crate) fn is_unavailable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Unavailable { .. })))
}

/// Why nothing came of a request, in the words of the last attempt.
pub(crate) fn last_words(error: &anyhow::Error) -> String {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref() {
            Some(Error::Unavailable { cause, .. } | Error::OutcomeUnknown { cause, .. }) => {
                Some(cause.message().to_owned())
            }
            _ => None,
        })
        .unwrap_or_else(|| format!("{error:#}"))
}

/// What to tell about a refusal.
pub(crate) fn refused(error: ChatError, account: &str) -> anyhow::Error {
    let code = error.code();
    let hint = match code {
        ChatErrorCode::NotLoggedIn => format!("; run `chat login {account}`"),
        ChatErrorCode::NoSuchAccount => "; `chat list` shows all accounts".to_owned(),
        ChatErrorCode::AccountExists => format!("; choose another name, or run `chat login {account}`"),
        ChatErrorCode::WrongPassword => "; try again, or make the account with `chat register`".to_owned(),
        ChatErrorCode::AlreadyLoggedIn => "; run `chat logout` first".to_owned(),
        ChatErrorCode::UnknownAction => {
            "; it is older than this program, and its operator can say when it is replaced".to_owned()
        }
        _ => String::new(),
    };
    // The module's own words may already say what to do.
    let message = error.message.trim_end_matches('.');
    let said = message.contains("chat ") || message.contains(';');
    let message = if said { message.to_owned() } else { format!("{message}{hint}") };
    Refused { code, message }.into()
}

/// Adds what to do to an error of the client library.
pub(crate) fn explain(error: Error, account: &str) -> anyhow::Error {
    let hint = match &error {
        Error::SessionExpired { .. } => {
            let message = format!("the login of {account} has expired; run `chat login {account}`");
            return NoLogin { message, reason: "SESSION_EXPIRED" }.into();
        }
        Error::LineageMismatch { .. } => {
            let message = format!(
                "the servers were restored or recovered since the login of {account}; run `chat login {account}`"
            );
            return NoLogin { message, reason: "LINEAGE_MISMATCH" }.into();
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

/// What happened, in one word for programs.
fn reason(error: &anyhow::Error) -> String {
    if error.is::<Usage>() {
        return "USAGE".to_owned();
    }
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return refused.code.as_str_name().trim_start_matches("CHAT_ERROR_CODE_").to_owned();
    }
    if let Some(login) = error.downcast_ref::<NoLogin>() {
        return login.reason.to_owned();
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<Error>()) {
        Some(cause) => match cause.reason() {
            Some(reason) => reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned(),
            None if matches!(cause, Error::Unavailable { .. }) => "UNAVAILABLE".to_owned(),
            None => "FAILED".to_owned(),
        },
        None => "FAILED".to_owned(),
    }
}

/// `error` for programs: its message and its reason.
pub(crate) fn error_json(error: &anyhow::Error) -> Value {
    json!({ "message": format!("{error:#}"), "reason": reason(error) })
}

/// Prints `error` and chooses the exit code. `vote`: what --vote found, for programs.
pub(crate) fn report(error: &anyhow::Error, format: Format, vote: Option<Value>) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // as `chat list | head -1`: the reader has what it wanted
    }
    use std::io::Write as _;
    let mut stderr = anstream::stderr();
    // If it can't be written, nobody is left to tell.
    let _ = match format {
        Format::Json => {
            let mut told = json!({ "error": error_json(error) });
            if let Some(vote) = vote {
                told["vote"] = vote;
            }
            writeln!(stderr, "{told}")
        }
        Format::Table => {
            let red = anstyle::AnsiColor::Red.on_default().bold();
            writeln!(stderr, "{red}error:{red:#} {error:#}")
        }
    };
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
    fn every_kind_of_failure_has_a_reason_for_programs() {
        let full = ChatError { code: ChatErrorCode::MailboxFull.into(), message: "full".into() };
        let expired = Error::SessionExpired { message: "gone".into() };
        for (error, expected, login) in [
            (usage("x"), "USAGE", false),
            (refused(full, "alice"), "MAILBOX_FULL", false),
            (explain(expired, "alice"), "SESSION_EXPIRED", true),
            (not_logged_in("x"), "NOT_LOGGED_IN", true),
            (
                Error::SequenceReused { sequence: replicator_client::Sequence(1), last_sequence: None }.into(),
                "SEQUENCE_REUSED",
                false,
            ),
            (anyhow::anyhow!("x"), "FAILED", false),
        ] {
            assert_eq!(needs_login(&error), login, "{error:#}");
            let json = error_json(&error.context("doing something"));
            assert_eq!(json["reason"], expected, "{json}");
            assert!(json["message"].as_str().unwrap().starts_with("doing something: "), "{json}");
        }
    }

    #[test]
    fn exit_codes() {
        let report = |error: &anyhow::Error| format!("{:?}", report(error, Format::Table, None));
        let pipe = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing");
        assert_eq!(report(&pipe), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(report(&usage("x")), format!("{:?}", ExitCode::from(2)));
        assert_eq!(report(&anyhow::anyhow!("x")), format!("{:?}", ExitCode::from(1)));
    }
}
