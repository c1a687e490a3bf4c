//! All logical state as records, schema 1. The configuration is not in there: the module that restores has its own.
//!
//! Little-endian, the first byte says what it is:
//!
//! | record | layout | order |
//! |---|---|---|
//! | counters | `0; u64 next account id; u64 next message id` | the first |
//! | account | `1; u64 id; [u8; 32] public key; name` | by name |
//! | login | `2; [u8; 16] session; u64 account id` | by session |
//! | message | `3; u64 owner's id; u64 id; u8 unread; i64 time_us; u64 sender's id; u8 n; n bytes sender's name; text` | by owner's name, id |

use std::iter;

use statemachine::SessionId;

use crate::{
    Chat,
    accounts::{AccountId, Identity, check_name},
    credentials::PublicKey,
    mailbox::Stored,
};

const COUNTERS: u8 = 0;
const ACCOUNT: u8 = 1;
const LOGIN: u8 = 2;
const MESSAGE: u8 = 3;

impl Chat {
    /// The state, record by record.
    pub(crate) fn records(&self) -> impl Iterator<Item = Vec<u8>> {
        let counters = [&[COUNTERS][..], &self.accounts.next_id.to_le_bytes(), &self.next_message_id.to_le_bytes()];
        let accounts = self.accounts.by_name.iter().map(|(name, account)| {
            [&[ACCOUNT][..], &account.id.to_le_bytes(), &account.key.0, name.as_bytes()].concat()
        });
        let logins = self
            .logins
            .by_session
            .iter()
            .map(|(session, identity)| [&[LOGIN][..], &session.0, &identity.id.to_le_bytes()].concat());
        let messages = self.accounts.by_name.values().flat_map(|account| {
            account.mailbox.after(0).map(|(id, message, unread)| message_record(account.id, id, message, unread))
        });
        iter::once(counters.concat()).chain(accounts).chain(logins).chain(messages)
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn restore_record(&mut self, record: &[u8]) -> Result<(), String> {
        let Some((kind, fields)) = record.split_first() else { return Err("a record is empty".to_owned()) };
        let fields = Fields(fields);
        match *kind {
            COUNTERS => self.restore_counters(fields),
            ACCOUNT => self.restore_account(fields),
            LOGIN => self.restore_login(fields),
            MESSAGE => self.restore_message(fields),
            kind => Err(format!("there is no record of kind {kind}")),
        }
    }

    fn restore_counters(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        self.accounts.next_id = fields.number()?;
        self.next_message_id = fields.number()?;
        fields.end()
    }

    fn restore_account(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        let (id, key, name) = (fields.number()?, PublicKey(fields.array()?), fields.rest()?);
        check_name(name).map_err(|refusal| format!("account {id}: {refusal}"))?;
        if id >= self.accounts.next_id || !self.accounts.insert(id, name, key) {
            return Err(format!("account {id} ({name:?}) doesn't fit among the others"));
        }
        Ok(())
    }

    fn restore_login(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        let (session, id) = (SessionId(fields.array()?), fields.number()?);
        fields.end()?;
        let identity = self.accounts.identity(id).ok_or_else(|| format!("a session is logged in as account {id}"))?;
        if self.logins.get(session).is_ok() || !self.log_in(session, identity) {
            return Err(format!("a session is logged in twice, as account {id} too"));
        }
        Ok(())
    }

    fn restore_message(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        let (owner, id, unread) = (fields.number()?, fields.number()?, fields.flag()?);
        let (time_us, from_id) = (i64::from_le_bytes(fields.array()?), fields.number()?);
        let [from_len] = fields.array()?;
        let from_name = fields.text(from_len.into())?;
        let text = fields.rest()?.to_owned();

        let owner = self.accounts.identity(owner).ok_or_else(|| format!("message {id} belongs to account {owner}"))?;
        let from = self.accounts.identity(from_id).unwrap_or_else(|| Identity { id: from_id, name: from_name.into() });
        if *from.name != *from_name {
            return Err(format!("message {id} is from {from_name:?}, and account {from_id} is {:?}", from.name));
        }
        let message = Stored { from, text, time_us };
        let account = self.accounts.get_mut(&owner.name).expect("an identity names an account");
        self.stored_bytes += message.stored_bytes();
        if id == 0 || id >= self.next_message_id || !account.mailbox.insert(id, message, unread) {
            return Err(format!("message {id} of account {} doesn't fit among the others", owner.id));
        }
        Ok(())
    }
}

fn message_record(owner: AccountId, id: u64, message: &Stored, unread: bool) -> Vec<u8> {
    let from = &message.from;
    let from_len = u8::try_from(from.name.len()).expect("a name has at most 64 bytes");
    [
        &[MESSAGE][..],
        &owner.to_le_bytes(),
        &id.to_le_bytes(),
        &[unread.into()],
        &message.time_us.to_le_bytes(),
        &from.id.to_le_bytes(),
        &[from_len],
        from.name.as_bytes(),
        message.text.as_bytes(),
    ]
    .concat()
}

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or("a record breaks off")?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, String> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(format!("a flag is {byte}")),
        }
    }

    fn text(&mut self, len: usize) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes(len)?).map_err(|error| format!("a text isn't UTF-8: {error}"))
    }

    fn rest(&mut self) -> Result<&'a str, String> {
        self.text(self.0.len())
    }

    fn end(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err("a record is too long".to_owned()) }
    }
}
