//! One account's mailbox: unread messages and read ones, each in the order of their ids.

use std::{
    collections::{BTreeMap, btree_map},
    iter::Peekable,
    ops::Bound::{Excluded, Unbounded},
};

use crate::accounts::Identity;

/// What a message is counted with beside its text: id, sender, times, a reaction, and its share of the map.
const MESSAGE_OVERHEAD_BYTES: u64 = 128;

/// A message, without its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) from: Identity,
    pub(crate) text: String,
    pub(crate) time_us: i64,
    /// The recipient's.
    pub(crate) reaction: Option<Box<str>>,
    /// When the text was last changed; 0: never.
    pub(crate) edited_us: i64,
}

impl Stored {
    /// A message as it is sent.
    pub(crate) fn new(from: Identity, text: String, time_us: i64) -> Self {
        Self { from, text, time_us, reaction: None, edited_us: 0 }
    }

    /// What the message counts against the limit on all messages.
    pub(crate) fn stored_bytes(&self) -> u64 {
        stored_bytes(&self.text)
    }
}

/// What a message of this text would count.
pub(crate) fn stored_bytes(text: &str) -> u64 {
    text.len() as u64 + MESSAGE_OVERHEAD_BYTES
}

/// A mailbox. Invariant: no id is in both maps, and none is 0.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    unread: BTreeMap<u64, Stored>,
    read: BTreeMap<u64, Stored>,
}

impl Mailbox {
    /// All messages.
    pub(crate) fn len(&self) -> usize {
        self.unread.len() + self.read.len()
    }

    /// How many are unread.
    pub(crate) fn unread_len(&self) -> usize {
        self.unread.len()
    }

    /// What all messages count together.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.unread.values().chain(self.read.values()).map(Stored::stored_bytes).sum()
    }

    /// A message, for a change.
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Stored> {
        self.unread.get_mut(&id).or_else(|| self.read.get_mut(&id))
    }

    /// Whether a message is there and unread.
    pub(crate) fn is_unread(&self, id: u64) -> bool {
        self.unread.contains_key(&id)
    }

    /// Adds an unread message.
    pub(crate) fn deliver(&mut self, id: u64, message: Stored) {
        self.unread.insert(id, message);
    }

    /// Puts a message where it was, unless its id is taken.
    pub(crate) fn insert(&mut self, id: u64, message: Stored, unread: bool) -> bool {
        if self.unread.contains_key(&id) || self.read.contains_key(&id) {
            return false;
        }
        let map = if unread { &mut self.unread } else { &mut self.read };
        map.insert(id, message);
        true
    }

    /// Marks a message read. Returns whether it was there and unread.
    pub(crate) fn mark_read(&mut self, id: u64) -> bool {
        let Some(message) = self.unread.remove(&id) else { return false };
        self.read.insert(id, message);
        true
    }

    /// Marks the oldest unread messages read, at most `count`.
    pub(crate) fn mark_oldest_read(&mut self, count: usize) {
        for _ in 0..count {
            let Some((id, message)) = self.unread.pop_first() else { return };
            self.read.insert(id, message);
        }
    }

    /// Deletes a message, read or not.
    pub(crate) fn delete(&mut self, id: u64) -> Option<Stored> {
        self.unread.remove(&id).or_else(|| self.read.remove(&id))
    }

    /// The unread messages after this id, ascending.
    pub(crate) fn unread_after(&self, id: u64) -> btree_map::Range<'_, u64, Stored> {
        self.unread.range((Excluded(id), Unbounded))
    }

    /// The messages after this id, ascending.
    pub(crate) fn after(&self, id: u64) -> After<'_> {
        let read = self.read.range((Excluded(id), Unbounded));
        After { unread: self.unread_after(id).peekable(), read: read.peekable() }
    }

    /// The messages after this id, or only the unread ones, descending.
    pub(crate) fn newest_after(&self, id: u64, unread_only: bool) -> NewestAfter<'_> {
        let after = (Excluded(id), Unbounded);
        let read = if unread_only { (Excluded(u64::MAX), Unbounded) } else { after };
        NewestAfter { unread: self.unread.range(after), read: self.read.range(read) }
    }
}

