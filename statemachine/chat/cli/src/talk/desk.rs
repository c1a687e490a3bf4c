//! The desk does what needs the session's numbers, one after the other, and the reads that belong between them.
//!
//! A request is tried until it has an outcome, however long that takes: nothing that was typed is lost, and nothing is
//! done twice. The login is locked only meanwhile, so that other commands of the account go on beside a talk.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use replicator_client::{Cursor, Error, Executed, SavedSession, SessionId};
use replicator_proto::chat::v1::{self as chat, chat_query, chat_request};
use tokio::sync::mpsc;

use super::{Event, words::HISTORY};
use crate::{
    account::{Account, Reply, unexpected},
    args::Global,
    commands::identity::log_in,
    failure::{explain, needs_login, not_logged_in},
    keys::AccountKey,
    output::visible,
};

/// Unread messages that are caught up with after events were missed; `/read` shows the others.
const CAUGHT_UP_MAX: u32 = 100;
/// After so long without a request, a session is asked for before it gets one: a request that meets an expired session
/// may have been executed before it expired, but one that was never sent has not.
const IDLE: Duration = Duration::from_secs(30);
const PAGE: u32 = 1_000;

/// What the desk can be asked for.
#[derive(Clone)]
pub(super) enum Job {
    Send {
        to: String,
        text: String,
    },
    /// Marks messages read that were shown, and saves how far the events were shown.
    Mark {
        message_ids: Vec<u64>,
        cursor: Option<Cursor>,
        shown_id: u64,
    },
    /// The last messages, at the start.
    History,
    /// Unread messages after this one.
    CatchUp {
        after_id: u64,
    },
    Read(u32),
    Messages(u32),
    List(String),
    Delete(Vec<u64>),
    React {
        message_id: u64,
        reaction: String,
    },
    Edit {
        to: String,
        message_id: u64,
        text: String,
    },
    /// Finds the login that another command has made, or logs in again, in the place of this session.
    Renew {
        gone: SessionId,
        key: Option<Arc<AccountKey>>,
    },
    /// Forgets the login: the account is gone.
    Forget,
}

impl Job {
    /// What to say if it isn't done.
    pub(super) fn undone(&self) -> String {
        match self {
            Self::Send { to, text } => format!("not sent to {} (\"{}\")", visible(to), visible(text)),
            Self::Edit { message_id, text, .. } => format!("#{message_id} not edited (\"{}\")", visible(text)),
            _ => "not done".to_owned(),
        }
    }
}

/// What became of a job.
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) result: Result<Reply>,
    pub(super) executed: Option<Executed>,
    /// Whether the request may have reached a server though the result is an error.
    pub(super) given_out: bool,
    /// The session in use, if it is another one now.
    pub(super) renewed: Option<SavedSession>,
}

pub(super) struct Desk {
    account: Account,
    global: Global,
    /// When the session was last known to live. By the wall clock: the other one stands still while a computer sleeps.
    alive: SystemTime,
}

impl Desk {
    /// Starts to take jobs.
    pub(super) fn start(mut account: Account, global: &Global, events: mpsc::Sender<Event>) -> mpsc::Sender<Job> {
        account.patience = Duration::MAX;
        account.unlock();
        let (jobs, mut waiting) = mpsc::channel(super::JOBS_MAX);
        let mut desk = Self { account, global: global.clone(), alive: SystemTime::UNIX_EPOCH };
        tokio::spawn(async move {
            while let Some(job) = waiting.recv().await {
                let done = desk.take(job).await;
                if events.send(Event::Done(Box::new(done))).await.is_err() {
                    return;
                }
            }
        });
        jobs
    }

    async fn take(&mut self, job: Job) -> Done {
        let mut done =
            Done { job: job.clone(), result: Err(unexpected()), executed: None, given_out: false, renewed: None };
        done.result = match self.lock().await {
            Ok(()) => self.carry_out(job, &mut done).await,
            // Another command has logged out. The lock is held all the same.
            Err(error) if matches!(job, Job::Renew { .. }) && needs_login(&error) => {
                self.carry_out(job, &mut done).await
            }
            Err(error) => Err(error),
        };
        self.account.unlock();
        done
    }

    async fn lock(&mut self) -> Result<()> {
        let lock = self.account.store.lock_telling(&self.account.name, || {}).await?;
        self.account.take(lock)
    }

