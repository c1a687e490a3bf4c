//! What the desk has done for a talk, and what comes of it.

use anyhow::Result;
use replicator_client::Executed;
use replicator_proto::chat::v1::{self as chat, Presence};
use serde_json::{Value, json};

use super::{
    Live, Talk,
    desk::{Done, Job},
};
use crate::{
    account::{Reply, unexpected},
    failure::{Refused, is_unavailable, last_words, needs_login},
    output::{self, message_json, visible},
};

impl Talk {
    /// Takes what became of a job.
    pub(super) fn done(&mut self, done: Done) -> Result<()> {
        if let Some(executed) = &done.executed {
            self.met(&executed.node_id)?;
        }
        match done.job {
            Job::Mark { .. } => self.marked(done),
            Job::History | Job::CatchUp { .. } => self.caught_up(done),
            Job::Renew { .. } => self.renewed(done),
            Job::Forget => {
                self.end = Some(done.result.map(|_| ()));
                Ok(())
            }
            _ => self.answered(done),
        }
    }

    /// A job is done that a line had asked for.
    fn answered(&mut self, done: Done) -> Result<()> {
        self.under_way -= 1;
        self.since.pop_front();
        if self.under_way == 0 {
            self.told_slow = false;
        }
        match done.result {
            Ok(reply) => self.reply(done.job, reply, done.executed),
            Err(error) if needs_login(&error) && (!done.given_out || error.is::<Refused>()) => {
                // Certainly not done: it waits for the next login.
                self.for_login.push_back(done.job);
                self.over(error)
            }
            Err(error) => {
                self.failed += 1;
                let what = done.job.undone();
                if needs_login(&error) {
                    let error = error.context("the login ended meanwhile, so this may or may not have been done");
                    self.view.failed(&what, &error)?;
                    return self.over(error);
                }
                self.view.failed(&what, &error)
            }
        }
    }

    fn reply(&mut self, job: Job, reply: Reply, executed: Option<Executed>) -> Result<()> {
        match (job, reply) {
            (Job::Send { to, text }, Reply::Sent(sent)) => {
                let mut json = json!({
                    "message_id": sent.message_id, "to": to, "text": text, "pushed_to": sent.pushed_to,
                });
                if let Some(executed) = executed {
                    json["log_index"] = executed.log_index.0.into();
                    json["node"] = executed.node_id.into();
                }
                self.view.sent(&to, &text, json)
            }
            (Job::Read(_), Reply::Messages(read)) => {
                read.messages.iter().for_each(|message| self.shown.asked_for(message.id));
                self.unread = read.unread.saturating_sub(self.unmarked.len() as u64);
                self.listed(&read, self.unread)
            }
            (Job::Messages(_), Reply::Messages(listed)) => self.listed(&listed, 0),
            (Job::List(_), Reply::Accounts(found)) => {
                let text = output::accounts(&found.accounts);
                self.view.show("accounts", json!({ "accounts": found.accounts }), &text)
            }
            (Job::Delete(ids), Reply::Deleted(deleted)) => {
                let text = format!("deleted {} of {}", deleted.count, ids.len());
                self.view.show("deleted", json!({ "deleted": deleted.count }), &text)
            }
            (Job::React { message_id, reaction }, Reply::Reacted(done)) => {
                let json = json!({
                    "message_id": message_id, "reaction": output::some(&reaction), "pushed_to": done.pushed_to,
                });
                self.view.show("reacted", json, &output::reacted(message_id, &reaction))
            }
            (Job::Edit { to, message_id, text }, Reply::Edited(done)) => {
                let shown = format!("edited #{message_id} to {}: {}", visible(&to), visible(&text));
                let json = json!({ "message_id": message_id, "to": to, "text": text, "pushed_to": done.pushed_to });
                self.view.show("changed", json, &shown)
            }
            _ => Err(unexpected()),
        }
    }

