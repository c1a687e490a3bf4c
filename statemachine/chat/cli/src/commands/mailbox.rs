//! Reading: other accounts, and the own mailbox.

use anyhow::Result;
use replicator_proto::chat::v1::{self as chat, chat_query, chat_request};
use serde_json::{Value, json};

use crate::{
    account::{self, Account, Reply, unexpected},
    args::Global,
    output::{self, print},
    state::Store,
};

/// Entries of one page, and ids of one request: the most that the module allows.
const PAGE: usize = 1_000;

pub(super) async fn list(global: &Global, pattern: Option<String>) -> Result<()> {
    let client = account::client_of_last(global, &Store::open(global.state_dir.as_deref())?)?;
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let pattern = pattern.clone().unwrap_or_default();
        let action = chat::ListAccounts { pattern, page_size: PAGE as u32, page_token };
        match account::query(global, &client, None, chat_query::Action::ListAccounts(action), "NAME").await? {
            Reply::Accounts(page) => {
                names.extend(page.accounts);
                page_token = page.next_page_token;
            }
            _ => return Err(unexpected()),
        }
        if page_token.is_empty() {
            break;
        }
    }
    print(global, json!({ "accounts": names }), || output::accounts(&names))
}

pub(super) async fn read(global: &Global, count: u32) -> Result<()> {
    let mut account = Account::open(global).await?;
    let action = chat_request::Action::ReadNext(chat::ReadNext { limit: count });
    let (Reply::Messages(read), _) = account.execute_unsaved(action).await? else { return Err(unexpected()) };
    // Shown first and saved then: the messages are marked read already, and must not be lost if this process is.
    show(global, &read.messages, read.unread)?;
    if let Some(last) = read.messages.last() {
        account.login.shown_id = account.login.shown_id.max(last.id);
    }
    account.save(false)
}

pub(super) async fn messages(global: &Global, unread: bool, after: u64, last: Option<u32>) -> Result<()> {
    let account = Account::open(global).await?;
    if let Some(page_size) = last {
        let action = chat::ListMessages { unread_only: unread, page_size, after_id: after, last: true };
        let Reply::Messages(page) = account.query(chat_query::Action::ListMessages(action)).await? else {
            return Err(unexpected());
        };
        let shown = page.messages.iter().filter(|message| message.unread).count() as u64;
        return show(global, &page.messages, page.unread.saturating_sub(shown));
    }
    let (mut all, mut after_id) = (Vec::new(), after);
    let left = loop {
        let action = chat::ListMessages { unread_only: unread, page_size: PAGE as u32, after_id, last: false };
        let Reply::Messages(page) = account.query(chat_query::Action::ListMessages(action)).await? else {
            return Err(unexpected());
        };
        let last = page.messages.last().map(|message| message.id);
        all.extend(page.messages);
        match last {
            Some(last) if page.more => after_id = last,
            _ => break page.unread,
        }
    };
    let shown = all.iter().filter(|message| message.unread).count() as u64;
    show(global, &all, left.saturating_sub(shown))
}

fn show(global: &Global, messages: &[chat::Message], unread: u64) -> Result<()> {
    let list: Vec<Value> = messages.iter().map(output::message_json).collect();
    print(global, json!({ "messages": list, "unread": unread }), || output::messages(messages, unread))
}

pub(super) async fn delete_messages(global: &Global, ids: Vec<u64>) -> Result<()> {
    let mut account = Account::open(global).await?;
    let mut deleted = 0;
    for message_ids in ids.chunks(PAGE).map(<[u64]>::to_vec) {
        let action = chat_request::Action::DeleteMessages(chat::DeleteMessages { message_ids });
        let (Reply::Deleted(done), _) = account.execute(action).await? else { return Err(unexpected()) };
        deleted += u64::from(done.count);
    }
    print(global, json!({ "deleted": deleted }), || format!("deleted {deleted} of {}", ids.len()))
}
