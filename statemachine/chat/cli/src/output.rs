//! Printing: tables and sentences for people, JSON for programs.

use std::io::{self, Write};

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use replicator_proto::chat::v1::{Message, ReactionNotice};
use serde_json::{Value, json};

use crate::args::{Format, Global};

/// Prints `json` or `text`, whichever the user wants, and flushes. An error if nobody reads any more.
pub(crate) fn print(global: &Global, mut json: Value, text: impl FnOnce() -> String) -> Result<()> {
    let mut out = anstream::stdout().lock();
    match global.output {
        Format::Json => {
            global.votes.add_to(&mut json);
            writeln!(out, "{json}")?;
        }
        Format::Table => writeln!(out, "{}", text())?,
    }
    out.flush()?;
    Ok(())
}

/// Tells the user something that isn't the command's result.
pub(crate) fn note(format: Format, text: &str) {
    tell(format, json!({ "note": text }), text);
}

/// Tells, on standard error, `json` or `text`.
pub(crate) fn tell(format: Format, json: Value, text: &str) {
    let mut stderr = anstream::stderr();
    // If it can't be written, nobody is left to tell.
    let _ = match format {
        Format::Json => writeln!(stderr, "{json}"),
        Format::Table => writeln!(stderr, "{text}"),
    };
}

/// A table of `rows`; `right`: the columns of numbers.
fn table(header: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    if let Some(width) = terminal_width() {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.trim_fmt().lines().map(|line| line.trim_end().to_owned()).collect();
    let bold = anstyle::Style::new().bold();
    let (head, body) = lines.split_first().map_or((String::new(), &[][..]), |(head, body)| (head.clone(), body));
    [&[format!("{bold}{head}{bold:#}")], body].concat().join("\n")
}

/// The width of the terminal that standard output goes to, if it is one.
fn terminal_width() -> Option<u16> {
    rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| size.ws_col).filter(|&columns| columns >= 40)
}

/// Accounts, one per line.
pub(crate) fn accounts(names: &[String]) -> String {
    if names.is_empty() {
        return "no such accounts".to_owned();
    }
    names.iter().map(|name| visible(name)).collect::<Vec<_>>().join("\n")
}

/// Messages as a table, and how many are left unread.
pub(crate) fn messages(messages: &[Message], unread: u64) -> String {
    if messages.is_empty() {
        return if unread == 0 { "no messages".to_owned() } else { format!("no messages here; {unread} unread") };
    }
    let rows = messages.iter().map(|message| {
        let mark = if message.unread { "*" } else { "" };
        vec![message.id.to_string(), mark.to_owned(), time(message.time_us), sender(message), said(message)]
    });
    let table = table(&["ID", "NEW", "TIME (UTC)", "FROM", "MESSAGE"], &[0], rows);
    if unread == 0 { table } else { format!("{table}\n{unread} more unread") }
}

/// A message on one line, as `listen` shows it.
pub(crate) fn line(message: &Message) -> String {
    let (dim, bold) = (anstyle::Style::new().dimmed(), anstyle::Style::new().bold());
    let (time, sender) = (time(message.time_us), sender(message));
    format!("{dim}{time} #{}{dim:#} {bold}{sender}{bold:#}: {}", message.id, said(message))
}

/// What a message says, and what became of it since.
fn said(message: &Message) -> String {
    let edited = if message.edited_us == 0 { "" } else { " (edited)" };
    let reaction = some(&message.reaction).map(|reaction| format!(" [{}]", visible(reaction))).unwrap_or_default();
    format!("{}{edited}{reaction}", visible(&message.text))
}

/// A text, unless it is empty.
pub(crate) fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// What came of an own reaction.
pub(crate) fn reacted(message_id: u64, reaction: &str) -> String {
    match some(reaction) {
        Some(reaction) => format!("reacted to {message_id}: {}", visible(reaction)),
        None => format!("took back the reaction to {message_id}"),
    }
}

/// A reaction of somebody else on one line, as `listen` shows it.
pub(crate) fn reaction(notice: &ReactionNotice) -> String {
    let bold = anstyle::Style::new().bold();
    let (from, id) = (visible(&notice.from), notice.message_id);
    match some(&notice.reaction) {
        Some(reaction) => format!("{bold}{from}{bold:#} reacted to #{id}: {}", visible(reaction)),
        None => format!("{bold}{from}{bold:#} took back the reaction to #{id}"),
    }
}

/// A reaction of somebody else for programs.
pub(crate) fn reaction_json(notice: &ReactionNotice) -> Value {
    json!({ "message_id": notice.message_id, "from": notice.from, "reaction": some(&notice.reaction) })
}

