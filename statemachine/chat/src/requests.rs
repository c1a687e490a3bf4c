//! What each request does. Every handler checks first and changes and answers then.

use prost::Message;
use replicator_proto::chat::v1::{
    AccountDeleted, ChatPush, ChatRequest, Deleted, LoggedIn, LoggedOut, Login, Marked, Register, Registered, Send,
    Sent, chat_push, chat_request::Action, chat_response,
};
use statemachine::{Context, Output, SessionId};

use crate::{
    Chat,
    accounts::{Identity, check_name},
    credentials::PublicKey,
    encode::{self, MessageView},
    mailbox::{Stored, stored_bytes},
    refusal::{Refusal, reply},
    release::IS_V1,
};

/// Of messages or names that one request names or asks for.
const MESSAGES_MAX: usize = 1_000;

impl Chat {
    /// Executes a request.
    ///
    /// # Errors
    /// Why it was refused; nothing has changed then, and nothing was said.
    pub(crate) fn execute(&mut self, context: &Context, request: &[u8], output: &mut Output) -> Result<(), Refusal> {
        if request.len() > self.config.request_bytes_max() {
            return Err(Refusal::invalid("the request is longer than any that this server takes"));
        }
        let request = ChatRequest::decode(request)
            .map_err(|error| Refusal::invalid(format!("not a chat.v1.ChatRequest: {error}")))?;
        match request.action.ok_or_else(Refusal::unknown_action)? {
            Action::Register(register) => self.register(&register, output),
            Action::Login(login) => self.login(context.session, &login, output),
            Action::Logout(_) => self.logout(context.session, output),
            Action::Send(send) => self.send(context, send, output),
            Action::ReadNext(read_next) => self.read_next(context.session, read_next.limit, output),
            Action::MarkRead(mark_read) => self.mark_read(context.session, &mark_read.message_ids, output),
            Action::DeleteMessages(delete) => self.delete_messages(context.session, &delete.message_ids, output),
            Action::DeleteAccount(_) => self.delete_account(context.session, output),
            Action::React(_) | Action::Edit(_) if IS_V1 => Err(Refusal::unknown_action()),
            Action::React(react) => self.react(context.session, react, output),
            Action::Edit(edit) => self.edit(context, edit, output),
        }
    }

    fn register(&mut self, register: &Register, output: &mut Output) -> Result<(), Refusal> {
        check_name(&register.account)?;
        let key = PublicKey::new(&register.public_key)?;
        if self.accounts.get(&register.account).is_some() {
            return Err(Refusal::account_exists());
        }
        if self.accounts.len() as u64 >= self.config.accounts_max {
            return Err(Refusal::limit_reached(
                "there are as many accounts as there may be; delete one that isn't needed",
            ));
        }
        self.accounts.add(&register.account, key);
        reply(output, chat_response::Result::Registered(Registered {}));
        Ok(())
    }

    fn login(&mut self, session: SessionId, login: &Login, output: &mut Output) -> Result<(), Refusal> {
        let current = self.logins.get(session).ok();
        if current.is_some_and(|current| *current.name != *login.account) {
            return Err(Refusal::already_logged_in());
        }
        let signature = login.signature.as_slice().try_into();
        let signature = signature.map_err(|_| Refusal::invalid("a signature has 64 bytes"))?;
        let account = self.accounts.get(&login.account).ok_or_else(Refusal::wrong_password)?;
        if !account.key.admits(session, &login.account, signature) {
            return Err(Refusal::wrong_password());
        }
        if current.is_none() && account.sessions.len() as u64 >= self.config.account_sessions_max {
            return Err(Refusal::limit_reached(
                "the account is logged in as often as it may be; log out another session",
            ));
        }
        let unread = account.mailbox.unread_len() as u64;
        let identity = self.accounts.identity(account.id).expect("an account has an identity");
        let account = identity.name.to_string();
        self.log_in(session, identity);
        reply(output, chat_response::Result::LoggedIn(LoggedIn { account, unread }));
        Ok(())
    }

    fn logout(&mut self, session: SessionId, output: &mut Output) -> Result<(), Refusal> {
        if !self.log_out(session) {
            return Err(Refusal::not_logged_in());
        }
        reply(output, chat_response::Result::LoggedOut(LoggedOut {}));
        Ok(())
    }

