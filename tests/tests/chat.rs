//! The chat, end to end, as two people use it: the program `chat` against three nodes.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, PATIENCE, Ran, Scenario, chat, module, run, scenario, until};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

struct User {
    name: &'static str,
    endpoints: String,
    state_dir: PathBuf,
    password: String,
}

impl User {
    fn new(s: &Scenario, cluster: &Cluster, name: &'static str) -> Self {
        let state_dir = s.dir().join(format!("home-of-{name}"));
        Self { name, endpoints: cluster.endpoints(), state_dir, password: format!("the password of {name}") }
    }

    async fn run(&self, args: &[&str]) -> Result<Ran> {
        let state_dir = self.state_dir.display().to_string();
        let environment = [
            ("CHAT_ENDPOINTS", self.endpoints.as_str()),
            ("CHAT_STATE_DIR", &state_dir),
            ("CHAT_PASSWORD", &self.password),
            ("CHAT_DEADLINE", "20"),
        ];
        run(&chat(), args, &environment).await
    }

    async fn json(&self, args: &[&str]) -> Result<Value> {
        self.run(&[&["-o", "json"], args].concat()).await?.exits(0)?.json()
    }

    /// Runs a command that must be refused, with these words.
    async fn refused(&self, args: &[&str], words: &[&str]) -> Result<()> {
        self.run(args).await?.exits(1)?.complains_of(words)?;
        Ok(())
    }

    async fn enter(&self) -> Result<()> {
        self.json(&["register", self.name]).await?;
        self.json(&["login", self.name]).await?;
        Ok(())
    }
}

#[test]
fn reactions_and_edits_are_told_to_whom_they_concern() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        let id = alice.json(&["send", "bob", "helo"]).await?["message_id"].to_string();
        let (mut talk, _) = alice.talk().await?;
        bob.json(&["react", &id, "👍"]).await?;
        let told = talk.event("reaction", |_| true).await?;
        ensure!((&told["from"], &told["reaction"]) == (&"bob".into(), &"👍".into()), "{told}");
        talk.say("/to bob").await?;
        talk.say(&format!("/edit {id} hello")).await?;
        talk.event("changed", |event| event["pushed_to"] == 1).await?;
        let mut heard = String::new();
        until("bob hears of the edit", async || {
            // It goes on where it stopped.
            heard += &bob.run(&["listen", "--timeout", "1"]).await?.exits(0)?.stdout;
            ensure!(heard.contains("edited: ") && heard.contains("hello (edited) [👍]"), "{heard:?}");
            Ok(())
        })
        .await?;
        let mailbox = bob.json(&["messages"]).await?;
        let message = &mailbox["messages"][0];
        ensure!((&message["text"], &message["reaction"]) == (&"hello".into(), &"👍".into()), "{mailbox}");
        bob.refused(&["edit", "bob", &id, "forged"], &["no such message of yours"]).await?;
        bob.refused(&["react", "99", "👍"], &["no such message"]).await?;
        talk.end().await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn version_1_is_said_to_know_no_reactions_and_goes_on() {
    scenario(async |s| {
        let cluster = s.cluster(1, &module("chat-v1")).await?;
        let alice = User::new(s, &cluster, "alice");
        alice.enter().await?;
        let id = alice.json(&["send", "alice", "hi"]).await?["message_id"].to_string();
        let older = &["the running version of the server knows; it is older than this program"];
        alice.refused(&["react", &id, "👍"], older).await?;
        alice.refused(&["edit", "alice", &id, "ho"], older).await?;
        let mailbox = alice.json(&["messages"]).await?;
        ensure!((&mailbox["messages"][0]["text"], &mailbox["unread"]) == (&"hi".into(), &0.into()), "{mailbox}");
        Ok(())
    });
}

/// A talk that goes on: `chat` without a command, with JSON.
struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    heard: Vec<Value>,
}

impl User {
    /// Talks at this node: which one a client finds first is left to chance.
    async fn talk_at(&self, node: &str) -> Result<Talk> {
        for _ in 0..50 {
            let (talk, at) = self.talk().await?;
            if at == node {
                return Ok(talk);
            }
            talk.end().await?;
        }
        anyhow::bail!("no talk came to {node}")
    }

    /// Talks, once the talk is ready; returns it with the node that it is at.
    async fn talk(&self) -> Result<(Talk, String)> {
        let mut command = Command::new(chat());
        command
            .args(["-o", "json"])
            .env("CHAT_ENDPOINTS", &self.endpoints)
            .env("CHAT_STATE_DIR", &self.state_dir)
            .env("CHAT_PASSWORD", &self.password)
            .env_remove("CHAT_USER")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("can't start chat")?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("no output")?);
        let mut talk = Talk { child, input, output: BufReader::new(output).lines(), heard: Vec::new() };
        talk.event("ready", |_| true).await?;
        talk.say("/who").await?;
        let who = talk.event("who", |_| true).await?;
        let node = who["node"].as_str().context("at no node")?.to_owned();
        Ok((talk, node))
    }
}

