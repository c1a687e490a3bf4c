//! How answers are printed: as text where that is safe and clear, as bytes where they were asked for, and as JSON for programs.

use std::io::Write as _;

use replicator_client::{Answer, Executed};
use serde_json::{Value, json};

use super::super::{Failure, failure, output};
use crate::cli::output::Format;

/// Prints answers on standard output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    pub(super) format: Format,
    /// The bytes as they are, and nothing else.
    pub(super) raw: bool,
    /// One answer in each line.
    pub(super) lines: bool,
}

impl Printer {
    /// Prints an answer. It has left this process on return.
    pub(super) fn answer(&self, line: Option<u64>, response: &[u8], json: Value) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        match self.format {
            Format::Json => self.json(line, with_response(json, response))?,
            Format::Table if self.raw => std::io::stdout().write_all(response)?,
            Format::Table => {
                let text = readable(response, self.lines);
                let end = if text.ends_with('\n') { "" } else { "\n" };
                write!(out, "{text}{end}")?;
            }
        }
        Ok(std::io::stdout().flush()?)
    }

    /// Prints what came instead of an answer to one line of many. The others go on.
    pub(super) fn no_answer(&self, line: u64, error: &anyhow::Error) -> anyhow::Result<()> {
        let error = failure::described(error);
        match self.format {
            Format::Json => self.json(Some(line), json!({ "error": error })),
            Format::Table => {
                let red = output::paint(anstyle::AnsiColor::Red);
                let message = error["message"].as_str().unwrap_or_default();
                let _ = writeln!(anstream::stderr(), "{red}line {line}:{red:#} {message}"); // told by the exit code too
                Ok(())
            }
        }
    }

    fn json(&self, line: Option<u64>, mut json: Value) -> anyhow::Result<()> {
        if let Some(line) = line {
            json["line"] = line.into();
        }
        if self.lines { output::print_json_line(&json) } else { output::print_json(&json) }
    }
}

/// An outcome for programs, but for its response.
pub(super) fn executed(executed: &Executed) -> Value {
    json!({
        "log_index": executed.log_index.0,
        "epoch": executed.epoch.0,
        "node_id": executed.node_id,
        "state_digest": executed.state_digest.to_string(),
        "sequence": executed.sequence.0,
    })
}

/// An answer for programs, but for its response.
pub(super) fn answered(answer: &Answer) -> Value {
    json!({ "log_index": answer.log_index.0, "node_id": answer.node_id })
}

/// Adds a response: as text if it is UTF-8, else in hexadecimal digits.
pub(in crate::cli) fn with_response(mut json: Value, response: &[u8]) -> Value {
    match std::str::from_utf8(response) {
        Ok(text) => json["response"] = text.into(),
        Err(_) => json["response_hex"] = output::hex(response).into(),
    }
    json
}

/// A response as text if all of it can be shown, else in hexadecimal digits. Nothing in it can move a terminal's cursor, or turn the
/// direction of the text around.
pub(in crate::cli) fn readable(response: &[u8], one_line: bool) -> String {
    let shown = |c: char| match c {
        '\n' => !one_line,
        '\t' => true,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    };
    match std::str::from_utf8(response) {
        Ok(text) if text.chars().all(shown) => text.to_owned(),
        _ => output::hex(response),
    }
}

/// Checks that bytes can be printed as they are, and nothing else with them.
pub(super) fn check_raw(raw: bool, lines: bool, format: Format) -> Result<(), Failure> {
    if raw && (lines || format == Format::Json) {
        return Err(Failure::Usage("--raw prints the bytes of one response: leave out --stdin and -o json".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_that_can_be_shown_is_shown() {
        assert_eq!(readable("é 1\n".as_bytes(), false), "é 1\n");
        assert_eq!(readable(b"a\nb", true), "610a62");
        assert_eq!(readable(b"\x1b[2J", false), "1b5b324a");
        assert_eq!(readable(b"\xff", false), "ff");
        assert_eq!(readable("\u{202e}".as_bytes(), false), "e280ae");
        assert_eq!(readable("\u{61c}".as_bytes(), false), "d89c");
        assert_eq!(readable(b"", true), "");
    }

    #[test]
    fn json_keeps_all_bytes() {
        assert_eq!(with_response(json!({}), b"\x1b")["response"], "\u{1b}");
        assert_eq!(with_response(json!({}), b"\xff\x00")["response_hex"], "ff00");
    }
}
