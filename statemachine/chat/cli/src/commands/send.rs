//! Sending: one message, or each line of standard input.
//!
//! A message is acknowledged (printed) after its number has been saved, so that no two acknowledgements can be of the
//! same message, even if this process is killed in between and run again.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use replicator_client::{Error, Executed, Outcome};
use replicator_proto::chat::v1::{self as chat, ChatRequest, chat_request};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    sync::mpsc,
};

use crate::{
    account::{self, Account, Reply, unexpected},
    args::{Global, Send},
    failure::{Refused, error_json, explain, usage},
    output::{print, tell, visible},
};

/// The longest line that is read. The module's own limit on a message is lower.
const LINE_BYTES_MAX: u64 = 1 << 20;

fn action(to: &str, text: String) -> chat_request::Action {
    chat_request::Action::Send(chat::Send { to: to.to_owned(), text })
}

pub(super) async fn send(global: &Global, send: Send) -> Result<()> {
    if global.vote && send.window.is_some_and(|window| window > 1) {
        return Err(usage("--vote sends one line at a time; leave out --window"));
    }
    let mut account = Account::open(global).await?;
    if send.stdin {
        let (lines, input) = mpsc::channel(1);
        tokio::spawn(read_lines(lines));
        let mut sender = Sender { global, to: send.to, failed: 0, sent: 0 };
        return match send.window.unwrap_or(1) {
            1 => sender.one_by_one(&mut account, input).await,
            window => sender.pipelined(&mut account, input, window as usize).await,
        };
    }
    let (reply, executed) = account.execute(action(&send.to, send.text.join(" "))).await?;
    acknowledge(global, &send.to, reply, &executed, None)
}

/// A line of input and its number, from 1; an error ends the input.
type Line = Result<(u64, Vec<u8>)>;

/// Reads lines ahead of their sending, by one.
async fn read_lines(lines: mpsc::Sender<Line>) {
    let mut input = BufReader::new(tokio::io::stdin());
    for number in 1.. {
        let mut line = Vec::new();
        let read = (&mut input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line).await;
        let item = match read {
            Ok(0) => return,
            Ok(_) if line.len() as u64 > LINE_BYTES_MAX => Err(anyhow::anyhow!("line {number} is longer than 1 MiB")),
            Ok(_) => Ok((number, line)),
            Err(error) => Err(anyhow::Error::new(error).context("cannot read standard input")),
        };
        let last = item.is_err();
        if lines.send(item).await.is_err() || last {
            return;
        }
    }
}

/// The message in a line; `None` if there is none.
fn text(mut line: Vec<u8>) -> Result<Option<String>> {
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    let text = String::from_utf8(line).context("not UTF-8")?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Prints that a message has arrived.
fn acknowledge(global: &Global, to: &str, reply: Reply, executed: &Executed, line: Option<u64>) -> Result<()> {
    let Reply::Sent(sent) = reply else { return Err(unexpected()) };
    let mut json = json!({
        "message_id": sent.message_id,
        "to": to,
        "pushed_to": sent.pushed_to,
        "log_index": executed.log_index.0,
        "node": executed.node_id,
    });
    if let Some(line) = line {
        json["line"] = line.into();
    }
    print(global, json, || format!("sent {} to {}", sent.message_id, visible(to)))
}

struct Sender<'a> {
    global: &'a Global,
    to: String,
    sent: u64,
    failed: u64,
}