impl Talk {
    async fn say(&mut self, line: &str) -> Result<()> {
        self.write(&format!("{line}\n")).await
    }

    async fn write(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("all was said")?;
        input.write_all(text.as_bytes()).await?;
        Ok(input.flush().await?)
    }

    /// Waits for an event, unless it has come already: what comes and what is acknowledged are in no order.
    async fn event(&mut self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        if let Some(event) = self.heard.iter().find(|event| event["event"] == kind && wanted(event)) {
            return Ok(event.clone());
        }
        let waiting = async {
            while let Some(line) = self.output.next_line().await? {
                let event: Value = serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))?;
                self.heard.push(event.clone());
                if event["event"] == kind && wanted(&event) {
                    return Ok(event);
                }
            }
            anyhow::bail!("the talk ended")
        };
        let came = timeout(PATIENCE, waiting).await.context("it did not come").flatten();
        came.with_context(|| format!("{kind} after {:?}", self.heard))
    }

    /// Says no more, and returns the texts of all messages and of all acknowledgements.
    async fn end(mut self) -> Result<(Vec<String>, Vec<String>)> {
        self.input = None;
        while let Some(line) = timeout(PATIENCE, self.output.next_line()).await.context("the talk does not end")?? {
            self.heard.push(serde_json::from_str(&line)?);
        }
        let status = self.child.wait().await?;
        ensure!(status.success(), "the talk ended with {status}: {:?}", self.heard);
        let texts = |kind: &str| {
            let events = self.heard.iter().filter(|event| event["event"] == kind);
            events.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
        };
        Ok((texts("message"), texts("sent")))
    }
}

/// The texts of an answer with messages.
fn texts(answer: &Value) -> Result<Vec<&str>> {
    let messages = answer["messages"].as_array().context("no messages")?;
    messages.iter().map(|message| message["text"].as_str().context("no text")).collect()
}

#[test]
fn accounts_are_registered_once_and_entered_only_with_the_password() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let alice = User::new(s, &cluster, "alice");
        ensure!(alice.json(&["register", "alice"]).await?["account"] == "alice", "registered as another");
        alice.refused(&["register", "alice"], &["taken"]).await?;
        let mallory = User { password: "a guess".into(), ..User::new(s, &cluster, "mallory") };
        mallory.refused(&["login", "alice"], &["password"]).await?;
        mallory.refused(&["login", "nobody"], &["password"]).await?;
        mallory.refused(&["read"], &["chat login"]).await?;
        alice.refused(&["send", "alice", "hi"], &["chat login"]).await?;
        let login = alice.json(&["login", "alice"]).await?;
        ensure!((&login["account"], &login["unread"]) == (&"alice".into(), &0.into()), "{login}");
        ensure!(alice.json(&["whoami"]).await?["account"] == "alice", "logged in as another");
        ensure!(alice.json(&["logout"]).await?["account"] == "alice", "logged out another");
        alice.refused(&["whoami"], &["chat login"]).await?;
        alice.json(&["login", "alice"]).await?;
        alice.run(&["send"]).await?.exits(2)?;
        alice.refused(&["register", "two words"], &["name"]).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn accounts_are_listed_by_wildcard() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        for name in ["alice", "bob", "bert", "b"] {
            User::new(s, &cluster, name).json(&["register", name]).await?;
        }
        let anybody = User::new(s, &cluster, "anybody");
        let cases = [
            (None, vec!["alice", "b", "bert", "bob"]),
            (Some("*"), vec!["alice", "b", "bert", "bob"]),
            (Some("b*"), vec!["b", "bert", "bob"]),
            (Some("b??"), vec!["bob"]),
            (Some("*e*"), vec!["alice", "bert"]),
            (Some("x*"), vec![]),
        ];
        for (pattern, expected) in cases {
            let args: Vec<&str> = ["list"].into_iter().chain(pattern).collect();
            let listed = anybody.json(&args).await?;
            ensure!(listed["accounts"] == Value::from(expected), "{pattern:?}: {listed}");
        }
        let table = anybody.run(&["list", "b*"]).await?.exits(0)?;
        ensure!(table.stdout == "b\nbert\nbob\n", "{:?}", table.stdout);
        Ok(())
    });
}

