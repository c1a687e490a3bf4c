//! The command line, and its help.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, builder::styling};

use crate::vote::Votes;

const STYLES: styling::Styles = styling::Styles::styled()
    .header(styling::AnsiColor::Green.on_default().bold())
    .usage(styling::AnsiColor::Green.on_default().bold())
    .literal(styling::AnsiColor::Cyan.on_default().bold())
    .placeholder(styling::AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  export CHAT_ENDPOINTS=10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000
  chat register alice               make an account; asks for a new password
  chat login alice                  log in; the login is kept for the next commands
  chat                              talk: type messages, see those that come; /help says how
  chat list 'b*'                    accounts whose names begin with b
  chat send bob Hello, Bob!         send a message
  chat read                         show the oldest unread messages and mark them read
  chat react 17 👍                  react to message 17
  chat edit bob 18 Hello, Bob!      change what message 18 to bob says
  chat listen                       show messages as they come
  chat -o json messages | jq .      the whole mailbox, for programs
  seq 100 | chat send bob --stdin   one message per line
  chat --vote whoami                ask every server, and compare what they say

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the servers disagree (with --vote).";

/// The help of `chat` without a command is that of the talk.
const ABOUT: &str = "\
Chat over replicated servers: messages survive the failure of a minority of them.

Without a command, chat lets you talk: it shows the last messages, then those that come, and sends the lines that you type.
/to NAME chooses whom, and /help lists what else there is. Where standard input is no terminal, it reads the same lines from \
there, and with -o json it prints every event as one line of JSON.";

/// Chat over replicated servers: messages survive the failure of a minority of them.
#[derive(Debug, Parser)]
#[command(name = "chat", version, styles = STYLES, long_about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The servers, as host:port, separated by commas. One is enough; more survive more failures.
    /// Without it, those of the last login are used.
    #[arg(long, env = "CHAT_ENDPOINTS", value_delimiter = ',', value_name = "HOST:PORT,…", global = true)]
    pub(crate) endpoints: Vec<String>,
    /// Whose login to use, if you have several. Default: the last one.
    #[arg(long, env = "CHAT_USER", value_name = "NAME", global = true)]
    pub(crate) user: Option<String>,
    /// How to print: tables for people, JSON for programs.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", global = true)]
    pub(crate) output: Format,
    /// Take the password from the first line of this file. Otherwise from the environment's CHAT_PASSWORD, or by asking.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) password_file: Option<PathBuf>,
    /// Where logins are kept. Default: $XDG_STATE_HOME/chat, or ~/.local/state/chat.
    #[arg(long, env = "CHAT_STATE_DIR", value_name = "FOLDER", global = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// How long to try, in seconds, while servers don't answer.
    #[arg(long, env = "CHAT_DEADLINE", value_name = "SECONDS", default_value = "10", value_parser = seconds, global = true)]
    pub(crate) deadline: Duration,
    /// Ask every server of the cluster, and compare their answers: prints AGREED 3/3, MAJORITY 2/3, DISAGREE or
    /// UNCONFIRMED beside the answer. Of single requests: not for `listen`, --window, and talking.
    #[arg(long, global = true)]
    pub(crate) vote: bool,
    /// What --vote has found.
    #[arg(skip)]
    pub(crate) votes: Votes,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it, or the help that was asked for.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        Self::from_arg_matches(&command_line().try_get_matches()?)
    }
}

/// The command line, with usage lines that name what a command needs. Left to itself, clap adds every option that the
/// environment sets, as if it had to be given.
fn command_line() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |mut command| {
            let usage = command.render_usage().to_string();
            let usage = usage.trim_start_matches("Usage: ").to_owned();
            command.override_usage(usage)
        });
    }
    command
}

