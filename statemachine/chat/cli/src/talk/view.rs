//! Where a talk is seen: at a terminal, on plain lines, or as JSON.

use std::io::{self, Write as _};

use anyhow::Result;
use replicator_proto::chat::v1::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Event,
    input::Lines,
    terminal::{self, Terminal},
};
use crate::{
    args::{Format, Global},
    failure::error_json,
    output::{line, message_json, visible},
};

/// Where a talk is seen, and where its lines come from.
pub(super) enum View {
    Terminal { terminal: Terminal, colours: bool },
    Plain(Lines),
    Json(Lines),
}

impl View {
    /// Takes the terminal, if a person is there, or standard input.
    pub(super) fn start(global: &Global, events: mpsc::Sender<Event>) -> Result<Self> {
        match global.output {
            Format::Json => Ok(Self::Json(Lines::start(events))),
            Format::Table if terminal::is_there() => {
                let colours = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
                Ok(Self::Terminal { terminal: Terminal::start(colours, events)?, colours })
            }
            Format::Table => Ok(Self::Plain(Lines::start(events))),
        }
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Gives the terminal back.
    pub(super) fn leave(&self) {
        if let Self::Terminal { terminal, .. } = self {
            terminal.leave();
        }
    }

    /// Asks for the next line.
    pub(super) fn ask(&self, prompt: &str) {
        match self {
            Self::Terminal { terminal, .. } => terminal.ask(prompt),
            Self::Plain(lines) | Self::Json(lines) => lines.ask(),
        }
    }

    /// Shows what happened: `json` to programs, `text` to people.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn show(&self, kind: &str, mut json: Value, text: &str) -> Result<()> {
        match self {
            Self::Terminal { terminal, colours: true } => terminal.show(text),
            Self::Terminal { terminal, .. } => terminal.show(&anstream::adapter::strip_str(text).to_string()),
            Self::Plain(_) => write(text)?,
            Self::Json(_) => {
                json["event"] = kind.into();
                write(&json.to_string())?;
            }
        }
        Ok(())
    }

    /// Shows what passes: to programs as any other event, to people in the status only.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn pass(&self, kind: &str, json: Value) -> Result<()> {
        match self {
            Self::Json(_) => self.show(kind, json, ""),
            _ => Ok(()),
        }
    }

    /// Says something about the talk itself. Away from the messages, where there is a place for it.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn note(&self, kind: &str, json: Value, text: &str) -> Result<()> {
        let dim = anstyle::Style::new().dimmed();
        match self {
            Self::Plain(_) => {
                let _ = writeln!(anstream::stderr(), "{text}"); // who doesn't read notes doesn't want them
                Ok(())
            }
            _ => self.show(kind, json, &format!("{dim}{text}{dim:#}")),
        }
    }

    /// Tells that something failed.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn failed(&self, what: &str, error: &anyhow::Error) -> Result<()> {
        let mut json = error_json(error);
        json["what"] = what.into();
        let red = anstyle::AnsiColor::Red.on_default();
        match self {
            Self::Plain(_) => {
                let _ = writeln!(anstream::stderr(), "{red}{what}:{red:#} {error:#}"); // as above
                Ok(())
            }
            _ => self.show("error", json, &format!("{red}{what}:{red:#} {error:#}")),
        }
    }

    /// Shows a message. `history`: it came before the talk.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn message(&self, message: &Message, history: bool) -> Result<()> {
        let mut json = message_json(message);
        json["history"] = history.into();
        let new = if history && message.unread { " *" } else { "" };
        self.show("message", json, &format!("{}{new}", line(message)))
    }

    /// Shows that a message has arrived at its recipient.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn sent(&self, to: &str, text: &str, json: Value) -> Result<()> {
        let (dim, bold) = (anstyle::Style::new().dimmed(), anstyle::Style::new().bold());
        let shown =
            format!("{dim}sent #{}{dim:#} to {bold}{}{bold:#}: {}", json["message_id"], visible(to), visible(text));
        self.show("sent", json, &shown)
    }

    /// Shows how things stand, where there is a place for that.
    pub(super) fn status(&self, status: impl FnOnce() -> String) {
        if let Self::Terminal { terminal, .. } = self {
            terminal.status(&status());
        }
    }

    /// Offers these names for completion.
    pub(super) fn names<'a>(&self, names: impl Iterator<Item = &'a String>) {
        if let Self::Terminal { terminal, .. } = self {
            terminal.names(names);
        }
    }

    /// Echoes a command above what it shows. Where lines come from elsewhere, whoever wrote them knows them.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn echo(&self, line: &str) -> Result<()> {
        match self {
            Self::Terminal { .. } => self.note("", json!({}), &format!("> {}", visible(line))),
            _ => Ok(()),
        }
    }
}

fn write(line: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
