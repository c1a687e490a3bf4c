//! All logical state as records. The configuration is not in there: the module that restores has its own.
//!
//! Little-endian, the first byte says what it is:
//!
//! | record | layout | order |
//! |---|---|---|
//! | counters | `0; u64 next account id; u64 next message id` | the first |
//! | account | `1; u64 id; [u8; 32] public key; name` | by name |
//! | login | `2; [u8; 16] session; u64 account id` | by session |
//! | message | `3; u64 owner's id; u64 id; u8 unread; i64 time_us; u64 sender's id; u8 n; n bytes sender's name; text` | by owner's name, id |
//! | reaction | `16; u64 owner's id; u64 message id; reaction` | by owner's name, id |
//! | edit | `17; u64 owner's id; u64 message id; i64 edited_us` | by owner's name, id |
//!
//! Schema 1 has the first four kinds. Schema 2 has **additions** too, kinds from 16 on: what a reader can do without. Version 1 reads
//! schema 2 and skips them, which is how version 2 can be rolled back. Whatever changes the first four kinds is schema 3.

use std::iter;

use statemachine::SessionId;

use crate::{
    Chat,
    accounts::{AccountId, Identity, check_name},
    changes::check_reaction,
    credentials::PublicKey,
    mailbox::Stored,
    release::{IS_V1, SCHEMA},
};

const COUNTERS: u8 = 0;
const ACCOUNT: u8 = 1;
const LOGIN: u8 = 2;
const MESSAGE: u8 = 3;
/// The first kind of record that a reader of schema 2 may skip.
const ADDITIONS: u8 = 16;
const REACTION: u8 = 16;
const EDIT: u8 = 17;

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
        // Version 1 holds none, so it writes none.
        let reactions =
            self.additions(REACTION, |message| message.reaction.as_ref().map(|text| text.as_bytes().to_vec()));
        let edits =
            self.additions(EDIT, |message| (message.edited_us != 0).then(|| message.edited_us.to_le_bytes().to_vec()));
        iter::once(counters.concat()).chain(accounts).chain(logins).chain(messages).chain(reactions).chain(edits)
    }

    /// A record for each message that has something to say of this kind.
    fn additions(&self, kind: u8, what: impl Fn(&Stored) -> Option<Vec<u8>> + Copy) -> impl Iterator<Item = Vec<u8>> {
        self.accounts.by_name.values().flat_map(move |account| {
            account.mailbox.after(0).filter_map(move |(id, message, _)| {
                let what = what(message)?;
                Some([&[kind][..], &account.id.to_le_bytes(), &id.to_le_bytes(), &what].concat())
            })
        })
    }

    /// Takes the next record of a snapshot of this schema.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn restore_record(&mut self, schema: u32, record: &[u8]) -> Result<(), String> {
        let Some((kind, fields)) = record.split_first() else { return Err("a record is empty".to_owned()) };
        let fields = Fields(fields);
        match *kind {
            COUNTERS => self.restore_counters(fields),
            ACCOUNT => self.restore_account(fields),
            LOGIN => self.restore_login(fields),
            MESSAGE => self.restore_message(fields),
            // A later version than this one wrote it.
            ADDITIONS.. if schema > SCHEMA => Ok(()),
            REACTION if schema >= 2 && !IS_V1 => self.restore_reaction(fields),
            EDIT if schema >= 2 && !IS_V1 => self.restore_edit(fields),
            kind => Err(format!("schema {schema} has no record of kind {kind}")),
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
        let message = Stored::new(from, text, time_us);
        let account = self.accounts.get_mut(&owner.name).expect("an identity names an account");
        self.stored_bytes += message.stored_bytes();
        if id == 0 || id >= self.next_message_id || !account.mailbox.insert(id, message, unread) {
            return Err(format!("message {id} of account {} doesn't fit among the others", owner.id));
        }
        Ok(())
    }

    fn restore_reaction(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        let message = self.message_of(&mut fields)?;
        let reaction = fields.rest()?;
        check_reaction(reaction).map_err(|refusal| refusal.to_string())?;
        if reaction.is_empty() || message.reaction.is_some() {
            return Err(format!("{reaction:?} is no reaction, or not the only one of its message"));
        }
        message.reaction = Some(reaction.into());
        Ok(())
    }

    fn restore_edit(&mut self, mut fields: Fields<'_>) -> Result<(), String> {
        let message = self.message_of(&mut fields)?;
        let edited_us = i64::from_le_bytes(fields.array()?);
        if edited_us == 0 || message.edited_us != 0 {
            return Err(format!("{edited_us} is no time, or not the only one at which its message was edited"));
        }
        message.edited_us = edited_us;
        fields.end()
    }

    /// The message that an addition is about.
    fn message_of(&mut self, fields: &mut Fields<'_>) -> Result<&mut Stored, String> {
        let (owner, id) = (fields.number()?, fields.number()?);
        let owner = self.accounts.identity(owner).ok_or_else(|| format!("an addition belongs to account {owner}"))?;
        let account = self.accounts.get_mut(&owner.name).expect("an identity names an account");
        account.mailbox.get_mut(id).ok_or_else(|| format!("an addition belongs to message {id} of {:?}", owner.name))
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