#[test]
fn messages_are_sent_read_listed_and_deleted() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        alice.refused(&["send", "nobody", "hi"], &["no account", "list"]).await?;
        let mut ids = Vec::new();
        for text in ["one", "two", "three", "four, with \"quotes\" and ünïcode"] {
            let sent = alice.json(&["send", "bob", text]).await?;
            ids.push(sent["message_id"].as_u64().context("no message_id")?);
        }
        ensure!(ids.is_sorted(), "{ids:?}");
        ensure!(bob.json(&["whoami"]).await?["unread"] == 4, "not 4 unread");
        let read = bob.json(&["read", "3"]).await?;
        ensure!(texts(&read)? == ["one", "two", "three"] && read["unread"] == 1, "{read}");
        ensure!(read["messages"][0]["from"] == "alice", "{read}");
        let unread = bob.json(&["messages", "--unread"]).await?;
        ensure!(texts(&unread)? == ["four, with \"quotes\" and ünïcode"], "{unread}");
        let read = bob.json(&["read"]).await?;
        ensure!(texts(&read)?.len() == 1 && read["unread"] == 0, "{read}");
        ensure!(texts(&bob.json(&["read"]).await?)?.is_empty(), "read twice");
        ensure!(texts(&bob.json(&["messages"]).await?)?.len() == 4, "reading deletes nothing");
        let gone = [ids[0].to_string(), ids[2].to_string(), "999999".to_owned()];
        let deleted = bob.json(&["delete-messages", &gone[0], &gone[1], &gone[2]]).await?;
        ensure!(deleted["deleted"] == 2, "{deleted}");
        let left = bob.json(&["messages"]).await?;
        ensure!(texts(&left)? == ["two", "four, with \"quotes\" and ünïcode"], "{left}");
        ensure!(texts(&alice.json(&["messages"]).await?)?.is_empty(), "the sender has a copy");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn deleted_account_is_gone_with_its_mailbox_and_its_messages_stay() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        alice.json(&["send", "bob", "from alice"]).await?;
        bob.json(&["send", "alice", "unread for ever"]).await?;
        alice.run(&["delete-account"]).await?.exits(2)?.complains_of(&["--yes"])?;
        let deleted = alice.json(&["delete-account", "--yes"]).await?;
        ensure!((&deleted["messages"], &deleted["unread"]) == (&1.into(), &1.into()), "{deleted}");
        ensure!(bob.json(&["list"]).await?["accounts"] == Value::from(vec!["bob"]), "alice is listed");
        bob.refused(&["send", "alice", "hello?"], &["no account"]).await?;
        alice.refused(&["login", "alice"], &["password"]).await?;
        let read = bob.json(&["read"]).await?;
        ensure!(texts(&read)? == ["from alice"] && read["messages"][0]["from_deleted"] == true, "{read}");
        // The name is free again, and its new owner has none of the old one's messages.
        alice.enter().await?;
        ensure!(texts(&alice.json(&["messages"]).await?)?.is_empty(), "the old mailbox is back");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn logins_and_messages_survive_the_death_of_the_primary_and_of_all() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        alice.json(&["send", "bob", "before"]).await?;
        let primary = cluster.wait_primary().await?;
        cluster.kill(&[primary])?;
        alice.json(&["send", "bob", "while the primary is dead"]).await?;
        cluster.restart(primary).await?;
        cluster.kill(&[0, 1, 2])?;
        cluster.start_all().await?;
        alice.json(&["send", "bob", "after all were dead"]).await?;
        let read = bob.json(&["read"]).await?;
        ensure!(texts(&read)? == ["before", "while the primary is dead", "after all were dead"], "{read}");
        cluster.wait_all_serve().await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn listener_shows_each_message_once_though_its_node_dies() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        let listening =
            async { bob.run(&["-o", "json", "listen", "--count", "20", "--timeout", "50"]).await?.exits(0) };
        let sending = async {
            for number in 0..20 {
                if number % 7 == 3 {
                    cluster.kill(&[number % 3])?;
                }
                alice.json(&["send", "bob", &format!("message {number}")]).await?;
                if number % 7 == 3 {
                    cluster.restart(number % 3).await?;
                }
            }
            anyhow::Ok(())
        };
        let (heard, ()) = tokio::try_join!(listening, sending)?;
        let lines: Vec<Value> = heard.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let heard: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
        let sent: Vec<String> = (0..20).map(|number| format!("message {number}")).collect();
        ensure!(heard == sent, "{heard:?}");
        cluster.verify().await?;
        Ok(())
    });
}

/// A refusal has its number too. Left unsaved, it was the answer of the same command for ever.
#[test]
fn a_refused_command_succeeds_once_its_reason_has_gone() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        for _ in 0..2 {
            alice.refused(&["send", "bob", "hello"], &["no account of this name"]).await?;
        }
        bob.enter().await?;
        alice.json(&["send", "bob", "hello"]).await?;
        ensure!(texts(&bob.json(&["read"]).await?)? == ["hello"], "not once");
        Ok(())
    });
}

