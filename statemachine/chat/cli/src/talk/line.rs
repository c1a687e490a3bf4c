//! What the user types in a talk, and what comes of it.

use std::{sync::Arc, time::Instant as Clock};

use anyhow::Result;
use replicator_proto::chat::v1::Presence;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Talk,
    desk::Job,
    enter::ask_key,
    input::Input,
    words::{self, Said},
};
use crate::failure::usage;

impl Talk {
    /// Takes what the user did.
    pub(super) fn input(&mut self, input: Input) -> Result<()> {
        if !matches!(input, Input::Editing(_)) {
            self.asked = false;
        }
        match input {
            Input::Line(line) => self.line(&line),
            Input::Editing(line) => {
                match words::parse(&line) {
                    Ok(Said::Text(_)) => self.tell_typing(),
                    Ok(Said::Message { to, .. }) => self.people.tell_typing(&to, &self.live.notices, Clock::now()),
                    _ => {}
                }
                Ok(())
            }
            Input::Cleared => Ok(()),
            Input::End => self.quit(),
            Input::Failed(error) => {
                self.end = Some(Err(error));
                Ok(())
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let said = match words::parse(line) {
            Ok(said) => said,
            Err(why) => {
                self.view.echo(line)?;
                return self.wrong(&why);
            }
        };
        match said {
            Said::Nothing | Said::Text(_) | Said::Message { .. } => {}
            _ => self.view.echo(line)?,
        }
        match said {
            Said::Nothing => {}
            Said::Text(text) => match self.partner.clone() {
                Some(to) => self.send(to, text),
                None => return self.wrong("to whom? Write /to NAME first, or @NAME TEXT"),
            },
            Said::Message { to, text } => self.send(to, text),
            Said::To(name) => {
                self.people.know(&name);
                self.view.names(self.people.known());
                self.people.greet(&name, &self.live.notices);
                self.partner = Some(name);
            }
            Said::Read(count) => self.ask(Job::Read(count)),
            Said::Messages(count) => self.ask(Job::Messages(count)),
            Said::List(pattern) => self.ask(Job::List(pattern)),
            Said::Delete(ids) => self.ask(Job::Delete(ids)),
            Said::React(message_id, reaction) => self.ask(Job::React { message_id, reaction }),
            Said::Edit(message_id, text) => match self.partner.clone() {
                Some(to) => self.ask(Job::Edit { to, message_id, text }),
                None => return self.wrong("of a message to whom? Write /to NAME first"),
            },
            Said::Who => {
                self.people.announce(Presence::Here, true, &self.live.notices);
                self.roll_call = Some(Instant::now() + super::ROLL_CALL);
            }
            Said::Typing => match self.partner {
                Some(_) => self.tell_typing(),
                None => return self.wrong("to whom? Write /to NAME first"),
            },
            Said::LogIn => return self.log_in(),
            Said::Help => self.view.show("help", json!({ "text": words::HELP }), words::HELP)?,
            Said::Quit => return self.quit(),
        }
        Ok(())
    }

    /// Tells what is wrong with a line.
    fn wrong(&mut self, why: &str) -> Result<()> {
        self.failed += 1;
        self.view.failed("not understood", &usage(why))
    }

    fn send(&mut self, to: String, text: String) {
        self.people.know(&to);
        self.people.typed();
        self.ask(Job::Send { to, text });
    }

    fn tell_typing(&mut self) {
        if let Some(partner) = &self.partner {
            self.people.tell_typing(partner, &self.live.notices, Clock::now());
        }
    }

    fn log_in(&mut self) -> Result<()> {
        if !self.view.is_terminal() {
            return self.wrong("there is no terminal to ask for a password; set CHAT_PASSWORD or give --password-file");
        }
        match ask_key(&self.name) {
            Ok(key) => {
                self.key = Some(Arc::new(key));
                self.logged_out = false;
                self.renew();
                Ok(())
            }
            Err(error) => self.view.failed("not logged in", &error),
        }
    }

    fn quit(&mut self) -> Result<()> {
        self.ending = true;
        if self.under_way > 0 && self.view.is_terminal() {
            let text = format!("waiting for {} on the way; Ctrl-C ends at once", self.under_way);
            self.view.note("ending", json!({ "under_way": self.under_way }), &text)?;
        }
        Ok(())
    }
}
