//! The guide for authors, `docs/guide`, and `replicator module new`: every command of the first two pages is run as it stands there, in an empty
//! folder, without a network and without a registry.
//!
//! A block `console` has commands, behind `$ `, each followed by the lines that it prints: `…` stands for any text, and on a line of its own for any
//! lines. A block `diff` is a change to the crate. A command `replicator demo` goes on in the background, and the lines `export` that it prints hold
//! for the commands after it. Blocks of no kind are not run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use replicator_tests::{Ran, Scenario, prepared, replicator, run, scenario, source};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

/// How long one command may take: a build on a busy machine.
const STEP_MAX: Duration = Duration::from_secs(300);

/// A reader who does what the guide says.
struct Reader {
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    demo: Option<Child>,
}

impl Reader {
    /// In an empty folder, with the programs in the path, and with a cargo that has downloaded nothing.
    fn new(s: &Scenario) -> Result<Self> {
        let (folder, cargo_home) = (s.dir().join("work"), s.dir().join("cargo"));
        fs::create_dir(&folder)?;
        fs::create_dir(&cargo_home)?;
        let programs = replicator().parent().context("it lies in a folder")?.display().to_string();
        let path = std::env::var("PATH").context("there is no PATH")?;
        let environment = BTreeMap::from([
            ("PATH".to_owned(), format!("{programs}:{path}")),
            ("CARGO_HOME".to_owned(), cargo_home.display().to_string()),
            ("CARGO_NET_OFFLINE".to_owned(), "true".to_owned()),
        ]);
        Ok(Self { folder, environment, demo: None })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = prepared(Path::new("bash"), ["-c", &format!("set -euo pipefail; {line}")], &[]);
        // What cargo says to this test is nothing to the reader's cargo.
        for key in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"] {
            command.env_remove(key);
        }
        command.current_dir(&self.folder).envs(&self.environment).stdin(Stdio::null());
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Result<Ran> {
        let output = tokio::time::timeout(STEP_MAX, self.command(line).output()).await;
        let output = output.with_context(|| format!("`{line}` does not end"))??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ok(Ran { what: line.to_owned(), code: output.status.code(), stdout, stderr })
    }

