//! Which session is logged in as whom.

use std::collections::BTreeMap;

use statemachine::SessionId;

use crate::{
    Chat,
    accounts::{Account, Identity},
    refusal::Refusal,
};

/// The sessions that are logged in.
///
/// Invariant: every account here exists, and its `sessions` hold just the sessions that are here with it.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    pub(crate) by_session: BTreeMap<SessionId, Identity>,
}

impl Logins {
    /// Who the session is logged in as.
    pub(crate) fn get(&self, session: SessionId) -> Result<&Identity, Refusal> {
        self.by_session.get(&session).ok_or_else(Refusal::not_logged_in)
    }
}

impl Chat {
    /// Binds a session to an account that exists. Returns whether it was unbound before.
    pub(crate) fn log_in(&mut self, session: SessionId, identity: Identity) -> bool {
        let account = self.accounts.get_mut(&identity.name).expect("who logs in exists");
        assert!(account.id == identity.id, "account {} is the one of its name", identity.id);
        let Err(place) = account.sessions.binary_search(&session) else { return false };
        account.sessions.insert(place, session);
        self.logins.by_session.insert(session, identity);
        true
    }

    /// Unbinds a session. Returns whether it was bound.
    pub(crate) fn log_out(&mut self, session: SessionId) -> bool {
        let Some(identity) = self.logins.by_session.remove(&session) else { return false };
        let account = self.accounts.get_mut(&identity.name).expect("who is logged in exists");
        let place = account.sessions.binary_search(&session).expect("an account knows its sessions");
        account.sessions.remove(place);
        true
    }

    /// Takes an account away, and logs out its sessions.
    pub(crate) fn remove_account(&mut self, name: &str) -> Option<Account> {
        let account = self.accounts.remove(name)?;
        for session in &account.sessions {
            self.logins.by_session.remove(session);
        }
        self.stored_bytes -= account.mailbox.stored_bytes();
        Some(account)
    }
}