#[test]
fn a_talk_goes_on_without_loss_or_repeat_though_a_node_dies_in_the_middle_of_a_line() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("chat")).await?;
        let primary = cluster.wait_primary().await?;
        let others = cluster.others(primary);
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        let mut to_bob = alice.talk_at(&cluster[primary].name).await?;
        let mut to_alice = bob.talk_at(&cluster[others[0]].name).await?;
        to_bob.say("/to bob").await?;
        to_alice.say("/to alice").await?;
        for number in 0..5 {
            to_bob.say(&format!("a{number}")).await?;
            to_alice.event("message", |message| message["text"] == format!("a{number}")).await?;
            to_alice.say(&format!("b{number}")).await?;
            to_bob.event("message", |message| message["text"] == format!("b{number}")).await?;
        }
        // The node of alice, and the primary, dies while she is in the middle of a line.
        to_bob.write("a").await?;
        cluster.kill(&[primary])?;
        to_bob.write("5\n").await?;
        for number in 5..10 {
            to_alice.say(&format!("b{number}")).await?;
            if number > 5 {
                to_bob.say(&format!("a{number}")).await?;
            }
        }
        to_bob.event("sent", |sent| sent["text"] == "a9").await?;
        to_bob.event("message", |message| message["text"] == "b9").await?;
        to_alice.event("message", |message| message["text"] == "a9").await?;
        to_bob.event("connection", |_| true).await?;
        cluster.restart(primary).await?;
        // Then all of them, and what is said meanwhile arrives when they are back.
        cluster.kill(&[0, 1, 2])?;
        to_bob.say("a10").await?;
        to_alice.say("b10").await?;
        to_bob.event("connection", |told| told["state"] == "lost").await?;
        cluster.start_all().await?;
        to_bob.event("message", |message| message["text"] == "b10").await?;
        to_alice.event("message", |message| message["text"] == "a10").await?;
        let said = |from: &str| (0..=10).map(|number| format!("{from}{number}")).collect::<Vec<_>>();
        let (heard, sent) = to_bob.end().await?;
        ensure!((&heard, &sent) == (&said("b"), &said("a")), "alice heard {heard:?} and sent {sent:?}");
        let (heard, sent) = to_alice.end().await?;
        ensure!((&heard, &sent) == (&said("a"), &said("b")), "bob heard {heard:?} and sent {sent:?}");
        cluster.wait_all_serve().await?;
        for user in [alice, bob] {
            ensure!(user.json(&["whoami"]).await?["unread"] == 0, "what was shown is not marked read");
            let kept = user.json(&["messages"]).await?;
            ensure!(texts(&kept)?.len() == 11, "not each once: {kept}");
        }
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn typing_and_presence_reach_a_user_at_another_node_and_are_no_messages() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("chat")).await?;
        let (alice, bob) = (User::new(s, &cluster, "alice"), User::new(s, &cluster, "bob"));
        alice.enter().await?;
        bob.enter().await?;
        let mut to_bob = alice.talk_at("n1").await?;
        let mut to_alice = bob.talk_at("n2").await?;
        to_bob.say("/to bob").await?;
        let here = |name: &'static str| move |told: &Value| told["account"] == name && told["presence"] == "here";
        to_alice.event("presence", here("alice")).await?;
        to_bob.event("presence", here("bob")).await?;
        to_bob.say("/typing").await?;
        to_alice.event("typing", |typing| typing["from"] == "alice").await?;
        to_bob.end().await?;
        to_alice.event("presence", |told| told["account"] == "alice" && told["presence"] == "gone").await?;
        to_alice.end().await?;
        ensure!(texts(&bob.json(&["messages"]).await?)?.is_empty(), "a notice is no message");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn every_replica_is_asked_with_vote_and_a_dead_one_is_said_to_be_silent() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("chat")).await?;
        let alice = User::new(s, &cluster, "alice");
        alice.enter().await?;
        let sent = alice.json(&["--vote", "send", "alice", "hi"]).await?;
        ensure!((&sent["vote"], &sent["message_id"]) == (&"AGREED 3/3".into(), &1.into()), "{sent}");
        let table = alice.run(&["--vote", "whoami"]).await?.exits(0)?;
        ensure!((&*table.stdout, &*table.stderr) == ("alice; 1 unread\n", "AGREED 3/3\n"), "{table:?}");
        let primary = cluster.wait_primary().await?;
        let follower = cluster.others(primary)[0];
        cluster.kill(&[follower])?;
        let table = alice.run(&["--vote", "whoami"]).await?.exits(0)?;
        let silent = format!("{}: no answer", cluster[follower].client_address);
        ensure!(table.stderr.starts_with("MAJORITY 2/3\n"), "{table:?}");
        ensure!(table.stderr.contains(&silent) || table.stderr.contains("no answer"), "{table:?}");
        cluster.restart(follower).await?;
        ensure!(texts(&alice.json(&["messages"]).await?)? == ["hi"], "three requests of one number: once");
        cluster.verify().await?;
        Ok(())
    });
}