    /// Does what a page says.
    async fn read(&mut self, page: &str) -> Result<()> {
        let text = fs::read_to_string(source().join("docs/guide").join(page))?;
        for (kind, block) in blocks(&text) {
            match kind {
                "console" => {
                    for (command, expected) in steps(block) {
                        self.step(command, &expected).await.with_context(|| format!("{page}: $ {command}"))?;
                    }
                }
                "diff" => self.change(block).await.with_context(|| format!("{page}: the change"))?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn step(&mut self, command: &str, expected: &[&str]) -> Result<()> {
        if let Some(folder) = command.strip_prefix("cd ") {
            self.folder.push(folder);
            ensure!(self.folder.is_dir(), "there is no {}", self.folder.display());
            return Ok(());
        }
        if command.starts_with("replicator demo") {
            return self.start_demo(command).await;
        }
        let Ran { stdout, stderr, .. } = self.run(command).await?.exits(0)?;
        let printed = if command.contains("--vote") { stdout + &stderr } else { stdout };
        ensure!(
            is_printed(&printed.lines().collect::<Vec<_>>(), expected),
            "it printed\n{printed}\nand not\n{}",
            expected.join("\n")
        );
        Ok(())
    }

    async fn start_demo(&mut self, command: &str) -> Result<()> {
        // Without a shell between, so that it ends with this test.
        let mut child = self.command(&format!("exec {command}")).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        self.demo = Some(child);
        let mut told = Vec::new();
        let started = async {
            while let Some(line) = lines.next_line().await? {
                if line == "Ctrl-C ends it all." {
                    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                    return Ok(());
                }
                told.push(line);
            }
            bail!("the demo ended")
        };
        tokio::time::timeout(STEP_MAX, started).await.context("the demo does not start")??;
        let exports: Vec<&str> = told.iter().filter_map(|line| line.trim().strip_prefix("export ")).collect();
        for (key, value) in exports.iter().flat_map(|line| line.split(' ')).filter_map(|word| word.split_once('=')) {
            let before = self.environment.get(key).cloned().unwrap_or_default();
            self.environment.insert(key.to_owned(), value.replace(&format!("${key}"), &before));
        }
        ensure!(self.environment.contains_key("REPLICATOR_ENDPOINTS"), "no endpoints: {told:?}");
        ensure!(
            told.iter().any(|line| line.contains("replicator call 'REQUEST'")),
            "it doesn't say how to call: {told:?}"
        );
        Ok(())
    }

    async fn change(&self, diff: &str) -> Result<()> {
        let mut child = self.command("git apply --verbose -").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(diff.as_bytes()).await?;
        let done = child.wait_with_output().await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

/// The blocks of a page: their kind, and what is in them.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let mut parts = page.split("```");
    let mut blocks = Vec::new();
    while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
        blocks.extend(block.split_once('\n'));
    }
    blocks
}

/// The commands of a block, and what each prints.
fn steps(block: &str) -> Vec<(&str, Vec<&str>)> {
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push((command, Vec::new())),
            (None, Some((_, expected))) => expected.push(line),
            (None, None) => {}
        }
    }
    steps
}

/// Whether these lines are the expected ones. A command without any may print what it likes.
fn is_printed(lines: &[&str], expected: &[&str]) -> bool {
    fn matches(lines: &[&str], expected: &[&str]) -> bool {
        match (lines, expected) {
            (_, ["…"]) | ([], []) => true,
            ([], ["…", rest @ ..]) => matches(&[], rest),
            ([_, more @ ..], ["…", rest @ ..]) => matches(lines, rest) || matches(more, expected),
            ([line, more @ ..], [wanted, rest @ ..]) => is_line(line, wanted) && matches(more, rest),
            _ => false,
        }
    }
    // What a page shows may go on.
    expected.is_empty() || (0..=lines.len()).any(|len| matches(&lines[..len], expected))
}

fn is_line(line: &str, wanted: &str) -> bool {
    match wanted.split_once('…') {
        Some((start, end)) => line.len() >= start.len() + end.len() && line.starts_with(start) && line.ends_with(end),
        None => line == wanted,
    }
}

#[test]
fn expected_lines_are_compared_as_the_guide_writes_them() {
    for (lines, expected, same) in [
        (&["a", "b"][..], &["a", "b"][..], true),
        (&["a", "b"], &["a"], true),
        (&["a", "b"], &["b"], false),
        (&["x", "y", "b 17"], &["…", "b …"], true),
        (&["b"], &["…", "b"], true),
        (&["x", "y"], &["…", "b"], false),
        (&[], &["a"], false),
        (&["a"], &[], true),
    ] {
        assert_eq!(is_printed(lines, expected), same, "{lines:?} {expected:?}");
    }
    assert_eq!(steps("$ one\n1\n…\n$ two\n"), [("one", vec!["1", "…"]), ("two", vec![])]);
    assert_eq!(blocks("text\n```console\n$ a\n```\n```\nb\n```\n"), [("console", "$ a\n"), ("", "b\n")]);
}

#[test]
fn every_command_of_the_guide_does_what_it_says() {
    scenario(async |s| {
        s.may_take(8); // It builds a crate four times.
        s.turn().await?; // The demo is a cluster.
        let mut reader = Reader::new(s)?;
        reader.read("counter.md").await?;
        let mut demo = reader.demo.take().context("the guide starts no demo")?;
        reader.read("versions.md").await?;
        let description = reader
            .run("grep -ao 'app=my-app version=[ -~]*' target/wasm32-unknown-unknown/release/my_app.wasm")
            .await?;
        let described = description.exits(0)?.stdout;
        ensure!(described.contains("app=my-app version=0.2.0 schema=2 accepts_from=1,2"), "{described}");
        // As Ctrl-C does.
        let pid = demo.id().context("the demo has ended")?;
        run(Path::new("kill"), ["-INT", &pid.to_string()], &[]).await?.exits(0)?;
        let ended = tokio::time::timeout(STEP_MAX, demo.wait()).await??;
        ensure!(ended.success(), "the demo ended with {ended}");
        Ok(())
    });
}

#[test]
fn module_new_takes_an_sdk_that_is_there_and_refuses_what_cannot_be() {
    scenario(async |s| {
        let reader = Reader::new(s)?;
        let sdk = source().join("statemachine/sdk").display().to_string();
        let made = reader.run(&format!("replicator module new mine --sdk '{sdk}' -o json")).await?.exits(0)?.json()?;
        ensure!(made["name"] == "mine" && made["sdk"] == sdk, "{made}");
        ensure!(!reader.folder.join("mine/statemachine").exists(), "it has a copy that it doesn't use");
        reader.run("cd mine && cargo check").await?.exits(0)?;

        let told = reader.run("replicator module new mine").await?.exits(2)?;
        told.complains_of(&["mine is there already", "another name"])?;
        reader.run("replicator module new Mine").await?.exits(2)?.complains_of(&["all lower case"])?;
        reader.run("replicator module new self").await?.exits(2)?.complains_of(&["choose another name"])?;
        reader.run("replicator module new nowhere/app").await?.exits(1)?.complains_of(&["can't make nowhere/app"])?;
        reader.run("replicator module new other --sdk .").await?.exits(2)?.complains_of(&["leave out --sdk"])?;
        ensure!(!reader.folder.join("other").exists(), "a refused command left a folder behind");
        Ok(())
    });
}
