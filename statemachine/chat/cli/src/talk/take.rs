//! What comes by itself in a talk, and what it means.

use std::time::Instant as Clock;

use anyhow::Result;
use replicator_client::Cursor;
use replicator_proto::chat::v1::{Presence, chat_push};
use serde_json::json;

use super::{
    Event, Talk,
    desk::Job,
    feed::{Fed, Pulse},
};
use crate::{
    failure::{explain, last_words, needs_login},
    output::{edited, message_json, reaction, reaction_json, visible},
};

impl Talk {
    /// Takes an event.
    ///
    /// # Errors
    /// If nobody reads any more, or the account is gone.
    pub(super) fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Input(input) => self.input(input),
            Event::Fed(life, fed) if life == self.live.life => self.fed(fed),
            Event::Pulse(life, pulse) if life == self.live.life => self.pulse(pulse),
            Event::Fed(..) | Event::Pulse(..) => Ok(()),
            Event::Done(done) => self.done(*done),
        }
    }

    fn fed(&mut self, fed: Fed) -> Result<()> {
        match fed {
            Fed::From => {
                self.held.get_or_insert_default();
                self.give(if self.began { Job::CatchUp { after_id: self.shown.last() } } else { Job::History });
                Ok(())
            }
            Fed::Push(event, cursor) => match &mut self.held {
                Some(held) => {
                    held.push((event, cursor));
                    Ok(())
                }
                None => self.pushed(event, cursor),
            },
            Fed::Passing(event) => self.passing(event),
            Fed::Missed => {
                self.view.note("missed", json!({}), "events were missed; unread messages are fetched instead")
            }
            Fed::Lost(why) => self.lose(&why),
            Fed::Ended(error) => self.over(explain(error, &self.name)),
        }
    }

    pub(super) fn pushed(&mut self, event: chat_push::Event, cursor: Option<Cursor>) -> Result<()> {
        match event {
            chat_push::Event::Message(message) => {
                self.cursor = cursor;
                if self.shown.is_new(message.id) {
                    self.people.know(&message.from);
                    self.people.wrote(&message.from);
                    self.view.names(self.people.known());
                    self.view.message(&message, false)?;
                    self.unmarked.push(message.id);
                }
            }
            chat_push::Event::AccountDeleted(_) => {
                self.give(Job::Forget);
                let text = format!("the account {} was deleted", visible(&self.name));
                self.view.note("account_deleted", json!({ "account": self.name }), &text)?;
            }
            chat_push::Event::Edited(message) => {
                self.cursor = cursor;
                self.view.show("edited", message_json(&message), &edited(&message))?;
            }
            chat_push::Event::Reaction(notice) => {
                self.cursor = cursor;
                self.people.know(&notice.from);
                self.view.names(self.people.known());
                self.view.show("reaction", reaction_json(&notice), &reaction(&notice))?;
            }
            _ => {} // what passes isn't logged
        }
        Ok(())
    }

    fn passing(&mut self, event: chat_push::Event) -> Result<()> {
        match event {
            chat_push::Event::Typing(typing) => {
                self.people.types(&typing.from, Clock::now());
                self.view.pass("typing", json!({ "from": typing.from }))
            }
            chat_push::Event::Presence(notice) => {
                let (name, presence) = (&notice.account, notice.presence());
                let news = self.people.heard(name, presence, notice.asks, &self.live.notices, Clock::now());
                let here = presence == Presence::Here;
                let json = json!({ "account": name, "presence": if here { "here" } else { "gone" } });
                if news && self.view.is_terminal() && self.roll_call.is_none() {
                    let text = format!("{} {}", visible(name), if here { "is here" } else { "has gone" });
                    return self.view.note("presence", json, &text);
                }
                self.view.pass("presence", json)
            }
            _ => Ok(()), // what is logged doesn't pass
        }
    }

    fn pulse(&mut self, pulse: Result<Pulse>) -> Result<()> {
        match pulse {
            Ok(Pulse { node, unread }) => {
                self.met(&node)?;
                if self.began && self.unmarked.is_empty() && !self.marking && unread != self.unread {
                    self.unread = unread;
                    self.view.pass("unread", json!({ "unread": unread }))?;
                }
                Ok(())
            }
            Err(error) if needs_login(&error) => self.over(error),
            Err(error) => self.lose(&last_words(&error)),
        }
    }

    /// Notes that a node has answered.
    pub(super) fn met(&mut self, node: &str) -> Result<()> {
        let before = self.node.replace(node.to_owned());
        let lost = std::mem::take(&mut self.lost);
        let json = |state: &str| json!({ "state": state, "node": node });
        match before {
            _ if lost => self.view.note("connection", json("connected"), &format!("connected again, to {node}")),
            Some(before) if before != node => {
                self.view.note("connection", json("moved"), &format!("the connection moved from {before} to {node}"))
            }
            _ => Ok(()),
        }
    }

    /// Notes that no node answers.
    pub(super) fn lose(&mut self, why: &str) -> Result<()> {
        if std::mem::replace(&mut self.lost, true) {
            return Ok(());
        }
        let json = json!({ "state": "lost", "why": why });
        self.view.note("connection", json, &format!("no server answers, it is tried again; nothing is lost ({why})"))
    }

    /// The session is over, which calls for another one.
    pub(super) fn over(&mut self, error: anyhow::Error) -> Result<()> {
        if !needs_login(&error) {
            self.end.get_or_insert(Err(error));
        } else if !self.logged_out {
            self.renew();
        }
        Ok(())
    }
}