/// An edited message on one line, as `listen` shows it.
pub(crate) fn edited(message: &Message) -> String {
    let dim = anstyle::Style::new().dimmed();
    format!("{dim}edited:{dim:#} {}", line(message))
}

fn sender(message: &Message) -> String {
    let deleted = if message.from_deleted { " (deleted)" } else { "" };
    format!("{}{deleted}", visible(&message.from))
}

/// A message for programs.
pub(crate) fn message_json(message: &Message) -> serde_json::Value {
    json!({
        "id": message.id,
        "from": message.from,
        "from_deleted": message.from_deleted,
        "text": message.text,
        "time": time(message.time_us).replace(' ', "T") + "Z",
        "time_us": message.time_us,
        "unread": message.unread,
        "reaction": some(&message.reaction),
        "edited_us": Some(message.edited_us).filter(|&time_us| time_us != 0),
    })
}

/// `text` with nothing in it that a terminal would obey: other people wrote it.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => shown.push(' '),
            // The marks that reverse the order of what follows, and those that end a line.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(c.escape_default());
            }
            _ if c.is_control() => shown.extend(c.escape_default()),
            _ => shown.push(c),
        }
    }
    shown
}

/// Microseconds since 1970 as `2026-11-22 16:48:05`, in UTC.
fn time(microseconds: i64) -> String {
    let seconds = microseconds.div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // since 0000-03-01, so that the leap day is a year's last
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u64, text: &str) -> Message {
        let time_us = 1_795_366_085_123_456;
        let unread = id > 9;
        Message {
            id,
            from: "bob".into(),
            from_deleted: id == 7,
            text: text.into(),
            time_us,
            unread,
            ..Message::default()
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(951_827_696_000_000), "2000-02-29 12:34:56");
        assert_eq!(time(-1), "1969-12-31 23:59:59");
        assert_eq!(time(4_107_542_400_000_000), "2100-03-01 00:00:00");
    }

    #[test]
    fn a_mailbox_is_a_table() {
        let shown = anstream::adapter::strip_str(&messages(&[message(7, "hi"), message(10, "there")], 3)).to_string();
        let when = time(1_795_366_085_123_456);
        let expected = format!(
            "ID  NEW  TIME (UTC)           FROM           MESSAGE\n 7       {when}  bob (deleted)  hi\n10  *    {when}  bob            there\n3 more unread"
        );
        assert_eq!(shown, expected);
        assert_eq!(messages(&[], 0), "no messages");
    }

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        assert_eq!(visible("a\x1b[31mb\r\n\u{202e}c\té"), "a\\u{1b}[31mb\\r\\n\\u{202e}c é");
        assert_eq!(visible("\u{61c}a\u{2028}b"), "\\u{61c}a\\u{2028}b");
        let line = anstream::adapter::strip_str(&line(&message(8, "x\ny"))).to_string();
        assert!(line.ends_with("#8 bob: x\\ny"), "{line}");
    }

    #[test]
    fn edits_and_reactions_are_shown_and_cannot_drive_the_terminal() {
        let message = Message { edited_us: 1, reaction: "\u{1f44d}\x1b".into(), ..message(8, "hi") };
        let shown = anstream::adapter::strip_str(&edited(&message)).to_string();
        assert!(shown.starts_with("edited: ") && shown.ends_with("#8 bob: hi (edited) [\u{1f44d}\\u{1b}]"), "{shown}");
        let mut notice = ReactionNotice { message_id: 8, from: "a\nb".into(), reaction: "\r".into() };
        assert_eq!(anstream::adapter::strip_str(&reaction(&notice)).to_string(), "a\\nb reacted to #8: \\r");
        notice.reaction.clear();
        assert_eq!(anstream::adapter::strip_str(&reaction(&notice)).to_string(), "a\\nb took back the reaction to #8");
        assert_eq!(reaction_json(&notice)["reaction"], Value::Null);
        assert_eq!(message_json(&message)["edited_us"], 1);
    }

    #[test]
    fn a_message_is_json() {
        let json = message_json(&message(7, "\"hi\"\n"));
        assert_eq!(json["text"], "\"hi\"\n");
        assert_eq!(json["id"], 7);
        assert!(json["time"].as_str().unwrap().ends_with('Z'));
        assert!(!json.to_string().contains('\n'), "JSON lines stay lines");
    }

    #[test]
    fn accounts_are_lines() {
        assert_eq!(accounts(&["alice".into(), "bob".into()]), "alice\nbob");
        assert_eq!(accounts(&[]), "no such accounts");
    }
}
