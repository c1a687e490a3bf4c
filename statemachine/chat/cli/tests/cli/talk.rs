//! Talking, on plain lines, as JSON, and at a terminal.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use replicator_proto::chat::v1::{Presence, PresenceNotice, TypingNotice, chat_push::Event};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::Value;

use crate::{
    User,
    server::{Fault, Server},
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A talk that goes on.
struct Talk {
    child: Child,
    input: Option<Box<dyn Write>>,
    output: mpsc::Receiver<String>,
    heard: Vec<String>,
}

fn read(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
    receiver
}

impl Talk {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), read(child.stdout.take().unwrap()));
        Self { child, input: Some(Box::new(input)), output, heard: Vec::new() }
    }

    /// A talk as JSON, once it is ready.
    fn json(user: &User) -> Self {
        let mut talk = Self::start(user.command(&["-o", "json"]));
        talk.event("ready");
        talk
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for a line.
    fn hear(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.heard.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => panic!("no {what} ({error}), only:\n{}", self.heard.join("\n")),
            }
        }
    }

    fn event(&mut self, kind: &str) -> Value {
        let line = self.hear(kind, |line| serde_json::from_str::<Value>(line).unwrap()["event"] == kind);
        serde_json::from_str(&line).unwrap()
    }

    /// Says no more, waits for the end, and returns the exit code.
    fn end(&mut self) -> i32 {
        self.input = None;
        self.ends()
    }

    /// Waits for an end that comes by itself.
    fn ends(&mut self) -> i32 {
        while let Ok(line) = self.output.recv_timeout(PATIENCE) {
            self.heard.push(line);
        }
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < PATIENCE, "{what}: not reached");
        thread::sleep(Duration::from_millis(5));
    }
}

fn couple(server: &Server) -> (User, User) {
    let (alice, bob) = (User::new(server, "alice"), User::new(server, "bob"));
    alice.enter();
    bob.enter();
    (alice, bob)
}

#[test]
fn a_script_shows_the_last_messages_and_sends_its_lines_in_order() {
    let server = Server::start(2);
    let (alice, bob) = couple(&server);
    for n in 1..=12 {
        server.deliver("bob", "alice", &format!("earlier {n}"));
    }
    let script = "/to bob\none\n@alice note to self\n/say /two\n\n/read 1\n/delete 3 4\n/list\n";
    let (said, _) = alice.run_with(0, &[], script);
    let said: Vec<&str> = said.lines().map(|line| line.split_once(" #").map_or(line, |(_, line)| line)).collect();
    assert_eq!(said[0], "You are alice; 12 unread");
    let shown: Vec<String> = (3..=12).map(|n| format!("{n} bob: earlier {n} *")).collect();
    assert_eq!(said[1..11], shown);
    assert!(said.contains(&"13 to bob: one") && said.contains(&"15 to bob: /two"), "{said:?}");
    assert_eq!(
        said.iter().filter(|line| line.ends_with("alice: note to self")).count(),
        2,
        "sent and pushed: {said:?}"
    );
    assert!(said.iter().any(|line| line.ends_with("bob   earlier 1")), "the oldest unread one: {said:?}");
    assert!(said.ends_with(&["deleted 2 of 2", "alice", "bob"]), "{said:?}");
    assert_eq!(server.texts("bob"), ["one", "/two"]);
    assert_eq!(server.unread("alice"), 1, "what was shown is read");
    bob.run(0, &["read"]);
}

#[test]
fn a_line_that_fails_fails_the_script_and_not_the_next_line() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let (said, errors) = alice.run_with(1, &[], "lost\n@nobody x\n/frob\n@bob refuse me\n@bob kept\n");
    assert!(said.contains("to bob: kept"), "{said}");
    for expected in
        ["to whom?", "not sent to nobody (\"x\")", "there is no /frob", "refused as asked", "lines that failed: 4"]
    {
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    assert_eq!(server.texts("bob"), ["kept"]);
}

#[test]
fn reactions_and_edits_go_and_come_in_a_talk() {
    let server = Server::start(1);
    let (alice, bob) = couple(&server);
    let (mut alice, mut bob) = (Talk::json(&alice), Talk::json(&bob));
    alice.say("/edit 1 to nobody");
    assert!(alice.event("error")["message"].as_str().unwrap().contains("Write /to NAME first"));
    alice.say("/to bob");
    alice.say("helo");
    bob.event("message");
    bob.say("/react 1 👍");
    assert_eq!(bob.event("reacted")["reaction"], "👍");
    let reaction = alice.event("reaction");
    assert_eq!((&reaction["from"], &reaction["message_id"]), (&"bob".into(), &1.into()), "{reaction}");
    alice.say("/edit #1 hello");
    assert_eq!(alice.event("changed")["text"], "hello");
    let edited = bob.event("edited");
    assert_eq!((&edited["text"], &edited["reaction"]), (&"hello".into(), &"👍".into()), "{edited}");
    bob.say("/react 1");
    assert_eq!(bob.event("reacted")["reaction"], Value::Null);
    server.roll_back();
    bob.say("/react 1 👍");
    assert!(bob.event("error")["message"].as_str().unwrap().contains("older than this program"));
    assert_eq!((alice.end(), bob.end()), (1, 1));
}

