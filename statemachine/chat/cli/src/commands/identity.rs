//! Accounts and logins.

use std::time::Duration;

use anyhow::{Result, bail};
use prost::Message as _;
use replicator_client::{Client, Cursor, Executed, Session};
use replicator_proto::chat::v1::{self as chat, ChatRequest, chat_query, chat_request};
use serde_json::json;

use crate::{
    account::{self, Account, Reply, unexpected},
    args::Global,
    failure::{explain, usage},
    keys::AccountKey,
    output::{note, print, visible},
    password,
    state::{Lock, Login, Store},
};

/// How long the session of a `register` that is killed stays behind.
const REGISTER_TTL: Duration = Duration::from_secs(60);

fn named(global: &Global, name: Option<String>, command: &str) -> Result<String> {
    name.or_else(|| global.user.clone())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| usage(format!("whose account? Run `chat {command} NAME`")))
}

/// The first requests of a new session.
async fn execute(
    global: &Global,
    session: &Session,
    action: chat_request::Action,
    account: &str,
) -> Result<(Reply, Executed)> {
    let request = ChatRequest { action: Some(action) }.encode_to_vec();
    let executed = account::ask_execute(global, session, request, global.deadline).await;
    let executed = executed.map_err(|error| explain(error, account))?;
    Ok((account::answer(&executed.response, account)?, executed))
}

pub(super) async fn register(global: &Global, name: Option<String>) -> Result<()> {
    let name = named(global, name, "register")?;
    let client = account::client_of_last(global, &Store::open(global.state_dir.as_deref())?)?;
    let password = password::new(&name, global.password_file.as_deref())?;
    let public_key = AccountKey::derive(&name, &password)?.public_key().to_vec();
    let session = client.open_session(Some(REGISTER_TTL)).await.map_err(|error| explain(error, &name))?;
    let action = chat_request::Action::Register(chat::Register { account: name.clone(), public_key });
    let registered = execute(global, &session, action, &name).await;
    let _ = session.close().await; // else it expires
    match registered?.0 {
        Reply::Registered(_) => print(global, json!({ "account": name }), || {
            let name = visible(&name);
            format!("registered {name}; next: chat login {name}")
        }),
        _ => Err(unexpected()),
    }
}

pub(super) async fn login(global: &Global, name: Option<String>, ttl: Duration) -> Result<()> {
    let name = named(global, name, "login")?;
    let store = Store::open(global.state_dir.as_deref())?;
    let client = account::client_of_last(global, &store)?;
    let password = password::existing(&name, global.password_file.as_deref())?;
    let key = AccountKey::derive(&name, &password)?;
    let lock = store.lock(&name).await?;
    let (account, unread) = log_in(global, &client, &store, lock, &key, ttl).await?;
    let granted = account.session.ttl();
    if granted < ttl {
        note(
            global.output,
            &format!("the servers grant at most {granted:?} without a request; log in again after that"),
        );
    }
    let ttl_ms = u64::try_from(granted.as_millis()).unwrap_or(u64::MAX);
    drop(account); // the lock is held until everything is saved
    let json = json!({ "account": name, "unread": unread, "ttl_ms": ttl_ms });
    print(global, json, || format!("logged in as {}; {unread} unread", visible(&name)))
}

