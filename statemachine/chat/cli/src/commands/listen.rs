//! Listening: messages as they are pushed, each shown once.
//!
//! A message is printed, then marked read, then the place in the events is saved; if this process is killed in between,
//! the next `listen` shows it again. The login is locked only while a message is marked, so other commands of the same
//! account go on beside this one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use replicator_client::{Error, Push, Subscription};
use replicator_proto::chat::v1::{self as chat, ChatPush, chat_push::Event, chat_request};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    account::{Account, Reply, unexpected},
    args::Global,
    failure::{Refused, explain, usage},
    output::{edited, line, message_json, note, print, reaction, reaction_json, visible},
};

/// The most messages that are shown before they are marked.
const BATCH: usize = 100;
/// How long is waited at a time without --timeout.
const FAR: Duration = Duration::from_secs(86_400);

pub(super) async fn listen(global: &Global, count: Option<u64>, limit: Option<Duration>) -> Result<()> {
    if global.vote {
        return Err(usage("messages that come are the same wherever they come from; leave out --vote"));
    }
    let mut account = Account::open(global).await?;
    account.unlock();
    let _alive = account.session.keep_alive_in_background();
    let stop = limit.map(|limit| Instant::now() + limit);
    let mut listener = Listener { global, left: count, shown: 0, met: None, stop, account };
    listener.run().await?;
    match count {
        Some(count) if listener.shown < count => bail!("{} of {count} messages came in time", listener.shown),
        _ => Ok(()),
    }
}

/// What isn't a message that came says what it is.
fn named(kind: &str, mut json: Value) -> Value {
    json["event"] = kind.into();
    json
}

struct Listener<'a> {
    global: &'a Global,
    account: Account,
    /// How many messages are still wanted.
    left: Option<u64>,
    shown: u64,
    /// What ended the events while they were being shown.
    met: Option<Error>,
    /// When to stop waiting.
    stop: Option<Instant>,
}

impl Listener<'_> {
    fn subscribe(&self) -> Result<Subscription> {
        let (client, session) = (&self.account.client, &self.account.session);
        Ok(client.subscribe(Some(session), [] as [String; 0], self.account.login.cursor()?))
    }

    fn note(&self, text: &str) {
        note(self.global.output, text);
    }

    async fn run(&mut self) -> Result<()> {
        let mut events = self.subscribe()?;
        let mut told = false;
        loop {
            let stop = self.stop.unwrap_or_else(|| Instant::now() + FAR);
            let next = match self.met.take() {
                Some(error) => Err(error),
                None => match timeout_at(stop, self.wait(&mut events, &mut told)).await {
                    Ok(next) => next,
                    Err(_) if self.stop.is_some() => return Ok(()),
                    Err(_) => continue,
                },
            };
            match next {
                Ok(push) => {
                    if self.batch(&mut events, push).await? {
                        return Ok(());
                    }
                }
                Err(Error::CursorExpired { .. }) => {
                    self.note(
                        "some messages came too long ago to be pushed again; `chat read` shows those that are unread",
                    );
                    self.account.login.set_cursor(None);
                    events = self.subscribe()?;
                }
                Err(Error::Unavailable { cause, .. }) => {
                    self.note(&format!("no server can be reached ({}); trying again", cause.message()));
                }
                Err(error) => return Err(explain(error, &self.account.name)),
            }
        }
    }

    /// Waits for the next event. Says once that from now on nothing is missed.
    async fn wait(&self, events: &mut Subscription, told: &mut bool) -> Result<Push, Error> {
        if !*told {
            events.established().await?;
            *told = true;
            self.note(&format!("listening as {}; Ctrl-C ends", visible(&self.account.name)));
        }
        let ended = || Err(Error::Protocol { message: "the events ended".to_owned() });
        events.next().await.unwrap_or_else(ended)
    }

    /// Shows `push` and what has come with it, then marks all of it read. True: enough was shown.
    async fn batch(&mut self, events: &mut Subscription, push: Push) -> Result<bool> {
        let mut ids = Vec::new();
        let mut next = Some(push);
        let mut deleted = false;
        while let Some(push) = next.take() {
            deleted = self.show(&push, &mut ids)?;
            if deleted || self.left == Some(0) {
                break;
            }
            if ids.len() < BATCH {
                match timeout(Duration::ZERO, events.next()).await {
                    Ok(Some(Ok(more))) => next = Some(more),
                    Ok(Some(Err(error))) => self.met = Some(error),
                    Ok(None) | Err(_) => {}
                }
            }
        }
        if deleted {
            self.account.lock().await?;
            self.account.store.forget(&self.account.name)?;
            self.note(&format!("the account {} was deleted", visible(&self.account.name)));
            return Ok(true);
        }
        self.mark(ids, events.cursor()).await?;
        Ok(self.left == Some(0))
    }

    /// Shows one event. True: the account is gone.
    fn show(&mut self, push: &Push, ids: &mut Vec<u64>) -> Result<bool> {
        let event = ChatPush::decode(&push.payload[..]).context("the servers do not run the chat application")?.event;
        match event {
            // `read` may have shown it since it was pushed. Ids ascend, and it shows the oldest first.
            Some(Event::Message(message)) if message.id <= self.account.login.shown_id => {}
            Some(Event::Message(message)) => {
                print(self.global, message_json(&message), || line(&message))?;
                ids.push(message.id);
                self.account.login.shown_id = message.id;
                self.shown += 1;
                self.left = self.left.map(|left| left.saturating_sub(1));
            }
            Some(Event::AccountDeleted(_)) => return Ok(true),
            Some(Event::Edited(message)) => {
                print(self.global, named("edited", message_json(&message)), || edited(&message))?;
            }
            Some(Event::Reaction(notice)) => {
                print(self.global, named("reaction", reaction_json(&notice)), || reaction(&notice))?;
            }
            // What passes isn't for this command; the others are of a later version.
            Some(Event::Typing(_) | Event::Presence(_)) | None => {}
        }
        Ok(false)
    }

    async fn mark(&mut self, message_ids: Vec<u64>, cursor: Option<replicator_client::Cursor>) -> Result<()> {
        let shown_id = self.account.login.shown_id;
        self.account.lock().await?;
        let login = &mut self.account.login;
        login.shown_id = login.shown_id.max(shown_id);
        login.set_cursor(cursor);
        let marked = if message_ids.is_empty() {
            Ok(())
        } else {
            let action = chat_request::Action::MarkRead(chat::MarkRead { message_ids });
            match self.account.execute(action).await {
                Ok((Reply::Marked(_), _)) => Ok(()),
                Ok(_) => Err(unexpected()),
                Err(error) => Err(error),
            }
        };
        self.account.save(false)?;
        self.account.unlock();
        match marked {
            // It was shown, which counts; `read` will show it once more.
            Err(error) if !error.is::<Refused>() => {
                self.note(&format!("a message shown could not be marked read: {error:#}"));
                Ok(())
            }
            other => other,
        }
    }
}
