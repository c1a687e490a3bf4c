//! What is done to messages that are there: reacting, and editing.

use anyhow::Result;
use replicator_proto::chat::v1::{self as chat, chat_request};
use serde_json::json;

use crate::{
    account::{Account, Reply, unexpected},
    args::Global,
    failure::usage,
    output::{self, print, visible},
};

/// `reaction`: empty takes it back.
pub(super) async fn react(global: &Global, message_id: u64, reaction: String) -> Result<()> {
    let mut account = Account::open(global).await?;
    let action = chat_request::Action::React(chat::React { message_id, reaction: reaction.clone() });
    let (Reply::Reacted(done), executed) = account.execute(action).await? else { return Err(unexpected()) };
    let json = json!({
        "message_id": message_id,
        "reaction": output::some(&reaction),
        "pushed_to": done.pushed_to,
        "log_index": executed.log_index.0,
        "node": executed.node_id,
    });
    print(global, json, || output::reacted(message_id, &reaction))
}

pub(super) async fn edit(global: &Global, to: String, message_id: u64, text: String) -> Result<()> {
    if text.is_empty() {
        return Err(usage("what shall it say? `chat delete-messages` deletes messages, of the own mailbox"));
    }
    let mut account = Account::open(global).await?;
    let action = chat_request::Action::Edit(chat::Edit { to: to.clone(), message_id, text });
    let (Reply::Edited(done), executed) = account.execute(action).await? else { return Err(unexpected()) };
    let json = json!({
        "message_id": message_id,
        "to": to,
        "pushed_to": done.pushed_to,
        "log_index": executed.log_index.0,
        "node": executed.node_id,
    });
    print(global, json, || format!("edited {message_id} to {}", visible(&to)))
}
