//! The program `chat` against a small stand-in for the servers: what it prints, saves and survives.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, but not in their helpers")]

mod server;
mod talk;
mod vote;

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use server::{Fault, Server};

/// One user's environment.
struct User {
    folder: tempfile::TempDir,
    endpoints: String,
    name: &'static str,
}

impl User {
    fn new(server: &Server, name: &'static str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), endpoints: server.addresses.join(","), name }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chat"));
        command.args(args).env_clear();
        command.env("CHAT_STATE_DIR", self.folder.path()).env("CHAT_PASSWORD", format!("secret of {}", self.name));
        command.env("CHAT_ENDPOINTS", &self.endpoints);
        command
    }

    /// Runs `chat`, expects `code`, and returns (standard output, standard error).
    fn run(&self, code: i32, args: &[&str]) -> (String, String) {
        self.run_with(code, args, "")
    }

    fn run_with(&self, code: i32, args: &[&str], input: &str) -> (String, String) {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(code), "chat {args:?}\nstdout: {stdout}\nstderr: {stderr}");
        (stdout, stderr)
    }

    fn enter(&self) {
        self.run(0, &["register", self.name]);
        self.run(0, &["login", self.name]);
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join(format!("{}.json", self.name))
    }
}

#[test]
fn two_users_talk() {
    let server = Server::start(3);
    let (alice, bob) = (User::new(&server, "alice"), User::new(&server, "bob"));
    assert_eq!(alice.run(0, &["register", "alice"]).0, "registered alice; next: chat login alice\n");
    let (_, error) = alice.run(1, &["register", "alice"]);
    assert!(error.contains("choose another name"), "{error}");
    assert_eq!(alice.run(0, &["login", "alice"]).0, "logged in as alice; 0 unread\n");
    bob.enter();

    assert_eq!(alice.run(0, &["list"]).0, "alice\nbob\n");
    assert_eq!(alice.run(0, &["-o", "json", "list"]).0, "{\"accounts\":[\"alice\",\"bob\"]}\n");
    assert_eq!(alice.run(0, &["send", "bob", "Hello,", "Bob!"]).0, "sent 1 to bob\n");
    let (_, error) = alice.run(1, &["send", "nobody", "x"]);
    assert!(error.contains("`chat list` shows all accounts"), "{error}");
    assert_eq!(bob.run(0, &["whoami"]).0, "bob; 1 unread\n");
    let (read, _) = bob.run(0, &["-o", "json", "read"]);
    assert!(read.contains("\"text\":\"Hello, Bob!\"") && read.contains("\"from\":\"alice\""), "{read}");
    assert_eq!(bob.run(0, &["read"]).0, "no messages\n");
    assert_eq!(bob.run(0, &["logout"]).0, "logged out bob\n");
    let (_, error) = bob.run(1, &["read"]);
    assert!(error.contains("run `chat login bob`"), "{error}");
}

#[test]
fn a_wrong_password_does_not_log_in() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.run(0, &["register", "alice"]);
    let mut command = alice.command(&["login", "alice"]);
    let output = command.env("CHAT_PASSWORD", "guess").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!alice.state().exists());
}

#[test]
fn lines_are_sent_once_each_while_servers_fail() {
    let server = Server::start(3);
    let (alice, bob) = (User::new(&server, "alice"), User::new(&server, "bob"));
    alice.enter();
    bob.enter();
    let lines: String = (1..=40).map(|n| format!("line {n}\n")).collect();
    for (window, first) in [("1", 1), ("8", 41)] {
        server.faults(&[Fault::Broken, Fault::ExecutesThenBroken, Fault::ExecutesThenBroken, Fault::Broken]);
        let (sent, _) = alice.run_with(0, &["send", "bob", "--stdin", "--window", window], &lines);
        let expected: String = (first..first + 40).map(|id| format!("sent {id} to bob\n")).collect();
        assert_eq!(sent, expected);
    }
    let texts: Vec<String> = (1..=40).chain(1..=40).map(|n| format!("line {n}")).collect();
    assert_eq!(server.texts("bob"), texts);
}

