//! The beginning of a talk: a login that works.

use std::{
    io::{self, BufRead as _, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use replicator_proto::chat::v1::{self as chat, chat_query};

use super::terminal;
use crate::{
    account::{self, Account, Reply, unexpected},
    args::{Format, Global},
    commands::identity::log_in,
    failure::{needs_login, usage},
    keys::AccountKey,
    output::visible,
    password,
    state::Store,
};

/// How long a login made here outlives its last use: as that of `chat login`.
const TTL: Duration = Duration::from_secs(3_600);

/// A login in use, and how it was found.
pub(super) struct Entered {
    pub(super) account: Account,
    pub(super) unread: u64,
    /// With it the account can log in again by itself.
    pub(super) key: Option<Arc<AccountKey>>,
}

/// Takes the saved login, or logs in: with a password that was given, or by asking a person for it.
pub(super) async fn enter(global: &Global) -> Result<Entered> {
    let store = Store::open(global.state_dir.as_deref())?;
    let person = global.output == Format::Table && terminal::is_there();
    let name = match account::account(global, &store) {
        Ok(name) => name,
        Err(_) if person => ask_name()?,
        Err(error) => return Err(error),
    };
    let global = &Global { user: Some(name.clone()), ..global.clone() };
    let key = match password::given(global.password_file.as_deref())? {
        Some(password) => Some(Arc::new(AccountKey::derive(&name, &password)?)),
        None => None,
    };
    let missing = match resume(global).await {
        Ok((account, unread)) => return Ok(Entered { account, unread, key }),
        Err(error) if needs_login(&error) => error,
        Err(error) => return Err(error),
    };
    let key = match key {
        Some(key) => key,
        None if person => Arc::new(ask_key(&name)?),
        None => return Err(missing),
    };
    let client = account::client_of_last(global, &store)?;
    let lock = store.lock(&name).await?;
    let (account, unread) = log_in(global, &client, &store, lock, &key, TTL).await?;
    Ok(Entered { account, unread, key: Some(key) })
}

async fn resume(global: &Global) -> Result<(Account, u64)> {
    let account = Account::open(global).await?;
    match account.query(chat_query::Action::WhoAmI(chat::WhoAmI {})).await? {
        Reply::LoggedIn(me) => Ok((account, me.unread)),
        _ => Err(unexpected()),
    }
}

/// Asks a person for the password of an account.
pub(super) fn ask_key(name: &str) -> Result<AccountKey> {
    AccountKey::derive(name, &password::existing(name, None)?)
}

fn ask_name() -> Result<String> {
    let mut out = io::stdout().lock();
    write!(out, "Nobody is logged in here. New? Run `chat register NAME` first.\nName: ")?;
    out.flush()?;
    let mut name = String::new();
    io::stdin().lock().read_line(&mut name).context("cannot read a name")?;
    match name.trim() {
        "" => Err(usage("no name was given; run `chat login NAME`")),
        name => Ok(visible(name)),
    }
}