    fn send(&mut self, context: &Context, send: Send, output: &mut Output) -> Result<(), Refusal> {
        let from = self.logins.get(context.session)?;
        self.check_text(&send.text)?;
        let recipient = self.accounts.get_mut(&send.to).ok_or_else(Refusal::no_such_account)?;
        if recipient.mailbox.len() as u64 >= self.config.mailbox_messages_max {
            return Err(Refusal::mailbox_full(
                "the recipient's mailbox is full; try again when they have deleted some",
            ));
        }
        let stored_bytes = self.stored_bytes + stored_bytes(&send.text);
        if stored_bytes > self.config.stored_bytes_max {
            return Err(Refusal::mailboxes_full());
        }

        let message_id = self.next_message_id;
        self.next_message_id += 1;
        self.stored_bytes = stored_bytes;
        let message = Stored::new(from.clone(), send.text, context.time_us);
        let view = MessageView { id: message_id, message: &message, from_deleted: false, unread: true };
        let pushed_to = output.push_to_each(recipient.sessions.iter().copied(), |list| view.encode_push(list));
        recipient.mailbox.deliver(message_id, message);
        reply(output, chat_response::Result::Sent(Sent { message_id, pushed_to }));
        Ok(())
    }

    /// Checks the text of a message.
    pub(crate) fn check_text(&self, text: &str) -> Result<(), Refusal> {
        let text_bytes_max = self.config.text_bytes_max;
        if text.is_empty() || text.len() as u64 > text_bytes_max {
            return Err(Refusal::invalid(format!("a text has 1 to {text_bytes_max} bytes")));
        }
        Ok(())
    }

    fn read_next(&mut self, session: SessionId, limit: u32, output: &mut Output) -> Result<(), Refusal> {
        let Identity { name, .. } = self.logins.get(session)?.clone();
        let limit = check_limit(limit)?;
        let mailbox = &self.accounts.get(&name).expect("who is logged in exists").mailbox;
        let unread = mailbox.unread_after(0).map(|(id, message)| self.view(*id, message, true));
        let count = self.page_len(unread.clone(), limit);
        let left = mailbox.unread_len() - count;
        output.reply_with(|list| encode::encode_messages(unread.take(count), left as u64, left > 0, list));

        let account = self.accounts.get_mut(&name).expect("who is logged in exists");
        account.mailbox.mark_oldest_read(count);
        Ok(())
    }

    fn mark_read(&mut self, session: SessionId, ids: &[u64], output: &mut Output) -> Result<(), Refusal> {
        let from = self.logins.get(session)?;
        check_ids(ids)?;
        let mailbox = &mut self.accounts.get_mut(&from.name).expect("who is logged in exists").mailbox;
        let count = ids.iter().filter(|id| mailbox.mark_read(**id)).count() as u32;
        reply(output, chat_response::Result::Marked(Marked { count }));
        Ok(())
    }

    fn delete_messages(&mut self, session: SessionId, ids: &[u64], output: &mut Output) -> Result<(), Refusal> {
        let from = self.logins.get(session)?;
        check_ids(ids)?;
        let mailbox = &mut self.accounts.get_mut(&from.name).expect("who is logged in exists").mailbox;
        let mut count = 0;
        for message in ids.iter().filter_map(|id| mailbox.delete(*id)) {
            self.stored_bytes -= message.stored_bytes();
            count += 1;
        }
        reply(output, chat_response::Result::Deleted(Deleted { count }));
        Ok(())
    }

    fn delete_account(&mut self, session: SessionId, output: &mut Output) -> Result<(), Refusal> {
        let Identity { name, .. } = self.logins.get(session)?.clone();
        let account = self.remove_account(&name).expect("who is logged in exists");
        let mailbox = &account.mailbox;
        let deleted = AccountDeleted { messages: mailbox.len() as u64, unread: mailbox.unread_len() as u64 };
        let push = ChatPush { event: Some(chat_push::Event::AccountDeleted(deleted)) };
        output.push_to_each(account.sessions.iter().copied(), |list| push.encode(list).expect("a Vec has room"));
        reply(output, chat_response::Result::AccountDeleted(deleted));
        Ok(())
    }
}

/// Checks how many messages or names an answer is asked to hold.
pub(crate) fn check_limit(limit: u32) -> Result<usize, Refusal> {
    match limit as usize {
        limit @ 1..=MESSAGES_MAX => Ok(limit),
        _ => Err(Refusal::invalid("a limit is from 1 to 1000")),
    }
}

fn check_ids(ids: &[u64]) -> Result<(), Refusal> {
    if ids.len() > MESSAGES_MAX {
        return Err(Refusal::invalid("a request names at most 1000 messages; send several"));
    }
    Ok(())
}