#[test]
fn a_full_mailbox_ends_the_sending_at_once() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    let lines = format!("a\n{}", "full\n".repeat(50));
    for window in ["1", "8"] {
        let (sent, error) = alice.run_with(1, &["send", "alice", "--stdin", "--window", window], &lines);
        assert_eq!(sent.lines().count(), 1, "{sent}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("stopped at line 2; sent before it: 1") && error.contains("mailbox is full"), "{error}");
    }
}

#[test]
fn errors_are_json_where_json_is_wanted() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    let told = |code: i32, args: &[&str], input: &str| -> Vec<serde_json::Value> {
        let (_, error) = alice.run_with(code, args, input);
        error.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    };
    let refused = told(1, &["-o", "json", "send", "nobody", "x"], "");
    assert_eq!(refused[0]["error"]["reason"], "NO_SUCH_ACCOUNT", "{refused:?}");
    assert!(refused[0]["error"]["message"].as_str().unwrap().contains("chat list"), "{refused:?}");
    assert_eq!(told(2, &["-o", "json", "send"], "")[0]["error"]["reason"], "USAGE");
    assert_eq!(told(2, &["--output=json", "frob"], "")[0]["error"]["reason"], "USAGE");
    assert_eq!(told(2, &["-o", "json", "delete-account"], "")[0]["error"]["reason"], "USAGE");
    let lines = told(1, &["-o", "json", "send", "alice", "--stdin"], "a\nrefuse me\n");
    assert_eq!((&lines[0]["line"], &lines[0]["error"]["reason"]), (&2.into(), &"INVALID".into()), "{lines:?}");
    server.forget_sessions();
    assert_eq!(told(1, &["-o", "json", "whoami"], "")[0]["error"]["reason"], "SESSION_EXPIRED");
    assert_eq!(told(1, &["-o", "json", "--user", "eve", "whoami"], "")[0]["error"]["reason"], "NOT_LOGGED_IN");
}

#[test]
fn a_usage_line_names_what_is_missing_and_not_what_the_environment_sets() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    let (_, error) = alice.run(2, &["send"]);
    assert!(error.contains("Usage: chat send [OPTIONS] <TO> [TEXT]...\n"), "{error}");
}

#[test]
fn a_refused_line_fails_the_command_and_not_the_others() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    let (sent, error) = alice.run_with(1, &["-o", "json", "send", "alice", "--stdin"], "a\n\nrefuse me\nb\n");
    assert_eq!(sent.lines().count(), 2, "{sent}");
    assert!(sent.contains("\"line\":4"), "{sent}");
    assert!(error.contains("\"line\":3"), "{error}");
    assert_eq!(server.texts("alice"), ["a", "b"]);
    let (_, error) = alice.run_with(1, &["send", "alice", "--stdin"], "refuse me\n");
    assert!(error.contains("line 1 was not sent"), "{error}");
}

#[test]
fn a_command_killed_before_it_saved_is_stepped_over_or_answered_again() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    let before = fs::read(alice.state()).unwrap();
    assert_eq!(alice.run(0, &["send", "alice", "first"]).0, "sent 1 to alice\n");

    // As if it had been killed after its effect: the file says what it said before.
    fs::write(alice.state(), &before).unwrap();
    assert_eq!(alice.run(0, &["send", "alice", "first"]).0, "sent 1 to alice\n", "the same command: the same message");
    fs::write(alice.state(), &before).unwrap();
    assert_eq!(alice.run(0, &["send", "alice", "second"]).0, "sent 2 to alice\n", "another command: another message");
    assert_eq!(server.texts("alice"), ["first", "second"]);
}

