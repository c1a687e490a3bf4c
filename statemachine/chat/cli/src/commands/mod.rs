//! What each command does.

mod changes;
pub(crate) mod identity;
mod listen;
mod mailbox;
mod send;

use anyhow::Result;

use crate::args::{Command, Global};

/// Carries out `command`.
pub(crate) async fn run(global: &Global, command: Command) -> Result<()> {
    match command {
        Command::Register { name } => identity::register(global, name).await,
        Command::Login { name, ttl } => identity::login(global, name, ttl).await,
        Command::Logout => identity::logout(global).await,
        Command::Whoami => identity::whoami(global).await,
        Command::DeleteAccount { yes } => identity::delete_account(global, yes).await,
        Command::List { pattern } => mailbox::list(global, pattern).await,
        Command::Read { count } => mailbox::read(global, count).await,
        Command::Messages { unread, after, last } => mailbox::messages(global, unread, after, last).await,
        Command::React { id, reaction, remove: _ } => changes::react(global, id, reaction.unwrap_or_default()).await,
        Command::Edit { to, id, text } => changes::edit(global, to, id, text.join(" ")).await,
        Command::DeleteMessages { ids } => mailbox::delete_messages(global, ids).await,
        Command::Send(send) => send::send(global, send).await,
        Command::Listen { count, timeout } => listen::listen(global, count, timeout).await,
    }
}
