//! Lines that come from elsewhere than a terminal.

use std::{
    io::{self, BufRead as _, Read as _},
    sync::mpsc as threads,
    thread,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;

use super::Event;

/// The longest line that is read. The module's own limit on a message is lower.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What the user did.
pub(super) enum Input {
    /// Ended a line.
    Line(String),
    /// Changed the line.
    Editing(String),
    /// Threw the line away.
    Cleared,
    /// Says no more.
    End,
    /// Can't be heard any more.
    Failed(anyhow::Error),
}

/// The lines of standard input.
pub(super) struct Lines(threads::Sender<()>);

impl Lines {
    /// Starts to read. Lines come as events, each after [`Lines::ask`].
    pub(super) fn start(events: mpsc::Sender<Event>) -> Self {
        let (ask, asked) = threads::channel();
        thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            while asked.recv().is_ok() {
                let input = match line(&mut stdin) {
                    Ok(Some(line)) => Input::Line(line),
                    Ok(None) => Input::End,
                    Err(error) => Input::Failed(error),
                };
                if events.blocking_send(Event::Input(input)).is_err() {
                    return;
                }
            }
        });
        Self(ask)
    }

    /// Asks for the next line.
    pub(super) fn ask(&self) {
        let _ = self.0.send(()); // else the input's end has been told
    }
}

fn line(input: &mut impl io::BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    if input.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line).context("cannot read standard input")? == 0 {
        return Ok(None);
    }
    if line.len() as u64 > LINE_BYTES_MAX {
        bail!("a line of the input is longer than 1 MiB");
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    String::from_utf8(line).context("a line of the input is not UTF-8").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends() {
        let mut input = io::Cursor::new(b"one\r\n\ntwo \nlast");
        let mut read = || line(&mut input).unwrap();
        assert_eq!([read(), read(), read()], ["one", "", "two "].map(|text| Some(text.to_owned())));
        assert_eq!((read().as_deref(), read()), (Some("last"), None));
        assert!(line(&mut io::Cursor::new(b"\xff\n")).is_err());
        assert!(line(&mut io::Cursor::new(vec![b'x'; 1 << 21])).is_err());
    }
}
