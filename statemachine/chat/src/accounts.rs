//! Accounts: who there is, by name and by id.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
    rc::Rc,
};

use statemachine::SessionId;

use crate::{credentials::PublicKey, mailbox::Mailbox, refusal::Refusal, wildcard::Pattern};

const NAME_BYTES_MAX: usize = 64;
/// Steps of matching that one listing may take: about a millisecond, for queries hold up the log.
const LISTING_STEPS_MAX: usize = 200_000;

/// Names an account for ever: a new account of an old name has another one.
pub(crate) type AccountId = u64;

/// Which account, as messages and logins say it. The name is shared, so saying it costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: AccountId,
    pub(crate) name: Rc<str>,
}

/// One account.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) key: PublicKey,
    /// The sessions logged in as this account, ascending. Invariant: the same as in `Logins`.
    pub(crate) sessions: Vec<SessionId>,
    pub(crate) mailbox: Mailbox,
}

/// All accounts.
///
/// Invariant: `by_name` and `names` hold the same accounts, all ids are below `next_id`.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) by_name: BTreeMap<Rc<str>, Account>,
    names: BTreeMap<AccountId, Rc<str>>,
    pub(crate) next_id: AccountId,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), names: BTreeMap::new(), next_id: 1 }
    }
}

impl Accounts {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Account> {
        self.by_name.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Account> {
        self.by_name.get_mut(name)
    }

    /// Adds an account under the next id. The name must be free.
    pub(crate) fn add(&mut self, name: &str, key: PublicKey) {
        let id = self.next_id;
        self.next_id += 1;
        let added = self.insert(id, name, key);
        assert!(added, "account {id} is new");
    }

    /// Puts an account in its place, unless its name or its id is taken.
    pub(crate) fn insert(&mut self, id: AccountId, name: &str, key: PublicKey) -> bool {
        if self.by_name.contains_key(name) || self.names.contains_key(&id) {
            return false;
        }
        let name: Rc<str> = name.into();
        self.names.insert(id, name.clone());
        self.by_name.insert(name, Account { id, key, sessions: Vec::new(), mailbox: Mailbox::default() });
        true
    }

    /// Takes an account away.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Account> {
        let account = self.by_name.remove(name)?;
        self.names.remove(&account.id);
        Some(account)
    }

    /// An account that still exists, by its id.
    pub(crate) fn identity(&self, id: AccountId) -> Option<Identity> {
        self.names.get(&id).map(|name| Identity { id, name: name.clone() })
    }

    /// Whether the account of this id has been deleted.
    pub(crate) fn is_deleted(&self, id: AccountId) -> bool {
        !self.names.contains_key(&id)
    }

    /// The accounts after `after` that match: at most `limit` of them, and where to go on, unless that was all.
    ///
    /// A page ends early after a bounded number of steps, so it may be short or empty and not the last one.
    pub(crate) fn list(&self, pattern: &Pattern<'_>, after: &str, limit: usize) -> (Vec<String>, String) {
        let prefix = pattern.prefix();
        let start = if after >= prefix { Excluded(after) } else { Included(prefix) };
        // No name is empty, so an empty `after` excludes none.
        let mut names = self.by_name.range::<str, _>((start, Unbounded)).map(|(name, _)| name);
        let (mut found, mut steps, mut examined) = (Vec::new(), 0, after);
        for name in names.by_ref().take_while(|name| name.starts_with(prefix)) {
            // One look ahead: a page that is full with the last name has no next one.
            if found.len() == limit || steps >= LISTING_STEPS_MAX {
                return (found, examined.to_owned());
            }
            if pattern.matches(name, &mut steps) {
                found.push(name.to_string());
            }
            examined = name;
        }
        (found, String::new())
    }
}

/// Checks the name of a new account.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Refusal::invalid("an account's name has 1 to 64 bytes"));
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '?') {
        return Err(Refusal::invalid("an account's name has no white space, control characters, * and ?"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(names: impl IntoIterator<Item = String>) -> Accounts {
        let mut accounts = Accounts::default();
        names.into_iter().for_each(|name| accounts.add(&name, PublicKey([0; 32])));
        accounts
    }

    #[test]
    fn names_that_break_a_rule_are_refused() {
        for name in ["a", "Ünal", "a.b-c_d@e", &"x".repeat(64), "名前"] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        for name in ["", "a b", "a\u{a0}b", "a\n", "\u{7f}", "a*", "?", &"x".repeat(65), "\0"] {
            assert!(check_name(name).is_err(), "{name:?} was taken");
        }
    }

    #[test]
    fn a_name_used_again_is_another_account() {
        let mut accounts = accounts(["a".to_owned()]);
        let first = accounts.get("a").unwrap().id;
        accounts.remove("a");
        assert!(accounts.is_deleted(first));
        accounts.add("a", PublicKey([0; 32]));
        assert_ne!(accounts.get("a").unwrap().id, first);
        assert!(accounts.is_deleted(first));
    }

    #[test]
    fn a_listing_that_costs_too_much_goes_on_in_the_next_page() {
        let accounts = accounts((0..50_000).map(|i| format!("{i:05}aaaaaaaaaaaaaaaaaaaaaa")));
        let pattern = Pattern::new("*a*a*a*b").unwrap();
        let (mut after, mut pages) = (String::new(), 0);
        loop {
            let (found, next) = accounts.list(&pattern, &after, 10);
            assert!(found.is_empty());
            pages += 1;
            assert!(next.is_empty() || next > after);
            after = next;
            if after.is_empty() {
                break;
            }
        }
        assert!((2..100).contains(&pages), "{pages} pages");
    }

    #[test]
    fn a_prefix_is_looked_up_and_not_searched() {
        let accounts = accounts((0..LISTING_STEPS_MAX).map(|i| format!("{i:06}")));
        let (found, next) = accounts.list(&Pattern::new("1999*").unwrap(), "", 1_000);
        assert_eq!((found.len(), next.as_str()), (100, ""));
    }
}