#[test]
fn listen_shows_each_message_once_and_goes_on() {
    let server = Server::start(2);
    let alice = User::new(&server, "alice");
    alice.enter();
    for text in ["one", "two", "three"] {
        alice.run(0, &["send", "alice", text]);
    }
    let (shown, _) = alice.run(0, &["listen", "--count", "2"]);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.contains("alice: one") && shown.contains("alice: two"), "{shown}");
    let (shown, _) = alice.run(0, &["-o", "json", "listen", "--timeout", "0.5"]);
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("\"text\":\"three\""), "{shown}");
    assert_eq!(alice.run(0, &["whoami"]).0, "alice; 0 unread\n");
    let (_, error) = alice.run(1, &["listen", "--timeout", "0.2", "--count", "1"]);
    assert!(error.contains("0 of 1 messages came in time"), "{error}");
}

#[test]
fn reactions_and_edits_are_told_listed_and_listened_to() {
    let server = Server::start(2);
    let (alice, bob) = (User::new(&server, "alice"), User::new(&server, "bob"));
    alice.enter();
    bob.enter();
    alice.run(0, &["send", "bob", "helo"]);
    assert_eq!(bob.run(0, &["react", "1", "👍"]).0, "reacted to 1: 👍\n");
    assert_eq!(alice.run(0, &["edit", "bob", "1", "hello,", "Bob"]).0, "edited 1 to bob\n");
    let (shown, _) = bob.run(0, &["messages"]);
    assert!(shown.contains("hello, Bob (edited) [👍]"), "{shown}");

    let (heard, _) = bob.run(0, &["listen", "--timeout", "0.5"]);
    assert!(heard.contains("alice: hello, Bob (edited)") && heard.contains("edited: "), "{heard}");
    let (heard, _) = alice.run(0, &["-o", "json", "listen", "--timeout", "0.5"]);
    let told: serde_json::Value = serde_json::from_str(heard.trim()).unwrap();
    assert_eq!((&told["event"], &told["from"], &told["reaction"]), (&"reaction".into(), &"bob".into(), &"👍".into()));
    let (again, _) = alice.run(0, &["listen", "--timeout", "0.2"]);
    assert_eq!(again, "", "each once");

    assert_eq!(bob.run(0, &["react", "1", "--remove"]).0, "took back the reaction to 1\n");
    let (_, error) = bob.run(1, &["react", "99", "👍"]);
    assert!(error.contains("no such message"), "{error}");
    bob.run(2, &["react", "1"]);
    bob.run(2, &["edit", "alice", "1", ""]);
}

#[test]
fn an_older_version_is_said_to_know_no_reactions() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    alice.run(0, &["send", "alice", "hi"]);
    server.roll_back();
    for args in [&["react", "1", "ok"][..], &["edit", "alice", "1", "ho"]] {
        let (_, error) = alice.run(1, args);
        assert!(error.contains("the running version doesn't know this; it is older than this program"), "{error}");
    }
    let (_, error) = alice.run(1, &["-o", "json", "react", "1", "ok"]);
    assert!(error.contains("\"reason\":\"UNKNOWN_ACTION\""), "{error}");
}

#[test]
fn an_expired_login_says_to_log_in_again() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    server.forget_sessions();
    let (_, error) = alice.run(1, &["send", "alice", "x"]);
    assert!(error.contains("the login of alice has expired; run `chat login alice`"), "{error}");
    fs::write(alice.state(), "{").unwrap();
    let (_, error) = alice.run(1, &["read"]);
    assert!(error.contains("damaged") && error.contains("run `chat login alice`"), "{error}");
    alice.run(0, &["login", "alice"]);
    alice.run(0, &["read"]);
}

#[test]
fn silent_servers_are_told_in_time() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    server.faults(&vec![Fault::Broken; 1000]);
    let (_, error) = alice.run(1, &["--deadline", "0.3", "send", "alice", "x"]);
    assert!(error.contains("Repeat just this, before any other command"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}
