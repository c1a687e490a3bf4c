//! Why a request was refused: a code for programs, and a sentence for people that says what to do.

use std::{borrow::Cow, fmt};

use prost::Message;
use replicator_proto::chat::v1::{ChatError, ChatErrorCode, ChatResponse, chat_response};
use statemachine::Output;

/// A refusal. Whoever returns one has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: ChatErrorCode,
    message: Cow<'static, str>,
}

impl Refusal {
    fn new(code: ChatErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ChatErrorCode::Invalid, message)
    }

    pub(crate) fn account_exists() -> Self {
        Self::new(ChatErrorCode::AccountExists, "the name is taken; choose another one")
    }

    pub(crate) fn no_such_account() -> Self {
        Self::new(ChatErrorCode::NoSuchAccount, "there is no account of this name; list the accounts to find it")
    }

    pub(crate) fn wrong_password() -> Self {
        Self::new(ChatErrorCode::WrongPassword, "the password is wrong, or there is no account of this name")
    }

    pub(crate) fn not_logged_in() -> Self {
        Self::new(ChatErrorCode::NotLoggedIn, "the session isn't logged in; log in first")
    }

    pub(crate) fn already_logged_in() -> Self {
        Self::new(ChatErrorCode::AlreadyLoggedIn, "the session is logged in as another account; log out first")
    }

    pub(crate) fn mailbox_full(message: &'static str) -> Self {
        Self::new(ChatErrorCode::MailboxFull, message)
    }

    pub(crate) fn limit_reached(message: &'static str) -> Self {
        Self::new(ChatErrorCode::LimitReached, message)
    }

    pub(crate) fn mailboxes_full() -> Self {
        Self::limit_reached("all mailboxes together are full; try again when some have been deleted")
    }

    pub(crate) fn unknown_action() -> Self {
        Self::new(ChatErrorCode::UnknownAction, "this is nothing that the running version of the server knows")
    }

    pub(crate) fn no_such_message(message: &'static str) -> Self {
        Self::new(ChatErrorCode::NoSuchMessage, message)
    }

    /// Answers with this refusal.
    pub(crate) fn reply(self, output: &mut Output) {
        let error = ChatError { code: self.code.into(), message: self.message.into_owned() };
        reply(output, chat_response::Result::Error(error));
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Answers with a result.
pub(crate) fn reply(output: &mut Output, result: chat_response::Result) {
    let response = ChatResponse { result: Some(result) };
    output.reply_with(|list| response.encode(list).expect("a Vec has room"));
}
