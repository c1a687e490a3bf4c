//! The story that `demo --script` tells: a conversation that survives the death of its primary, with every message accounted for.
//!
//! It uses the chat's own client as a user would, as child processes, and believes only what that prints.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{blow, ensure, step};
use crate::cli::{
    cluster::Cluster,
    status::{self, Verdict},
};

/// Messages that alice sends; the nodes die after a third of them.
const MESSAGES: usize = 300;
/// Messages that bob answers while nodes are dead.
const ANSWERS: usize = 20;
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

    pub(super) fn command(&self, user: &str, args: &[&str]) -> Command {
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

    /// Runs one command to its end, and reads the JSON that it prints.
    pub(super) async fn run(&self, user: &str, args: &[&str]) -> anyhow::Result<Value> {
        let done = self.command(user, args).output().await.context("can't start chat")?;
        let told = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        ensure(done.status.success(), || format!("chat {} failed for {user}: {told}", args.join(" ")))?;
        serde_json::from_slice(&done.stdout).with_context(|| format!("chat {} printed no JSON", args.join(" ")))
    }
}

/// A chat command that goes on, and prints a line of JSON for each message.
pub(super) struct Running {
    pub(super) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    what: String,
}

impl Running {
    pub(super) fn start(mut command: Command, what: String) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), what })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Value> {
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

/// Tells it. An error is a step that did not hold.
pub(super) async fn tell(cluster: &mut Cluster, module: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let chat = Chat::of(cluster)?;
    println!("A chat on {} nodes, replicated by majority, and what happens when nodes die.", cluster.len());
    cluster.start_all().await?;
    cluster.found(module).await?;
    step(&format!("{} nodes run and have founded a cluster", cluster.len()));
    chat.log_in().await?;
    let listen = chat.command("bob", &["listen", "--count", &MESSAGES.to_string(), "--timeout", "60"]);
    let mut listener = Running::start(listen, "bob's listener".into())?;

    // alice talks; nodes die in the middle; she goes on.
    let mut sender = Running::start(chat.command("alice", &["send", "bob", "--stdin"]), "alice's sender".into())?;
    let mut typed = sender.child.stdin.take().context("no standard input")?;
    let lines: String = (1..=MESSAGES).map(|line| text(line) + "\n").collect();
    tokio::spawn(async move {
        let _ = typed.write_all(lines.as_bytes()).await; // A sender that ends early says why itself.
    });
    let mut acknowledged: BTreeMap<usize, u64> = BTreeMap::new();
    for _ in 0..MESSAGES / 3 {
        acknowledge(&mut acknowledged, &sender.next().await?)?;
    }
    let victims = (cluster.len() - 1) / 2;
    let primary = cluster.wait_primary().await?;
    let killed: Vec<usize> = (0..victims).map(|i| (primary + i) % cluster.len()).collect();
    let mut dead = Vec::new();
    for &index in &killed {
        let pid = cluster.kill(index).await?;
        let role = if index == primary { "the primary" } else { "a follower" };
        dead.push(format!("{} ({role}, pid {pid})", cluster.name(index)));
    }
    let at = Instant::now();
    blow(&format!("kill -9 {} in mid-conversation, {} messages acknowledged", dead.join(" and "), acknowledged.len()));
    // What had been acknowledged before the kill may still be in the pipe; the gap ends with the first that comes late.
    let mut gap = Duration::ZERO;
    let mut before = at;
    while acknowledged.len() < 2 * MESSAGES / 3 {
        acknowledge(&mut acknowledged, &sender.next().await?)?;
        gap = gap.max(before.elapsed());
        before = Instant::now();
    }
    let next = cluster.wait_primary().await?;
    step(&format!(
        "{} leads now; alice waited {} ms for it, and lost nothing she knows of",
        cluster.name(next),
        gap.as_millis()
    ));
    let mut answers = Vec::new();
    for line in 1..=ANSWERS {
        answers.push(number(&chat.run("bob", &["send", "alice", &answer(line)]).await?, "message_id")?);
    }
    step(&format!("bob has answered {ANSWERS} times meanwhile"));
    for &index in &killed {
        cluster.restart(index).await?;
        let back = cluster.wait_serving(index).await?;
        step(&format!("{} is back, and has caught up to log index {}", back.node_id, back.applied_log_index));
    }
    while acknowledged.len() < MESSAGES {
        acknowledge(&mut acknowledged, &sender.next().await?)?;
    }
    let ended = sender.child.wait().await?;
    ensure(ended.success(), || format!("alice's sender ended with {ended}"))?;
    step(&format!("all {MESSAGES} of alice's messages are acknowledged"));

    let mut heard = BTreeMap::new();
    for _ in 0..MESSAGES {
        *heard.entry(number(&listener.next().await?, "id")?).or_insert(0_usize) += 1;
    }
    let once = acknowledged.values().all(|id| heard.get(id) == Some(&1));
    ensure(once && heard.len() == MESSAGES, || "bob's listener missed messages, or showed some twice".into())?;
    listener.child.wait().await?;
    step(&format!("bob's listener showed all {MESSAGES} as they came, each once"));

    let mut account = Account::default();
    account.check(&chat.run("bob", &["messages"]).await?, acknowledged.iter().map(|(line, id)| (*id, text(*line))))?;
    account.check(
        &chat.run("alice", &["messages"]).await?,
        answers.iter().zip(1..).map(|(id, line)| (*id, answer(line))),
    )?;
    conclude(cluster, &account, began).await
}

/// The end of every story: nothing acknowledged is missing, and all replicas are equal.
pub(super) async fn conclude(cluster: &Cluster, account: &Account, began: Instant) -> anyhow::Result<()> {
    ensure(account.lost == 0 && account.doubled == 0 && account.unknown == 0, || account.to_string())?;
    step(&format!("every acknowledged message is in its mailbox, once: {account}"));
    // One that was started just now may have no state to compare yet.
    for index in 0..cluster.len() {
        cluster.wait_serving(index).await?;
    }
    match status::verify(cluster.client(), &cluster.survey().await).await {
        Verdict::Equal { replicas, log_index, digest, state_hash } if replicas == cluster.endpoints().len() => {
            step(&format!(
                "all {replicas} replicas are equal at log index {log_index}: digest {digest:016x}, whole state {state_hash:016x}"
            ));
        }
        other => bail!("{other}"),
    }
    status::print(&cluster.survey().await)?;
    println!("Every step held, in {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

fn text(line: usize) -> String {
    format!("alice's line {line} of {MESSAGES}")
}

fn answer(line: usize) -> String {
    format!("bob's answer {line} of {ANSWERS}")
}

pub(super) fn acknowledge(acknowledged: &mut BTreeMap<usize, u64>, told: &Value) -> anyhow::Result<()> {
    let line = usize::try_from(number(told, "line")?)?;
    let doubled = acknowledged.insert(line, number(told, "message_id")?);
    ensure(doubled.is_none(), || format!("line {line} was acknowledged twice"))
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
    pub(super) fn check(
        &mut self,
        mailbox: &Value,
        acknowledged: impl Iterator<Item = (u64, String)>,
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
