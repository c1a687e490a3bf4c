//! What a line that the user typed asks for.

use crate::output::visible;

/// How many messages `/messages` and the start of a talk show.
pub(super) const HISTORY: u32 = 10;
/// The most messages and names that one request may hold.
const LIMIT: u32 = 1_000;

pub(super) const HELP: &str = "\
TEXT              send it to the one whom you talk with
@NAME TEXT        send it to somebody else
/to NAME          talk with NAME from now on
/read [N]         show the oldest unread messages (10, or N), and mark them read
/messages [N]     show the last messages again (10, or N)
/list [PATTERN]   list accounts: * stands for any characters, ? for one
/who              who you are, and who of those you talked with is here
/react ID [TEXT]  react to a message with an emoji or another short text; without one, take the reaction back
/edit ID TEXT     change the text of a message to the one whom you talk with
/delete ID…       delete messages from your mailbox
/say TEXT         send a text that begins with / or @
/typing           tell the one whom you talk with that you write; typing does so by itself
/login            log in again, after your login has ended
/quit             end; so does Ctrl-D. Ctrl-C clears the line";

/// The commands, for completion.
pub(super) const COMMANDS: [&str; 13] = [
    "/delete ",
    "/edit ",
    "/help",
    "/list ",
    "/login",
    "/messages ",
    "/quit",
    "/react ",
    "/read ",
    "/say ",
    "/to ",
    "/typing",
    "/who",
];

/// What a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    /// A message to the one whom the user talks with.
    Text(String),
    /// A message to somebody.
    Message {
        to: String,
        text: String,
    },
    /// To talk with somebody.
    To(String),
    Read(u32),
    Messages(u32),
    List(String),
    Who,
    Delete(Vec<u64>),
    /// Empty: takes the reaction back.
    React(u64, String),
    Edit(u64, String),
    Typing,
    LogIn,
    Help,
    Quit,
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(super) fn parse(line: &str) -> Result<Said, String> {
    if line.trim().is_empty() {
        return Ok(Said::Nothing);
    }
    if let Some(message) = line.strip_prefix('@') {
        let (to, text) = message.split_once(char::is_whitespace).unwrap_or((message, ""));
        if to.is_empty() || text.trim().is_empty() {
            return Err("to whom, and what? Write @NAME TEXT".to_owned());
        }
        return Ok(Said::Message { to: to.to_owned(), text: text.to_owned() });
    }
    let Some(command) = line.strip_prefix('/') else { return Ok(Said::Text(line.to_owned())) };
    let (command, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let said = match (command, argument.trim()) {
        ("say", "") => return Err("what? Write /say TEXT".to_owned()),
        ("say", _) => Said::Text(argument.to_owned()),
        ("to", name) if name.is_empty() || name.contains(char::is_whitespace) => {
            return Err("with whom? Write /to NAME".to_owned());
        }
        ("to", name) => Said::To(name.trim_start_matches('@').to_owned()),
        ("read", count) => Said::Read(number(count)?),
        ("messages", count) => Said::Messages(number(count)?),
        ("list", pattern) => Said::List(pattern.to_owned()),
        ("delete", ids) => Said::Delete(numbers(ids)?),
        ("react", what) => match numbered(what) {
            Some((id, reaction)) if !reaction.contains(char::is_whitespace) => Said::React(id, reaction.to_owned()),
            _ => return Err("to which, and how? Write /react 17 👍".to_owned()),
        },
        ("edit", what) => match numbered(what) {
            Some((id, text)) if !text.is_empty() => Said::Edit(id, text.to_owned()),
            _ => return Err("which, and what shall it say? Write /edit 17 TEXT".to_owned()),
        },
        ("who", "") => Said::Who,
        ("typing", "") => Said::Typing,
        ("login", "") => Said::LogIn,
        ("help", _) => Said::Help,
        ("quit" | "exit", "") => Said::Quit,
        (command, _) if COMMANDS.iter().any(|known| known.trim() == format!("/{command}")) => {
            return Err(format!("write /{command} alone"));
        }
        _ => {
            return Err(format!(
                "there is no /{}; /help lists what there is, /say sends a text as it is",
                visible(command)
            ));
        }
    };
    Ok(said)
}

/// A message's number, and what follows it.
fn numbered(text: &str) -> Option<(u64, &str)> {
    let (id, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    Some((id.trim_start_matches('#').parse().ok()?, rest.trim_start()))
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(HISTORY),
        Ok(count @ 1..=LIMIT) => Ok(count),
        _ => Err(format!("how many? Write a number from 1 to {LIMIT}")),
    }
}

fn numbers(text: &str) -> Result<Vec<u64>, String> {
    let ids = text.split_whitespace().map(|id| id.trim_start_matches('#').parse::<u64>());
    match ids.collect::<Result<Vec<_>, _>>() {
        Ok(ids) if (1..=LIMIT as usize).contains(&ids.len()) => Ok(ids),
        _ => Err("which? Write the numbers of messages: /delete 17 18".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let message = |to: &str, text: &str| Said::Message { to: to.to_owned(), text: text.to_owned() };
        for (line, expected) in [
            ("", Said::Nothing),
            ("  ", Said::Nothing),
            ("hello, you", Said::Text("hello, you".to_owned())),
            ("/say /quit", Said::Text("/quit".to_owned())),
            ("@bob hi there", message("bob", "hi there")),
            ("/to bob", Said::To("bob".to_owned())),
            ("/to @bob ", Said::To("bob".to_owned())),
            ("/read", Said::Read(10)),
            ("/read 1000", Said::Read(1_000)),
            ("/messages 3", Said::Messages(3)),
            ("/list", Said::List(String::new())),
            ("/list b*", Said::List("b*".to_owned())),
            ("/delete 1 #2", Said::Delete(vec![1, 2])),
            ("/react 17 👍", Said::React(17, "👍".to_owned())),
            ("/react #17", Said::React(17, String::new())),
            ("/edit 17 hello  you", Said::Edit(17, "hello  you".to_owned())),
            ("/who", Said::Who),
            ("/help me", Said::Help),
            ("/quit", Said::Quit),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line:?}");
        }
    }

    #[test]
    fn wrong_lines_say_what_would_be_right() {
        for (line, expected) in [
            ("@bob", "@NAME TEXT"),
            ("@ hi", "@NAME TEXT"),
            ("/to", "/to NAME"),
            ("/to bob eve", "/to NAME"),
            ("/say ", "/say TEXT"),
            ("/read 0", "from 1 to 1000"),
            ("/messages x", "from 1 to 1000"),
            ("/delete", "/delete 17 18"),
            ("/delete x", "/delete 17 18"),
            ("/react", "/react 17"),
            ("/react x y", "/react 17"),
            ("/react 17 two words", "/react 17"),
            ("/edit 17", "/edit 17 TEXT"),
            ("/edit x y", "/edit 17 TEXT"),
            ("/quit now", "/quit alone"),
            ("/frob", "there is no /frob; /help"),
            ("/", "there is no /; /help"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_command() {
        for command in COMMANDS.iter().filter(|command| **command != "/help") {
            assert!(HELP.contains(command.trim()), "{command}");
        }
    }
}
