//! The chat server as a replicated state machine: accounts, sessions logged in as them, and their mailboxes.
//!
//! Requests, queries, answers and pushes are those of `proto/chat/v1/chat.proto`, which is the reference for what each
//! does. A request is checked as a whole before it changes anything: what is refused has no effect.
//!
//! ```text
//! bytes ─▶ requests ─┬▶ accounts ─▶ mailbox          snapshot: all of it, as records
//!          queries ──┴▶ logins                       config: the limits, from the cluster's genesis
//!            notices: what queries push in passing    release: which version this is
//! ```
//!
//! Nothing is without a bound: texts, mailboxes, accounts, sessions of an account, all texts together, the length of an
//! answer and the work of a listing. So no client can drive the module into its memory or fuel limit.
#![forbid(unsafe_code)]

mod accounts;
mod changes;
mod config;
mod credentials;
mod encode;
#[cfg(test)]
mod invariants;
mod logins;
mod mailbox;
mod notices;
mod queries;
mod refusal;
mod release;
mod requests;
mod snapshot;
mod wildcard;

use statemachine::{Context, Output, StateMachine, export};

use crate::{accounts::Accounts, config::Config, logins::Logins};

/// The whole state of the chat server.
#[derive(Debug)]
pub struct Chat {
    config: Config,
    accounts: Accounts,
    logins: Logins,
    /// Ids of messages ascend from 1 and are never used twice.
    next_message_id: u64,
    /// What all messages together weigh, to be held against the configured limit.
    stored_bytes: u64,
}

export!(Chat);

impl StateMachine for Chat {
    const APP: &'static str = "chat";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SCHEMA: u32 = release::SCHEMA;
    const ACCEPTS_FROM: &'static [u32] = release::ACCEPTS_FROM;

    fn init(config: &[u8]) -> Result<Self, String> {
        Ok(Self {
            config: Config::parse(config)?,
            accounts: Accounts::default(),
            logins: Logins::default(),
            next_message_id: 1,
            stored_bytes: 0,
        })
    }

    fn apply(&mut self, context: &Context, request: &[u8], output: &mut Output) {
        if let Err(refusal) = self.execute(context, request, output) {
            refusal.reply(output);
        }
    }

    fn query(&self, context: &Context, request: &[u8], output: &mut Output) {
        if let Err(refusal) = self.answer(context, request, output) {
            refusal.reply(output);
        }
    }

    fn disconnect(&mut self, context: &Context, _output: &mut Output) {
        self.log_out(context.session);
    }

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        self.records()
    }

    fn restore(&mut self, schema: u32, record: &[u8]) -> Result<(), String> {
        self.restore_record(schema, record)
    }
}