impl Sender<'_> {
    /// Sends a line after the one before it has arrived. Between two lines other commands may use the login.
    async fn one_by_one(&mut self, account: &mut Account, mut input: mpsc::Receiver<Line>) -> Result<()> {
        account.unlock();
        while let Some(line) = input.recv().await {
            let (number, line) = line?;
            let Some(text) = self.text(number, line) else { continue };
            account.lock().await?;
            let done = account.execute(action(&self.to, text)).await;
            account.unlock();
            match done {
                Ok((reply, executed)) => {
                    self.sent += 1;
                    acknowledge(self.global, &self.to, reply, &executed, Some(number))?;
                }
                Err(error) => self.failed(number, error)?,
            }
        }
        self.end()
    }

    /// Keeps up to `window` lines on their way, and the login to itself until all have arrived.
    async fn pipelined(&mut self, account: &mut Account, mut input: mpsc::Receiver<Line>, window: usize) -> Result<()> {
        // The first message goes alone: it finds out whether an earlier command was killed before it could save.
        loop {
            let Some(line) = input.recv().await else { return self.end() };
            let (number, line) = line?;
            let Some(text) = self.text(number, line) else { continue };
            match account.execute(action(&self.to, text)).await {
                Ok((reply, executed)) => {
                    self.sent += 1;
                    acknowledge(self.global, &self.to, reply, &executed, Some(number))?;
                    break;
                }
                Err(error) => self.failed(number, error)?,
            }
        }
        let pipeline = account.session.pipeline(window).await.map_err(|error| explain(error, &account.name))?;
        let mut under_way: VecDeque<(u64, Outcome)> = VecDeque::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            let room = open && under_way.len() < pipeline.window();
            tokio::select! {
                // What has arrived is told before more is sent.
                biased;
                outcome = async { (&mut under_way[0].1).await }, if !under_way.is_empty() => {
                    let Some((number, _)) = under_way.pop_front() else { break };
                    account.save(false)?;
                    self.arrived(number, outcome, &account.name)?;
                }
                line = input.recv(), if room => match line {
                    None => open = false,
                    Some(line) => {
                        let (number, line) = line?;
                        let Some(text) = self.text(number, line) else { continue };
                        let request = ChatRequest { action: Some(action(&self.to, text)) }.encode_to_vec();
                        let outcome = pipeline.submit(request).await.map_err(|error| explain(error, &account.name))?;
                        under_way.push_back((number, outcome));
                    }
                },
            }
        }
        pipeline.close().await.map_err(|error| explain(error, &account.name))?;
        account.save(true)?;
        self.end()
    }

    fn arrived(&mut self, number: u64, outcome: Result<Executed, Error>, name: &str) -> Result<()> {
        let done = outcome
            .map_err(|error| explain(error, name))
            .and_then(|executed| Ok((account::answer(&executed.response, name)?, executed)));
        match done {
            Ok((reply, executed)) => {
                self.sent += 1;
                acknowledge(self.global, &self.to, reply, &executed, Some(number))
            }
            Err(error) => self.failed(number, error),
        }
    }

    fn text(&mut self, number: u64, line: Vec<u8>) -> Option<String> {
        text(line).unwrap_or_else(|error| {
            self.refused(number, &error);
            None
        })
    }

    fn refused(&mut self, number: u64, error: &anyhow::Error) {
        self.failed += 1;
        let json = json!({ "error": error_json(error), "line": number });
        tell(self.global.output, json, &format!("line {number} was not sent: {error:#}"));
    }

    /// A line refused for its text is told, and the next one may do better. Anything else would meet them all, as a full
    /// mailbox does, and ends the command.
    fn failed(&mut self, number: u64, error: anyhow::Error) -> Result<()> {
        if error.downcast_ref::<Refused>().is_some_and(Refused::is_about_the_text) {
            self.refused(number, &error);
            return Ok(());
        }
        let sent = self.sent;
        Err(error.context(format!(
            "stopped at line {number}; sent before it: {sent}. Go on with the input from line {number} on"
        )))
    }

    fn end(&self) -> Result<()> {
        match self.failed {
            0 => Ok(()),
            failed => bail!("lines not sent: {failed}; sent: {}", self.sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{args::Cli, failure::refused};

    #[test]
    fn a_line_is_a_message_without_its_end() {
        assert_eq!(text(b"hi\n".to_vec()).unwrap().as_deref(), Some("hi"));
        assert_eq!(text(b"hi \r\n".to_vec()).unwrap().as_deref(), Some("hi "));
        assert_eq!(text(b"last".to_vec()).unwrap().as_deref(), Some("last"));
        assert_eq!(text(b"\n".to_vec()).unwrap(), None);
        assert!(text(b"\xff\n".to_vec()).is_err());
    }

    #[test]
    fn a_refused_text_goes_on_and_what_meets_every_line_ends() {
        let Cli { global, .. } = Cli::try_parse_from(["chat"]).unwrap();
        let mut sender = Sender { global: &global, to: "bob".into(), sent: 2, failed: 0 };
        let refused = |code: chat::ChatErrorCode, message: &str| {
            refused(chat::ChatError { code: code.into(), message: message.into() }, "alice")
        };
        sender.failed(3, refused(chat::ChatErrorCode::Invalid, "too long")).unwrap();
        assert_eq!(sender.end().unwrap_err().to_string(), "lines not sent: 1; sent: 2");
        for (error, why) in
            [(anyhow::anyhow!("gone"), "gone"), (refused(chat::ChatErrorCode::MailboxFull, "full"), "full")]
        {
            let stopped = sender.failed(4, error).unwrap_err();
            assert_eq!(
                format!("{stopped:#}"),
                format!("stopped at line 4; sent before it: 2. Go on with the input from line 4 on: {why}")
            );
        }
    }
}
