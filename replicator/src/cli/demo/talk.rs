//! The conversation of the stories, held with the chat's own client as a user would hold it: as child processes, of which only what they print is believed.

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{ensure, step};
use crate::cli::cluster::Cluster;

/// How long the next message may take at any time, an election included.
const PATIENCE: Duration = Duration::from_secs(20);

/// The chat client, with its logins in a folder of the demo's.
pub(super) struct Chat {
    program: PathBuf,
    endpoints: String,
    state_dir: PathBuf,
}

impl Chat {
    /// The client beside this program.
    pub(super) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("chat");
        ensure(program.is_file(), || format!("{} is not there; run `make`", program.display()))?;
        let endpoints = cluster.endpoints().join(",");
        Ok(Self { program, endpoints, state_dir: cluster.dir().join("chat-logins") })
    }

    /// Lets alice and bob register and log in.
    pub(super) async fn log_in(&self) -> anyhow::Result<()> {
        for user in ["alice", "bob"] {
            self.run(user, &["register", user]).await?;
            self.run(user, &["login", user]).await?;
        }
        step("alice and bob have registered and logged in");
        Ok(())
    }

    fn command(&self, user: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CHAT_")) {
            command.env_remove(key);
        }
        command
            .env("CHAT_ENDPOINTS", &self.endpoints)
            .env("CHAT_STATE_DIR", &self.state_dir)
            .env("CHAT_PASSWORD", format!("the password of {user}"))
            .args(["-o", "json", "--user", user, "--deadline", "20"])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What bob's terminal shows, as it comes.
    pub(super) fn listen(&self) -> anyhow::Result<Running> {
        Running::start(self.command("bob", &["listen", "--timeout", "300"]), "bob's listener".into())
    }

    /// Runs one command to its end, and reads the JSON that it prints.
    pub(super) async fn run(&self, user: &str, args: &[&str]) -> anyhow::Result<Value> {
        let done = self.command(user, args).output().await.context("can't start chat")?;
        let told = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        ensure(done.status.success(), || format!("chat {} failed for {user}: {told}", args.join(" ")))?;
        serde_json::from_slice(&done.stdout).with_context(|| format!("chat {} printed no JSON", args.join(" ")))
    }

    /// Runs one command that must fail, and reads what it says.
    pub(super) async fn refused(&self, user: &str, args: &[&str]) -> anyhow::Result<String> {
        let done = self.command(user, args).output().await.context("can't start chat")?;
        ensure(!done.status.success(), || format!("chat {} did not fail for {user}", args.join(" ")))?;
        Ok(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    }
}

/// A chat command that goes on, and prints a line of JSON for each message.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    what: String,
}

impl Running {
    fn start(mut command: Command, what: String) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), what })
    }

    async fn next(&mut self) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.map_err(|_| anyhow!("{} printed nothing for {} s", self.what, PATIENCE.as_secs()))??;
        match line {
            Some(line) => serde_json::from_str(&line).with_context(|| format!("{} printed {line:?}", self.what)),
            None => {
                let mut told = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut told).await;
                }
                bail!("{} ended too early: {}", self.what, told.trim())
            }
        }
    }
}

pub(super) fn number(value: &Value, key: &str) -> anyhow::Result<u64> {
    value[key].as_u64().with_context(|| format!("no {key} in {value}"))
}

/// What alice says to bob, line by line.
pub(super) struct Talk {
    sender: Running,
    typed: ChildStdin,
    /// Lines so far.
    sent: usize,
    /// The message's number of each acknowledged line.
    acknowledged: BTreeMap<usize, u64>,
    /// What she has changed since.
    edited: BTreeMap<usize, String>,
}

