//! What people tell each other in passing: that they write, that they are here. Queries that push, and change nothing.
//!
//! Nobody is told anything that concerns everybody: the one who asks names the accounts, so a notice costs what it reaches,
//! however many accounts there are.

use std::collections::BTreeSet;

use prost::Message;
use replicator_proto::chat::v1::{
    Announce, ChatPush, Notified, Presence, PresenceNotice, Typing, TypingNotice, chat_push, chat_response,
};
use statemachine::{Output, SessionId};

use crate::{
    Chat,
    accounts::Account,
    refusal::{Refusal, reply},
};

/// Accounts that one announcement may name.
const ACCOUNTS_MAX: usize = 100;
/// Sessions that one notice reaches: about 100 KB of pushes.
const SESSIONS_MAX: usize = 1_000;

impl Chat {
    /// Tells the sessions of an account that the one who asks writes to it.
    pub(crate) fn typing(&self, session: SessionId, typing: &Typing, output: &mut Output) -> Result<(), Refusal> {
        let from = self.logins.get(session)?.name.to_string();
        let to = self.accounts.get(&typing.to).ok_or_else(Refusal::no_such_account)?;
        notify(session, [to], chat_push::Event::Typing(TypingNotice { from }), output);
        Ok(())
    }

    /// Tells the sessions of some accounts that the one who asks is here, or goes.
    pub(crate) fn announce(&self, session: SessionId, announce: &Announce, output: &mut Output) -> Result<(), Refusal> {
        let account = self.logins.get(session)?.name.to_string();
        if announce.to.len() > ACCOUNTS_MAX {
            return Err(Refusal::invalid("an announcement names at most 100 accounts; send several"));
        }
        if !matches!(announce.presence(), Presence::Here | Presence::Gone) {
            return Err(Refusal::invalid("an announcement says that one is here or that one goes"));
        }
        let names: BTreeSet<&str> = announce.to.iter().map(String::as_str).collect();
        let to = names.into_iter().filter_map(|name| self.accounts.get(name));
        let notice = PresenceNotice { account, presence: announce.presence, asks: announce.asks };
        notify(session, to, chat_push::Event::Presence(notice), output);
        Ok(())
    }
}

/// Pushes an event to the sessions of some accounts but the asking one, and answers with how many that were.
fn notify<'a>(
    asking: SessionId,
    to: impl IntoIterator<Item = &'a Account>,
    event: chat_push::Event,
    output: &mut Output,
) {
    let sessions = to.into_iter().flat_map(|account| account.sessions.iter().copied());
    let others = sessions.filter(|session| *session != asking).take(SESSIONS_MAX);
    let push = ChatPush { event: Some(event) };
    let sessions = output.push_to_each(others, |list| push.encode(list).expect("a Vec has room"));
    reply(output, chat_response::Result::Notified(Notified { sessions }));
}