#[test]
fn messages_come_while_lines_go_and_each_once() {
    let server = Server::start(3);
    let (alice, bob) = couple(&server);
    let mut alice = Talk::json(&alice);
    let mut bob = Talk::json(&bob);
    for (talk, to) in [(&mut alice, "bob"), (&mut bob, "alice")] {
        talk.say(&format!("/to {to}"));
    }
    server.faults(&[Fault::Broken, Fault::ExecutesThenBroken, Fault::ExecutesThenBroken, Fault::Broken]);
    for n in 0..20 {
        alice.say(&format!("a{n}"));
        bob.say(&format!("b{n}"));
    }
    for (talk, from) in [(&mut alice, "b"), (&mut bob, "a")] {
        for n in 0..20 {
            assert_eq!(talk.event("message")["text"], format!("{from}{n}"));
        }
    }
    assert_eq!((alice.end(), bob.end()), (0, 0));
    for talk in [&alice, &bob] {
        let messages = talk.heard.iter().filter(|line| line.contains("\"event\":\"message\"")).count();
        let sent = talk.heard.iter().filter(|line| line.contains("\"event\":\"sent\"")).count();
        assert_eq!((messages, sent), (20, 20), "{:?}", talk.heard);
    }
    assert_eq!((server.unread("alice"), server.unread("bob")), (0, 0));
}

#[test]
fn what_a_talk_has_shown_is_not_shown_again_by_the_next_one_or_by_listen() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let mut talk = Talk::json(&alice);
    server.deliver("bob", "alice", "once");
    assert_eq!(talk.event("message")["text"], "once");
    wait_until("it is marked", || server.unread("alice") == 0);
    assert_eq!(talk.end(), 0);
    let (heard, _) = alice.run(0, &["listen", "--timeout", "0.5"]);
    assert_eq!(heard, "");
    server.deliver("bob", "alice", "later");
    let mut talk = Talk::json(&alice);
    assert_eq!(talk.end(), 0);
    let new: Vec<bool> = talk
        .heard
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["event"] == "message")
        .map(|event| event["unread"] == true)
        .collect();
    assert_eq!(new, [false, true]);
}

#[test]
fn notices_pass_to_programs_and_never_into_plain_lines() {
    let server = Server::start(1);
    let (alice, bob) = couple(&server);
    let mut talk = Talk::json(&alice);
    let mut plain = bob.command(&[]);
    plain.stderr(Stdio::null());
    let mut plain = Talk::start(plain);
    plain.hear("beginning", |line| line.starts_with("You are bob"));
    plain.say("/to alice");
    plain.say("/typing");
    assert_eq!(talk.event("typing")["from"], "bob");
    assert_eq!(server.typed_to(), ["alice"]);
    let notice = |account: &str, presence: Presence| {
        Event::Presence(PresenceNotice { account: account.to_owned(), presence: presence.into(), asks: false })
    };
    server.pass("bob", Event::Typing(TypingNotice { from: "alice".to_owned() }));
    server.pass("bob", notice("alice", Presence::Here));
    let mut asked = (0..100).map(|_| {
        plain.say("/who");
        plain.hear("/who", |line| line.contains("Here: "))
    });
    // What the server passes comes beside what is typed.
    assert!(asked.any(|who| who.contains("Here: alice. Not here: nobody")), "alice's talk has answered");
    assert_eq!(plain.end(), 0);
    let gone = talk.hear("farewell", |line| line.contains("\"gone\""));
    assert!(gone.contains("\"account\":\"bob\""), "{gone}");
    assert!(!plain.heard.iter().any(|line| line.contains("typing") || line.contains("is here")), "{:?}", plain.heard);
}

#[test]
fn an_expired_login_is_renewed_where_the_password_is_known_and_the_line_goes_on() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let mut talk = Talk::json(&alice);
    server.forget_sessions();
    server.deliver("bob", "alice", "while nobody was logged in");
    assert_eq!(talk.event("login")["state"], "renewed");
    talk.say("@bob still here");
    talk.event("sent");
    assert_eq!(talk.end(), 0);
    assert_eq!(server.texts("bob"), ["still here"]);
    let heard = talk.heard.iter().filter(|line| line.contains("while nobody was logged in"));
    assert_eq!(heard.count(), 1, "{:?}", talk.heard);
}

#[test]
fn an_expired_login_without_a_password_ends_the_talk_and_says_what_to_do() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let mut command = alice.command(&["-o", "json"]);
    command.env_remove("CHAT_PASSWORD").stderr(Stdio::piped());
    let mut talk = Talk::start(command);
    talk.event("ready");
    let mut errors = talk.child.stderr.take().unwrap();
    server.forget_sessions();
    assert_eq!(talk.ends(), 1);
    let mut told = String::new();
    errors.read_to_string(&mut told).unwrap();
    assert!(told.contains("run `chat login alice`") && told.contains("NOT_LOGGED_IN"), "{told}");
}