    fn listed(&self, listed: &chat::Messages, left: u64) -> Result<()> {
        let messages: Vec<Value> = listed.messages.iter().map(message_json).collect();
        let text = output::messages(&listed.messages, left);
        self.view.show("messages", json!({ "messages": messages, "unread": self.unread }), &text)
    }

    fn marked(&mut self, done: Done) -> Result<()> {
        self.marking = false;
        match (done.result, done.job) {
            (Ok(_), _) => Ok(()),
            (Err(error), Job::Mark { message_ids, .. }) if needs_login(&error) => {
                self.unmarked.extend(message_ids);
                self.over(error)
            }
            (Err(error), _) => self.view.failed("messages shown are not marked read", &error),
        }
    }

    /// Messages were fetched that came before the events do.
    fn caught_up(&mut self, done: Done) -> Result<()> {
        let fetched = match done.result {
            Ok(Reply::Messages(fetched)) => fetched,
            Ok(_) => return Err(unexpected()),
            Err(error) if needs_login(&error) => return self.over(error),
            Err(error) if is_unavailable(&error) => {
                self.lose(&last_words(&error))?;
                self.give(done.job);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let first = !std::mem::replace(&mut self.began, true);
        if first {
            self.view.show("hello", json!({ "account": self.name }), &self.greeting())?;
        }
        let fetched_unread = fetched.messages.iter().filter(|message| message.unread);
        self.unread = fetched.unread.saturating_sub(fetched_unread.count() as u64);
        for message in &fetched.messages {
            self.people.know(&message.from);
            // What was caught up with can have been shown already, by a push that came before the events ended.
            let new = first || self.shown.is_new(message.id);
            if new {
                self.view.message(message, first)?;
                if message.unread {
                    self.unmarked.push(message.id);
                }
            }
        }
        if let Some(last) = fetched.messages.last() {
            self.shown.begin(last.id);
        }
        self.view.names(self.people.known());
        if first {
            let json = json!({ "account": self.name, "unread": self.unread, "node": self.node });
            let text = match self.unread {
                0 => "/to NAME chooses whom you talk with; /help shows what there is".to_owned(),
                unread => format!("{unread} older unread; /read shows them, /help what else there is"),
            };
            self.view.note("ready", json, &text)?;
        }
        if first {
            self.people.announce(Presence::Here, true, &self.live.notices);
        }
        for (event, cursor) in self.held.take().unwrap_or_default() {
            self.pushed(event, cursor)?;
        }
        Ok(())
    }

    fn greeting(&self) -> String {
        let bold = anstyle::Style::new().bold();
        format!("You are {bold}{}{bold:#}; {} unread", visible(&self.name), self.unread)
    }

    /// There is another login, or none can be had.
    fn renewed(&mut self, done: Done) -> Result<()> {
        self.renewing = false;
        match (done.result, done.renewed) {
            (Ok(_), Some(session)) => {
                self.session = session;
                self.held.get_or_insert_default();
                let life = self.live.life + 1;
                self.live = Live::start(life, &self.client, &self.session, &self.name, &self.events);
                self.view.note("login", json!({ "state": "renewed" }), "your login had ended; logged in again")?;
                for job in std::mem::take(&mut self.for_login) {
                    self.ask(job);
                }
                Ok(())
            }
            (Ok(_), None) => Err(unexpected()),
            (Err(error), _) if is_unavailable(&error) => {
                self.lose(&last_words(&error))?;
                self.renew();
                Ok(())
            }
            (Err(error), _) if self.view.is_terminal() && !self.ending => {
                self.logged_out = true;
                if !needs_login(&error) {
                    return self.view.failed("not logged in", &error);
                }
                let json = json!({ "state": "ended" });
                self.view.note("login", json, "your login has ended; /login asks for the password and goes on")
            }
            (Err(error), _) => {
                self.end.get_or_insert(Err(error));
                Ok(())
            }
        }
    }
}