/// Logs in with a new session, saves the login in the place of an earlier one, and tells how many messages are unread.
pub(crate) async fn log_in(
    global: &Global,
    client: &Client,
    store: &Store,
    lock: Lock,
    key: &AccountKey,
    ttl: Duration,
) -> Result<(Account, u64)> {
    let name = key.account();
    let session = client.open_session(Some(ttl)).await.map_err(|error| explain(error, name))?;
    let signature = key.sign_login(session.id()).to_vec();
    let action = chat_request::Action::Login(chat::Login { account: name.to_owned(), signature });
    let (reply, executed) = match execute(global, &session, action, name).await {
        Ok(done) => done,
        Err(error) => {
            let _ = session.close().await; // else it expires
            return Err(error);
        }
    };
    let Reply::LoggedIn(logged_in) = reply else { return Err(unexpected()) };

    // What is pushed from now on is new to `listen`.
    let cursor = Cursor { lineage: session.lineage(), log_index: executed.log_index, ordinal: 0 };
    let mut login = Login::new(name, client.endpoints(), &session.saved());
    login.set_cursor(Some(cursor));
    // A damaged file of an earlier login is of no use, and this one replaces it.
    let earlier = store.load(name).ok().flatten();
    store.save(&login, true)?;
    store.set_current(name)?;
    if let Some(Ok(earlier)) = earlier.map(|earlier| earlier.session()) {
        // Nobody can use it any more. If this fails, it expires.
        let _ = Session::resume(&client.with_deadline(Duration::from_secs(1)), earlier).close().await;
    }
    Ok((Account::logged_in(global, store.clone(), lock, login, session), logged_in.unread))
}

pub(super) async fn logout(global: &Global) -> Result<()> {
    let store = Store::open(global.state_dir.as_deref())?;
    let name = account::account(global, &store)?;
    let mut account = match Account::open(global).await {
        Ok(account) => account,
        Err(error) => {
            // A damaged login is forgotten too: the user asked for that.
            let lock = store.lock(&name).await?;
            if store.load(&name).is_err() {
                store.forget(&name)?;
            }
            drop(lock);
            return Err(error);
        }
    };
    let left = account.execute(chat_request::Action::Logout(chat::Logout {})).await;
    let ended = match left {
        Ok((Reply::LoggedOut(_), _)) => true,
        Ok(_) => return Err(unexpected()),
        // The session is gone, or was logged out by the account's deletion: that is what was asked for.
        Err(error) => {
            let gone = is_gone(&account).await;
            if !gone {
                return Err(error);
            }
            false
        }
    };
    if ended {
        let _ = account.session.close().await; // else it expires
    }
    account.store.forget(&account.name)?;
    let name = &account.name;
    print(global, json!({ "account": name }), || format!("logged out {}", visible(name)))
}

/// Whether the session no longer exists, or is no longer logged in.
async fn is_gone(account: &Account) -> bool {
    use replicator_client::Error;
    match account.session.keep_alive().await {
        Err(Error::SessionExpired { .. } | Error::LineageMismatch { .. }) => true,
        Err(_) => false,
        Ok(_) => account
            .query(chat_query::Action::WhoAmI(chat::WhoAmI {}))
            .await
            .is_err_and(|error| error.is::<crate::failure::Refused>()),
    }
}

pub(super) async fn whoami(global: &Global) -> Result<()> {
    let account = Account::open(global).await?;
    match account.query(chat_query::Action::WhoAmI(chat::WhoAmI {})).await? {
        Reply::LoggedIn(logged_in) => {
            let json = json!({ "account": logged_in.account, "unread": logged_in.unread });
            print(global, json, || format!("{}; {} unread", visible(&logged_in.account), logged_in.unread))
        }
        _ => Err(unexpected()),
    }
}

pub(super) async fn delete_account(global: &Global, yes: bool) -> Result<()> {
    let mut account = Account::open(global).await?;
    if !yes {
        let name = visible(&account.name);
        return Err(usage(format!(
            "this deletes {name} and all its messages; to go ahead, run `chat delete-account --yes`"
        )));
    }
    let (reply, _) = account.execute(chat_request::Action::DeleteAccount(chat::DeleteAccount {})).await?;
    let Reply::AccountDeleted(deleted) = reply else { bail!(unexpected()) };
    let _ = account.session.close().await; // else it expires
    account.store.forget(&account.name)?;
    let json = json!({ "account": account.name, "messages": deleted.messages, "unread": deleted.unread });
    print(global, json, || {
        let (name, messages, unread) = (visible(&account.name), deleted.messages, deleted.unread);
        format!("deleted {name} with {messages} messages, {unread} of them unread")
    })
}
