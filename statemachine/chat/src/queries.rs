//! What each query answers.

use prost::Message;
use replicator_proto::chat::v1::{
    Accounts, ChatQuery, ListAccounts, ListMessages, LoggedIn, chat_query::Action, chat_response,
};
use statemachine::{Context, Output, SessionId};

use crate::{
    Chat,
    config::QUERY_BYTES_MAX,
    encode::{self, MessageView},
    mailbox::Stored,
    refusal::{Refusal, reply},
    requests::check_limit,
    wildcard::Pattern,
};

const PAGE_SIZE_DEFAULT: u32 = 100;
const PAGE_TOKEN_BYTES_MAX: usize = 64;

impl Chat {
    /// Answers a query.
    ///
    /// # Errors
    /// Why it was refused.
    pub(crate) fn answer(&self, context: &Context, query: &[u8], output: &mut Output) -> Result<(), Refusal> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(Refusal::invalid("the query is longer than any that this server takes"));
        }
        let query =
            ChatQuery::decode(query).map_err(|error| Refusal::invalid(format!("not a chat.v1.ChatQuery: {error}")))?;
        match query.action.ok_or_else(Refusal::unknown_action)? {
            Action::ListAccounts(list) => self.list_accounts(&list, output),
            Action::ListMessages(list) => self.list_messages(context.session, &list, output),
            Action::WhoAmI(_) => self.who_am_i(context.session, output),
            Action::Typing(typing) => self.typing(context.session, &typing, output),
            Action::Announce(announce) => self.announce(context.session, &announce, output),
        }
    }

    fn list_accounts(&self, list: &ListAccounts, output: &mut Output) -> Result<(), Refusal> {
        let limit = page_limit(list.page_size)?;
        if list.page_token.len() > PAGE_TOKEN_BYTES_MAX {
            return Err(Refusal::invalid("the page token isn't one of this server's"));
        }
        let pattern = Pattern::new(&list.pattern)?;
        let (accounts, next_page_token) = self.accounts.list(&pattern, &list.page_token, limit);
        reply(output, chat_response::Result::Accounts(Accounts { accounts, next_page_token }));
        Ok(())
    }

    fn list_messages(&self, session: SessionId, list: &ListMessages, output: &mut Output) -> Result<(), Refusal> {
        let identity = self.logins.get(session)?;
        let limit = page_limit(list.page_size)?;
        let mailbox = &self.accounts.get(&identity.name).expect("who is logged in exists").mailbox;
        let unread = mailbox.unread_len() as u64;
        if list.last {
            let newest = mailbox.newest_after(list.after_id, list.unread_only);
            let newest = newest.map(|(id, message, unread)| self.view(id, message, unread));
            let count = self.page_len(newest.clone(), limit);
            let more = newest.clone().nth(count).is_some();
            let mut page: Vec<_> = newest.take(count).collect();
            page.reverse();
            output.reply_with(|list| encode::encode_messages(page.iter().copied(), unread, more, list));
        } else if list.unread_only {
            let messages = mailbox.unread_after(list.after_id).map(|(id, message)| self.view(*id, message, true));
            self.reply_page(messages, limit, unread, output);
        } else {
            let messages = mailbox.after(list.after_id).map(|(id, message, unread)| self.view(id, message, unread));
            self.reply_page(messages, limit, unread, output);
        }
        Ok(())
    }

    fn who_am_i(&self, session: SessionId, output: &mut Output) -> Result<(), Refusal> {
        let identity = self.logins.get(session)?;
        let account = self.accounts.get(&identity.name).expect("who is logged in exists");
        let unread = account.mailbox.unread_len() as u64;
        reply(output, chat_response::Result::LoggedIn(LoggedIn { account: identity.name.to_string(), unread }));
        Ok(())
    }

    fn reply_page<'a>(
        &self,
        messages: impl Iterator<Item = MessageView<'a>> + Clone,
        limit: usize,
        unread: u64,
        output: &mut Output,
    ) {
        let count = self.page_len(messages.clone(), limit);
        let more = messages.clone().nth(count).is_some();
        output.reply_with(|list| encode::encode_messages(messages.take(count), unread, more, list));
    }

    /// How many of these messages one answer hands out: at most `limit`, and after the first one no more than have room.
    pub(crate) fn page_len<'a>(&self, messages: impl Iterator<Item = MessageView<'a>>, limit: usize) -> usize {
        let mut bytes = 0;
        let fits = |message: &MessageView<'_>| {
            let first = bytes == 0;
            bytes += message.nested_len() as u64;
            first || bytes <= self.config.answer_bytes_max
        };
        messages.take(limit).take_while(fits).count()
    }

    /// A message as answers show it.
    pub(crate) fn view<'a>(&self, id: u64, message: &'a Stored, unread: bool) -> MessageView<'a> {
        MessageView { id, message, from_deleted: self.accounts.is_deleted(message.from.id), unread }
    }
}

/// How many a page may hold.
fn page_limit(page_size: u32) -> Result<usize, Refusal> {
    check_limit(if page_size == 0 { PAGE_SIZE_DEFAULT } else { page_size })
}