    async fn carry_out(&mut self, job: Job, done: &mut Done) -> Result<Reply> {
        match job {
            Job::Send { to, text } => self.execute(chat_request::Action::Send(chat::Send { to, text }), done).await,
            Job::Mark { message_ids, cursor, shown_id } => {
                let login = &mut self.account.login;
                login.shown_id = login.shown_id.max(shown_id);
                login.set_cursor(cursor);
                if message_ids.is_empty() {
                    self.account.save(false)?;
                    return Ok(Reply::Marked(chat::Marked { count: 0 }));
                }
                self.execute(chat_request::Action::MarkRead(chat::MarkRead { message_ids }), done).await
            }
            Job::Read(limit) => self.execute(chat_request::Action::ReadNext(chat::ReadNext { limit }), done).await,
            Job::Delete(message_ids) => {
                self.execute(chat_request::Action::DeleteMessages(chat::DeleteMessages { message_ids }), done).await
            }
            Job::React { message_id, reaction } => {
                self.execute(chat_request::Action::React(chat::React { message_id, reaction }), done).await
            }
            Job::Edit { to, message_id, text } => {
                self.execute(chat_request::Action::Edit(chat::Edit { to, message_id, text }), done).await
            }
            Job::History => self.messages(HISTORY, 0, true).await,
            Job::Messages(count) => self.messages(count, 0, true).await,
            Job::CatchUp { after_id } => self.messages(CAUGHT_UP_MAX, after_id, false).await,
            Job::List(pattern) => self.list(pattern).await,
            Job::Renew { gone, key } => self.renew(gone, key, done).await,
            Job::Forget => {
                self.account.store.forget(&self.account.name)?;
                Ok(Reply::LoggedOut(chat::LoggedOut {}))
            }
        }
    }

    async fn execute(&mut self, action: chat_request::Action, done: &mut Done) -> Result<Reply> {
        if self.alive.elapsed().is_ok_and(|idle| idle < IDLE) {
            done.given_out = true;
        } else {
            loop {
                match self.account.session.keep_alive().await {
                    Ok(_) => break,
                    Err(Error::Unavailable { .. }) => {}
                    Err(error) => return Err(explain(error, &self.account.name)),
                }
            }
            done.given_out = true;
        }
        let (reply, executed) = self.account.execute(action).await?;
        self.alive = SystemTime::now();
        done.executed = Some(executed);
        Ok(reply)
    }

    async fn messages(&self, page_size: u32, after_id: u64, last: bool) -> Result<Reply> {
        let action = chat::ListMessages { unread_only: !last, page_size, after_id, last };
        self.account.query(chat_query::Action::ListMessages(action)).await
    }

    async fn list(&self, pattern: String) -> Result<Reply> {
        let (mut accounts, mut page_token) = (Vec::new(), String::new());
        loop {
            let action = chat::ListAccounts { pattern: pattern.clone(), page_size: PAGE, page_token };
            match self.account.query(chat_query::Action::ListAccounts(action)).await? {
                Reply::Accounts(page) => {
                    accounts.extend(page.accounts);
                    page_token = page.next_page_token;
                }
                _ => return Err(unexpected()),
            }
            if page_token.is_empty() {
                return Ok(Reply::Accounts(chat::Accounts { accounts, next_page_token: page_token }));
            }
        }
    }

    async fn renew(&mut self, gone: SessionId, key: Option<Arc<AccountKey>>, done: &mut Done) -> Result<Reply> {
        // Under the lock, the login is that of the last `chat login`, be it this one's or another program's.
        if self.account.session.id() != gone {
            let me = self.account.query(chat_query::Action::WhoAmI(chat::WhoAmI {})).await;
            if !me.as_ref().is_err_and(needs_login) {
                done.renewed = Some(self.account.session.saved());
                return me;
            }
        }
        let name = self.account.name.clone();
        let Some(key) = key else {
            return Err(not_logged_in(format!("the login of {name} has ended; run `chat login {name}`")));
        };
        let ttl = self.account.session.ttl();
        let (client, store) = (self.account.client.clone(), self.account.store.clone());
        let Some(lock) = self.account.give_lock() else { return Err(unexpected()) };
        let (mut account, unread) = log_in(&self.global, &client, &store, lock, &key, ttl).await?;
        account.patience = Duration::MAX;
        done.renewed = Some(account.session.saved());
        self.account = account;
        self.alive = SystemTime::now();
        Ok(Reply::LoggedIn(chat::LoggedIn { account: name, unread }))
    }
}