impl Talk {
    pub(super) fn start(chat: &Chat) -> anyhow::Result<Self> {
        let mut sender = Running::start(chat.command("alice", &["send", "bob", "--stdin"]), "alice's sender".into())?;
        let typed = sender.child.stdin.take().context("no standard input")?;
        Ok(Self { sender, typed, sent: 0, acknowledged: BTreeMap::new(), edited: BTreeMap::new() })
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// The last acknowledged line, and its message's number.
    pub(super) fn last(&self) -> anyhow::Result<(usize, u64)> {
        self.acknowledged.last_key_value().map(|(line, id)| (*line, *id)).context("nothing is acknowledged yet")
    }

    /// She types so many lines.
    pub(super) async fn begin(&mut self, messages: usize) -> anyhow::Result<()> {
        let lines: String = (self.sent + 1..=self.sent + messages).map(|line| text(line) + "\n").collect();
        self.sent += messages;
        Ok(self.typed.write_all(lines.as_bytes()).await?)
    }

    /// Waits for so many acknowledgements. Returns the longest wait for one.
    pub(super) async fn hear(&mut self, messages: usize) -> anyhow::Result<Duration> {
        let mut gap = Duration::ZERO;
        let mut before = Instant::now();
        for _ in 0..messages {
            let told = self.sender.next().await?;
            let line = usize::try_from(number(&told, "line")?)?;
            let doubled = self.acknowledged.insert(line, number(&told, "message_id")?);
            ensure(doubled.is_none(), || format!("line {line} was acknowledged twice"))?;
            gap = gap.max(before.elapsed());
            before = Instant::now();
        }
        Ok(gap)
    }

    /// Lets her say one thing after the other for as long as something else takes. Returns what came of it, and the longest that she waited for an acknowledgement.
    pub(super) async fn during<T>(
        &mut self,
        other: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(T, Duration)> {
        let done = Cell::new(false);
        let other = async {
            let came = other.await;
            done.set(true);
            came
        };
        let talking = async {
            let mut longest = Duration::ZERO;
            while !done.get() {
                self.begin(1).await?;
                longest = longest.max(self.hear(1).await?);
            }
            anyhow::Ok(longest)
        };
        let (came, longest) = futures::future::join(other, talking).await;
        Ok((came?, longest?))
    }

    /// She has changed what a line says.
    pub(super) fn edited(&mut self, line: usize, text: String) {
        self.edited.insert(line, text);
    }

    /// She has no more to say: all of it must be acknowledged, and have come to bob's listener as it came, each once. Returns what bob's mailbox must have.
    pub(super) async fn end(self, listener: &mut Running) -> anyhow::Result<Vec<(u64, String)>> {
        let Self { mut sender, typed, sent, acknowledged, edited } = self;
        drop(typed);
        let ended = sender.child.wait().await?;
        ensure(ended.success(), || format!("alice's sender ended with {ended}"))?;
        ensure(acknowledged.len() == sent, || format!("{} of {sent} are acknowledged", acknowledged.len()))?;
        step(&format!("all {sent} of alice's messages are acknowledged"));
        let (mut heard, mut messages) = (BTreeMap::new(), 0);
        while messages < sent {
            let told = listener.next().await?;
            // Edits have a name.
            if told["event"].is_null() {
                messages += 1;
                *heard.entry(number(&told, "id")?).or_insert(0_usize) += 1;
            }
        }
        let once = acknowledged.values().all(|id| heard.get(id) == Some(&1));
        ensure(once && heard.len() == sent, || "bob's listener missed messages, or showed some twice".into())?;
        step(&format!("bob's listener showed all {sent} as they came, each once"));
        let says = |line: usize| edited.get(&line).cloned().unwrap_or_else(|| text(line));
        Ok(acknowledged.iter().map(|(line, id)| (*id, says(*line))).collect())
    }
}

fn text(line: usize) -> String {
    format!("alice's line {line}")
}

/// What became of the acknowledged messages.
#[derive(Default)]
pub(super) struct Account {
    acknowledged: usize,
    lost: usize,
    doubled: usize,
    /// In the mailbox, but nobody sent it.
    unknown: usize,
}

impl Account {
    pub(super) const fn holds(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.unknown == 0
    }

    /// Holds what must be in a mailbox against what is.
    pub(super) fn check(
        &mut self,
        mailbox: &Value,
        acknowledged: impl IntoIterator<Item = (u64, String)>,
    ) -> anyhow::Result<()> {
        let mut texts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for message in mailbox["messages"].as_array().context("no messages in the answer")? {
            texts.entry(message["text"].as_str().unwrap_or_default()).or_default().push(number(message, "id")?);
        }
        for (id, text) in acknowledged {
            self.acknowledged += 1;
            let found = texts.remove(text.as_str()).unwrap_or_default();
            self.lost += usize::from(!found.contains(&id));
            self.doubled += found.len().saturating_sub(1);
        }
        self.unknown += texts.len();
        Ok(())
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { acknowledged, lost, doubled, unknown } = self;
        write!(f, "acknowledged={acknowledged} lost={lost} doubled={doubled} unknown={unknown}")
    }
}
