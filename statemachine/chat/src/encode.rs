//! Messages written straight from the mailbox into the output.
//!
//! The generated types own their texts, so each answer would copy every one of them once more. What is written here is
//! byte for byte what they would write; the test holds it against them.

use prost::encoding::{encode_varint, encoded_len_varint};

use crate::mailbox::Stored;

/// Keys of the fields: number << 3, with 0 for a varint and 2 for what has a length.
mod key {
    pub(super) const PUSH_MESSAGE: u8 = 1 << 3 | 2;
    pub(super) const PUSH_EDITED: u8 = 6 << 3 | 2;
    pub(super) const RESPONSE_MESSAGES: u8 = 6 << 3 | 2;
    pub(super) const MESSAGES_MESSAGES: u8 = 1 << 3 | 2;
    pub(super) const MESSAGES_UNREAD: u8 = 2 << 3;
    pub(super) const MESSAGES_MORE: u8 = 3 << 3;
    pub(super) const ID: u8 = 1 << 3;
    pub(super) const FROM: u8 = 2 << 3 | 2;
    pub(super) const FROM_DELETED: u8 = 3 << 3;
    pub(super) const TEXT: u8 = 4 << 3 | 2;
    pub(super) const TIME_US: u8 = 5 << 3;
    pub(super) const UNREAD: u8 = 6 << 3;
    pub(super) const REACTION: u8 = 7 << 3 | 2;
    pub(super) const EDITED_US: u8 = 8 << 3;
}

/// A `chat.v1.Message` that borrows what it says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageView<'a> {
    pub(crate) id: u64,
    pub(crate) message: &'a Stored,
    pub(crate) from_deleted: bool,
    pub(crate) unread: bool,
}

impl MessageView<'_> {
    fn encoded_len(&self) -> usize {
        varint_len(self.id)
            + bytes_len(&self.message.from.name)
            + 2 * usize::from(self.from_deleted)
            + bytes_len(&self.message.text)
            + varint_len(self.message.time_us as u64)
            + 2 * usize::from(self.unread)
            + bytes_len(self.reaction())
            + varint_len(self.message.edited_us as u64)
    }

    fn reaction(&self) -> &str {
        self.message.reaction.as_deref().unwrap_or_default()
    }

    /// The length with the key and the length in front.
    pub(crate) fn nested_len(&self) -> usize {
        let len = self.encoded_len();
        1 + encoded_len_varint(len as u64) + len
    }

    fn encode_nested(&self, key: u8, out: &mut Vec<u8>) {
        out.push(key);
        encode_varint(self.encoded_len() as u64, out);
        put_varint(key::ID, self.id, out);
        put_bytes(key::FROM, &self.message.from.name, out);
        put_varint(key::FROM_DELETED, self.from_deleted.into(), out);
        put_bytes(key::TEXT, &self.message.text, out);
        put_varint(key::TIME_US, self.message.time_us as u64, out);
        put_varint(key::UNREAD, self.unread.into(), out);
        put_bytes(key::REACTION, self.reaction(), out);
        put_varint(key::EDITED_US, self.message.edited_us as u64, out);
    }

    /// Writes the push of this message.
    pub(crate) fn encode_push(&self, out: &mut Vec<u8>) {
        out.reserve(self.nested_len() + 8);
        self.encode_nested(key::PUSH_MESSAGE, out);
    }

    /// Writes the push that says that this message was edited.
    pub(crate) fn encode_edited_push(&self, out: &mut Vec<u8>) {
        out.reserve(self.nested_len() + 8);
        self.encode_nested(key::PUSH_EDITED, out);
    }
}

/// Writes the response that hands out these messages.
pub(crate) fn encode_messages<'a>(
    messages: impl Iterator<Item = MessageView<'a>> + Clone,
    unread: u64,
    more: bool,
    out: &mut Vec<u8>,
) {
    let len = messages.clone().map(|message| message.nested_len()).sum::<usize>()
        + varint_len(unread)
        + 2 * usize::from(more);
    out.reserve(len + 16);
    out.push(key::RESPONSE_MESSAGES);
    encode_varint(len as u64, out);
    messages.for_each(|message| message.encode_nested(key::MESSAGES_MESSAGES, out));
    put_varint(key::MESSAGES_UNREAD, unread, out);
    put_varint(key::MESSAGES_MORE, more.into(), out);
}

/// A field with its default value isn't written.
fn varint_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

fn put_varint(key: u8, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        out.push(key);
        encode_varint(value, out);
    }
}

fn bytes_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { 1 + encoded_len_varint(text.len() as u64) + text.len() }
}

fn put_bytes(key: u8, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        out.push(key);
        encode_varint(text.len() as u64, out);
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use replicator_proto::chat::v1::{ChatPush, ChatResponse, Message, Messages, chat_push, chat_response};

    use super::*;
    use crate::accounts::Identity;

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let who = (".{0,40}", any::<bool>());
        let what = (".{0,200}", any::<i64>(), any::<bool>(), ".{0,9}", any::<i64>());
        let message = (0..u64::MAX, who, what).prop_map(|(id, who, what)| {
            let ((from, from_deleted), (text, time_us, unread, reaction, edited_us)) = (who, what);
            Message { id, from, from_deleted, text, time_us, unread, reaction, edited_us }
        });
        prop::collection::vec(message, 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_what_the_generated_types_write(
            messages in messages(), unread in 0..300u64, more in any::<bool>()
        ) {
            let stored: Vec<Stored> = messages.iter().map(|message| Stored {
                from: Identity { id: 1, name: message.from.as_str().into() },
                text: message.text.clone(),
                time_us: message.time_us,
                reaction: (!message.reaction.is_empty()).then(|| message.reaction.as_str().into()),
                edited_us: message.edited_us,
            }).collect();
            let views = messages.iter().zip(&stored).map(|(message, stored)| MessageView {
                id: message.id,
                message: stored,
                from_deleted: message.from_deleted,
                unread: message.unread,
            });
            for (view, message) in views.clone().zip(&messages) {
                let mut bytes = Vec::new();
                view.encode_push(&mut bytes);
                let expected = ChatPush { event: Some(chat_push::Event::Message(message.clone())) };
                prop_assert_eq!(bytes, expected.encode_to_vec());
                let mut bytes = Vec::new();
                view.encode_edited_push(&mut bytes);
                let expected = ChatPush { event: Some(chat_push::Event::Edited(message.clone())) };
                prop_assert_eq!(bytes, expected.encode_to_vec());
            }
            let mut bytes = Vec::new();
            encode_messages(views, unread, more, &mut bytes);
            let result = chat_response::Result::Messages(Messages { messages, unread, more });
            prop_assert_eq!(bytes, ChatResponse { result: Some(result) }.encode_to_vec());
        }
    }
}