/// Whether a command line that can't be read asks for JSON: so are its mistakes told.
pub(crate) fn wants_json(mut args: impl Iterator<Item = String>) -> bool {
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-o" | "--output" => return args.next().as_deref() == Some("json"),
            "-ojson" | "-o=json" | "--output=json" => return true,
            "--" => return false,
            _ => {}
        }
    }
    false
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences.
    #[default]
    Table,
    /// One JSON document; from `listen`, `send --stdin` and talking, one per line. Errors too, on standard error.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an account. Asks for a new password, which never leaves this computer.
    Register {
        /// The account's name: up to 64 bytes, without spaces, * and ?. Default: --user.
        name: Option<String>,
    },
    /// Log in, and keep the login for the next commands.
    Login {
        /// The account's name. Default: --user.
        name: Option<String>,
        /// How long the login outlives its last use, such as 90s, 30m, 1h or 7d.
        #[arg(long, default_value = "1h", value_parser = duration, value_name = "TIME")]
        ttl: Duration,
    },
    /// Log out and forget the login.
    Logout,
    /// List accounts.
    List {
        /// Only these: * stands for any characters, ? for one. Quote it.
        pattern: Option<String>,
    },
    /// Send a message, or with --stdin many.
    #[command(after_help = SEND_EXAMPLES)]
    Send(Send),
    /// Show the oldest unread messages and mark them read.
    Read {
        /// At most this many.
        #[arg(default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
    },
    /// Show the mailbox, read messages too. Marks nothing.
    Messages {
        /// Only unread ones.
        #[arg(long)]
        unread: bool,
        /// Only messages with a greater number.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: u64,
        /// Only the last so many of them.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        last: Option<u32>,
    },
    /// React to a message in your mailbox, with an emoji or another short text. Its sender is told.
    React {
        /// The message's number, as `messages` and `listen` show it.
        #[arg(value_name = "ID")]
        id: u64,
        /// The reaction, in the place of the one that is there: at most 32 bytes, without spaces.
        #[arg(required_unless_present = "remove")]
        reaction: Option<String>,
        /// Take the reaction back.
        #[arg(long, conflicts_with = "reaction")]
        remove: bool,
    },
    /// Change the text of a message that you have sent. Its recipient sees that it was edited.
    Edit {
        /// The recipient's name.
        to: String,
        /// The message's number, as `send` has printed it.
        #[arg(value_name = "ID")]
        id: u64,
        /// The new text; several words are joined by spaces.
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Delete messages from your mailbox.
    DeleteMessages {
        /// Their numbers, as `messages` shows them. Unknown ones are skipped.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u64>,
    },
    /// Delete your account, with its mailbox and all unread messages in it.
    DeleteAccount {
        /// Really.
        #[arg(long)]
        yes: bool,
    },
    /// Show messages as they come, each once, and mark them read; and what is edited, and who reacts. Goes on where it was stopped.
    Listen {
        /// Stop after this many messages. Edits and reactions don't count.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Stop after this many seconds; with --count, fail if that many messages haven't come by then.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<Duration>,
    },
    /// Show who is logged in, and how many messages are unread.
    Whoami,
}

const SEND_EXAMPLES: &str = "\
Examples:
  chat send bob Hello, Bob!
  chat send bob -- --strange-looking text
  seq 1000 | chat send bob --stdin                 prints `sent 17 to bob` for each line
  chat send bob --stdin --window 32 < many-lines   faster: up to 32 lines on their way at once";

/// What to send, and to whom.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The recipient's name.
    pub(crate) to: String,
    /// The message; several words are joined by spaces.
    #[arg(required_unless_present = "stdin")]
    pub(crate) text: Vec<String>,
    /// Send each line of standard input as a message, and print a line for each that has arrived. Empty lines are
    /// skipped.
    #[arg(long, conflicts_with = "text")]
    pub(crate) stdin: bool,
    /// How many lines may be on their way at once; one by default. They arrive in order all the same.
    #[arg(long, value_name = "N", requires = "stdin", conflicts_with = "text",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) window: Option<u32>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    // Clocks can't go further; nobody waits longer than a century.
    if duration.is_zero() || duration > Duration::from_secs(3_000_000_000) {
        return Err("expected a number of seconds above 0 and below 3,000,000,000".into());
    }
    Ok(duration)
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("expected a number and a unit: 90s, 30m, 1h or 7d".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number and a unit: 90s, 30m, 1h or 7d".to_owned())?;
    match number.checked_mul(unit) {
        Some(seconds @ 1..=3_000_000_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected more than 0 s and less than a century".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        command_line().debug_assert();
    }

    #[test]
    fn a_usage_line_names_no_option_that_the_environment_sets() {
        let error = command_line().try_get_matches_from(["chat", "--endpoints", "a:1", "send"]).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("Usage: chat send [OPTIONS] <TO> [TEXT]...\n"), "{said}");
    }

    #[test]
    fn json_is_recognised_on_a_line_that_is_wrong() {
        let wants = |line: &str| wants_json(line.split(' ').map(str::to_owned));
        for line in ["-o json frob", "send --output=json", "-ojson x", "frob --output json"] {
            assert!(wants(line), "{line}");
        }
        for line in ["frob", "-o table frob", "send bob -- -o json", "-o"] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "1", "h", "1w", "-1s", "0s", "1.5h", "99999999999999999999d", "１h"] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
        for bad in ["", "-1", "0", "NaN", "inf", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn text_or_lines_but_not_both() {
        assert!(Cli::try_parse_from(["chat", "send", "bob", "hi", "there"]).is_ok());
        assert!(Cli::try_parse_from(["chat", "send", "bob", "--stdin", "--window", "8"]).is_ok());
        assert!(Cli::try_parse_from(["chat", "send", "bob"]).is_err());
        assert!(Cli::try_parse_from(["chat", "send", "bob", "hi", "--stdin"]).is_err());
        assert!(Cli::try_parse_from(["chat", "send", "bob", "hi", "--window", "8"]).is_err());
        assert!(Cli::try_parse_from(["chat"]).is_ok_and(|cli| cli.command.is_none()));
        assert!(Cli::try_parse_from(["chat", "react", "1"]).is_err());
        assert!(Cli::try_parse_from(["chat", "react", "1", "ok", "--remove"]).is_err());
        assert!(Cli::try_parse_from(["chat", "edit", "bob", "1"]).is_err());
    }
}
