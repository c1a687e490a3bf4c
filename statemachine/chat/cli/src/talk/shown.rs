//! Which messages were shown, so that none is shown twice.

use std::collections::BTreeSet;

/// The messages shown. Pushes come in the order of their ids; `/read` and the start of a talk show messages before they
/// are pushed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Everything up to this one was pushed and shown, or came before the talk.
    pushed: u64,
    /// Shown otherwise, and greater.
    ahead: BTreeSet<u64>,
}

impl Shown {
    /// Notes that a message is shown that was asked for.
    pub(super) fn asked_for(&mut self, id: u64) {
        if id > self.pushed {
            self.ahead.insert(id);
        }
    }

    /// Whether a pushed message is new, so that it is to be shown.
    pub(super) fn is_new(&mut self, id: u64) -> bool {
        if id <= self.pushed {
            return false;
        }
        self.pushed = id;
        let was_shown = self.ahead.contains(&id);
        self.ahead.retain(|&ahead| ahead > id);
        !was_shown
    }

    /// The greatest message up to which every push was shown.
    pub(super) fn last(&self) -> u64 {
        self.pushed
    }

    /// Everything up to this one came before the talk.
    pub(super) fn begin(&mut self, id: u64) {
        self.pushed = self.pushed.max(id);
        self.ahead = self.ahead.split_off(&self.pushed.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_new_once() {
        let mut shown = Shown::default();
        shown.begin(3);
        assert!(!shown.is_new(3), "it came before");
        assert!(shown.is_new(4));
        assert!(!shown.is_new(4), "pushed twice");
        shown.asked_for(7);
        assert!(shown.is_new(6), "another one was shown ahead of it");
        assert!(!shown.is_new(7), "it was asked for");
        assert!(shown.is_new(8));
        assert_eq!((shown.last(), shown.ahead.len()), (8, 0));
    }
}