/// Unread and read messages in one descending order: id, message, whether it is unread.
#[derive(Debug, Clone)]
pub(crate) struct NewestAfter<'a> {
    unread: btree_map::Range<'a, u64, Stored>,
    read: btree_map::Range<'a, u64, Stored>,
}

impl<'a> Iterator for NewestAfter<'a> {
    type Item = (u64, &'a Stored, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let unread_is_next = match (self.unread.clone().next_back(), self.read.clone().next_back()) {
            (Some((unread, _)), Some((read, _))) => unread > read,
            (unread, _) => unread.is_some(),
        };
        let (id, message) = if unread_is_next { self.unread.next_back() } else { self.read.next_back() }?;
        Some((*id, message, unread_is_next))
    }
}

/// Unread and read messages in one ascending order: id, message, whether it is unread.
#[derive(Debug, Clone)]
pub(crate) struct After<'a> {
    unread: Peekable<btree_map::Range<'a, u64, Stored>>,
    read: Peekable<btree_map::Range<'a, u64, Stored>>,
}

impl<'a> Iterator for After<'a> {
    type Item = (u64, &'a Stored, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let unread_is_next = match (self.unread.peek(), self.read.peek()) {
            (Some((unread, _)), Some((read, _))) => unread < read,
            (unread, _) => unread.is_some(),
        };
        let (id, message) = if unread_is_next { self.unread.next() } else { self.read.next() }?;
        Some((*id, message, unread_is_next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Stored {
        Stored::new(Identity { id: 1, name: "a".into() }, text.to_owned(), 0)
    }

    fn mailbox(ids: std::ops::RangeInclusive<u64>) -> Mailbox {
        let mut mailbox = Mailbox::default();
        ids.for_each(|id| mailbox.deliver(id, message(&id.to_string())));
        mailbox
    }

    fn listed(mailbox: &Mailbox, after: u64) -> Vec<(u64, bool)> {
        mailbox.after(after).map(|(id, _, unread)| (id, unread)).collect()
    }

    #[test]
    fn read_and_unread_messages_are_listed_in_one_order() {
        let mut mailbox = mailbox(1..=5);
        assert!(mailbox.mark_read(2));
        assert!(mailbox.mark_read(5));
        assert!(!mailbox.mark_read(5));
        assert_eq!(listed(&mailbox, 0), [(1, true), (2, false), (3, true), (4, true), (5, false)]);
        assert_eq!(listed(&mailbox, 3), [(4, true), (5, false)]);
        assert_eq!(listed(&mailbox, u64::MAX), []);
    }

    #[test]
    fn the_newest_messages_are_listed_from_the_end() {
        let mut mailbox = mailbox(1..=5);
        mailbox.mark_read(2);
        mailbox.mark_read(5);
        let listed = |id, unread_only| mailbox.newest_after(id, unread_only).map(|(id, ..)| id).collect::<Vec<_>>();
        assert_eq!(listed(0, false), [5, 4, 3, 2, 1]);
        assert_eq!(listed(3, false), [5, 4]);
        assert_eq!(listed(0, true), [4, 3, 1]);
        assert_eq!(listed(u64::MAX, false), []);
    }

    #[test]
    fn the_oldest_unread_messages_become_read() {
        let mut mailbox = mailbox(1..=4);
        mailbox.mark_read(2);
        mailbox.mark_oldest_read(2);
        assert_eq!(listed(&mailbox, 0), [(1, false), (2, false), (3, false), (4, true)]);
        mailbox.mark_oldest_read(9);
        assert_eq!(mailbox.unread_len(), 0);
    }

    #[test]
    fn a_deleted_message_is_gone_read_or_not() {
        let mut mailbox = mailbox(1..=3);
        mailbox.mark_read(1);
        assert_eq!(mailbox.delete(1), Some(message("1")));
        assert_eq!(mailbox.delete(2), Some(message("2")));
        assert_eq!(mailbox.delete(2), None);
        assert_eq!(listed(&mailbox, 0), [(3, true)]);
        assert_eq!(mailbox.stored_bytes(), stored_bytes("3"));
    }
}
