//! What is done to messages that are there: reactions and editing, since version 2.

use prost::Message;
use replicator_proto::chat::v1::{ChatPush, Edit, Edited, React, Reacted, ReactionNotice, chat_push, chat_response};
use statemachine::{Context, Output, SessionId};

use crate::{
    Chat,
    encode::MessageView,
    mailbox::stored_bytes,
    refusal::{Refusal, reply},
};

/// Bytes of a reaction: room for an emoji of several parts.
const REACTION_BYTES_MAX: usize = 32;

impl Chat {
    /// Puts a reaction on a message in the own mailbox, or takes it back.
    pub(crate) fn react(&mut self, session: SessionId, react: React, output: &mut Output) -> Result<(), Refusal> {
        let own = self.logins.get(session)?.clone();
        let React { message_id, reaction } = react;
        check_reaction(&reaction)?;
        let account = self.accounts.get_mut(&own.name).expect("who is logged in exists");
        let message = account.mailbox.get_mut(message_id).ok_or_else(|| {
            Refusal::no_such_message("there is no such message in the mailbox; list the messages to find its number")
        })?;
        message.reaction = (!reaction.is_empty()).then(|| reaction.as_str().into());
        let sender = message.from.clone();

        // A new account of the sender's name is somebody else.
        let sender = self.accounts.get(&sender.name).filter(|account| account.id == sender.id);
        let sessions = sender.into_iter().flat_map(|account| account.sessions.iter().copied());
        let notice = ReactionNotice { message_id, from: own.name.to_string(), reaction };
        let push = ChatPush { event: Some(chat_push::Event::Reaction(notice)) };
        let pushed_to = output.push_to_each(sessions, |list| push.encode(list).expect("a Vec has room"));
        reply(output, chat_response::Result::Reacted(Reacted { pushed_to }));
        Ok(())
    }

    /// Changes the text of a message that the own account has sent.
    pub(crate) fn edit(&mut self, context: &Context, edit: Edit, output: &mut Output) -> Result<(), Refusal> {
        let own = self.logins.get(context.session)?;
        self.check_text(&edit.text)?;
        let recipient = self.accounts.get_mut(&edit.to).ok_or_else(Refusal::no_such_account)?;
        let unread = recipient.mailbox.is_unread(edit.message_id);
        let message = recipient.mailbox.get_mut(edit.message_id).filter(|message| message.from.id == own.id);
        let message = message.ok_or_else(|| {
            Refusal::no_such_message("the recipient's mailbox has no such message of yours; it may have been deleted")
        })?;
        let stored_bytes = self.stored_bytes - message.stored_bytes() + stored_bytes(&edit.text);
        if stored_bytes > self.stored_bytes.max(self.config.stored_bytes_max) {
            return Err(Refusal::mailboxes_full());
        }

        self.stored_bytes = stored_bytes;
        message.text = edit.text;
        message.edited_us = context.time_us;
        let view = MessageView { id: edit.message_id, message, from_deleted: false, unread };
        let pushed_to = output.push_to_each(recipient.sessions.iter().copied(), |list| view.encode_edited_push(list));
        reply(output, chat_response::Result::Edited(Edited { pushed_to }));
        Ok(())
    }
}

/// Checks a reaction; an empty one is none, and good.
pub(crate) fn check_reaction(reaction: &str) -> Result<(), Refusal> {
    if reaction.len() > REACTION_BYTES_MAX || reaction.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Refusal::invalid("a reaction has at most 32 bytes, without white space and control characters"));
    }
    Ok(())
}