#[test]
fn without_a_login_it_says_how_to_get_one_or_logs_in_with_the_password_it_has() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    let (_, error) = alice.run(1, &[]);
    assert!(error.contains("chat login NAME") && error.contains("chat register NAME"), "{error}");
    alice.run(0, &["register", "alice"]);
    let (said, _) = alice.run(0, &["--user", "alice"]);
    assert!(said.contains("You are alice; 0 unread"), "{said}");
    assert_eq!(alice.run(0, &["whoami"]).0, "alice; 0 unread\n", "the login stays");
}

/// What a person at a terminal sees, as the bytes that come out of it.
struct Terminal {
    talk: Talk,
    master: File,
    seen: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(slave).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        command.env("TERM", "xterm").env("NO_COLOR", "1");
        let child = command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = child.spawn().unwrap();
        drop(command); // with its ends of the terminal, so that the end is seen
        let master = File::from(master);
        let mut output = master.try_clone().unwrap();
        let (sender, seen) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let talk = Talk { child, input: None, output: mpsc::channel().1, heard: Vec::new() };
        Self { talk, master, seen, text: String::new() }
    }

    fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this has come, and returns what came after the last time up to its end.
    fn see(&mut self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.text.find(wanted) {
                let rest = self.text.split_off(place + wanted.len());
                return std::mem::replace(&mut self.text, rest);
            }
            match self.seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {wanted:?} ({error}), only {:?}", self.text),
            }
        }
    }
}

#[test]
fn at_a_terminal_a_message_comes_above_the_line_and_the_line_stays() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let mut terminal = Terminal::start(alice.command(&[]));
    terminal.see("alice · 0 unread");
    terminal.keys("/to bob\r");
    terminal.see("to bob: ");
    terminal.keys("half a li");
    terminal.see("half a li");
    wait_until("bob is told that alice types", || server.typed_to() == ["bob"]);
    server.deliver("bob", "alice", "in between");
    // The message, then the status, then the line as it was.
    terminal.see("bob: in between\r\n");
    terminal.see("to bob: half a li");
    server.pass("alice", Event::Typing(TypingNotice { from: "bob".to_owned() }));
    terminal.see("bob is typing…");
    terminal.see("to bob: half a li");
    terminal.keys("ne\r");
    terminal.see("sent #2 to bob: half a line");
    assert_eq!(server.texts("bob"), ["half a line"]);
    terminal.keys("thrown away");
    terminal.see("thrown away");
    terminal.keys("\x03");
    terminal.see("to bob: ");
    terminal.keys("\x1b[A\r");
    terminal.see("sent #3 to bob: half a line");
    terminal.keys("\x04");
    assert!(terminal.talk.child.wait().unwrap().success());
    assert_eq!(server.texts("bob"), ["half a line", "half a line"]);
}

#[test]
fn at_a_terminal_a_login_that_ended_is_made_again_and_the_line_goes_on() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    // A password is asked for at the controlling terminal, which this makes of standard input.
    let mut command = alice.command(&[]);
    let mut with_terminal = Command::new("setsid");
    with_terminal.arg("--ctty").arg(command.get_program()).env_clear();
    with_terminal.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    with_terminal.env("PATH", "/usr/bin:/bin").env_remove("CHAT_PASSWORD");
    command = with_terminal;
    let mut terminal = Terminal::start(command);
    terminal.see("alice · 0 unread");
    alice.run(0, &["logout"]);
    terminal.see("/login asks for the password");
    terminal.keys("@bob not lost\r");
    for (password, told) in [("a guess", "the password is wrong"), ("secret of alice", "logged in again")] {
        terminal.keys("/login\r");
        terminal.see("Password of alice: ");
        terminal.keys(&format!("{password}\r"));
        terminal.see(told);
    }
    terminal.see("to bob: not lost");
    // Keys that come faster than lines are asked for are not lost either.
    terminal.keys("@bob one\r@bob two\r/quit\r");
    assert!(terminal.talk.child.wait().unwrap().success());
    assert_eq!(server.texts("bob"), ["not lost", "one", "two"]);
}

#[test]
fn a_talk_that_ends_in_the_middle_of_a_line_gives_the_terminal_back() {
    let server = Server::start(1);
    let (alice, _) = couple(&server);
    let mut terminal = Terminal::start(alice.command(&[]));
    let mode = |terminal: &Terminal| tcgetattr(&terminal.master).unwrap().local_modes;
    terminal.see("alice · 0 unread");
    terminal.keys("some words");
    terminal.see("some words");
    assert!(!mode(&terminal).contains(LocalModes::ECHO), "a line is being edited");
    server.delete_account("alice");
    terminal.see("the account alice was deleted");
    assert!(terminal.talk.child.wait().unwrap().success());
    assert!(mode(&terminal).contains(LocalModes::ECHO | LocalModes::ICANON));
}
