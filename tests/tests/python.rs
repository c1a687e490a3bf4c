//! The Python example, written from the .proto files alone: it counts and follows events while its nodes die.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};
use replicator_tests::{Cluster, module, prepared, python_environment, run, scenario, source};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};

/// A Python that has gRPC; none if there is none.
async fn python() -> Option<PathBuf> {
    let own = python_environment().join("bin/python");
    let python = if own.is_file() { own } else { PathBuf::from("python3") };
    let found = run(&python, ["-c", "import grpc, grpc_tools"], &[]).await;
    match found.and_then(|ran| ran.exits(0)) {
        Ok(_) => Some(python),
        Err(error) => {
            // Past the test harness, which shows nothing of a test that passes.
            let why = "skipped: the Python example is not tested, because Python or its packages grpcio and grpcio-tools are missing";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{why}: {error:#}\n").as_bytes());
            None
        }
    }
}

/// The example, as it runs.
struct Example {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The places of the events that came.
    cursors: Vec<(u64, u32)>,
    /// The nodes that it listened at, one after the other.
    nodes: Vec<String>,
    last: String,
}

impl Example {
    fn start(python: &Path, endpoints: &str, times: usize) -> Result<Self> {
        let script = source().join("proto/python/client.py").display().to_string();
        let times = times.to_string();
        // Paced, so that there is something left to count when the nodes have died and come back.
        let args = [script.as_str(), endpoints, "--name", "apples", "--times", &times, "--pause", "0.004"];
        let command = prepared(python, args, &[]);
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("can't start Python")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let lines = BufReader::new(stdout).lines();
        Ok(Self { child, lines, cursors: Vec::new(), nodes: Vec::new(), last: String::new() })
    }

    /// Reads until `events` have come. Each must be the next one, and in a later place.
    async fn read(&mut self, events: usize) -> Result<()> {
        while self.cursors.len() < events {
            let Some(line) = self.lines.next_line().await? else {
                bail!("it ended after {} events: {}", self.cursors.len(), self.complaints().await)
            };
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["event", index, ordinal, "apples", value] => {
                    let cursor = (index.parse()?, ordinal.parse()?);
                    let expected = self.cursors.len() + 1;
                    ensure!(value == expected.to_string(), "{line:?} came as event {expected}");
                    ensure!(self.cursors.last() < Some(&cursor), "{line:?} came after {:?}", self.cursors.last());
                    self.cursors.push(cursor);
                }
                ["listening", "at", node] => self.nodes.push(node.to_owned()),
                _ => bail!("what is {line:?}?"),
            }
        }
        Ok(())
    }

    async fn complaints(&mut self) -> String {
        let mut told = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut told).await; // What there is has to do.
        }
        told
    }

    async fn end(&mut self) -> Result<()> {
        while let Some(line) = self.lines.next_line().await? {
            self.last = line;
        }
        let status = self.child.wait().await?;
        ensure!(status.success(), "it ended with {status}: {}", self.complaints().await);
        Ok(())
    }
}

fn at(cluster: &Cluster, address: &str) -> Result<usize> {
    (0..cluster.len()).find(|&index| cluster[index].client_address == address).context("no node has this address")
}

#[test]
fn python_client_misses_and_doubles_nothing_while_its_nodes_die() {
    scenario(async |s| {
        const TIMES: usize = 1_000;
        let Some(python) = python().await else { return Ok(()) };
        let mut cluster = s.cluster(3, &module("counter")).await?;
        // It listens at a follower first: when that dies, the writes go on, and what comes before it listens again would be missed without
        // its cursor. Next at the primary: when that dies, requests are repeated after the failover.
        let primary = cluster.wait_primary().await?;
        let others = cluster.others(primary);
        let order = [others[0], primary, others[1]];
        let endpoints = order.iter().map(|&index| cluster[index].client_address.clone()).collect::<Vec<_>>().join(",");
        let mut example = Example::start(&python, &endpoints, TIMES)?;
        for events in [100, 300] {
            example.read(events).await?;
            let listened_at = at(&cluster, example.nodes.last().context("it listens nowhere")?)?;
            let listened = example.nodes.len();
            cluster.kill(&[listened_at])?;
            example.read(events + 100).await?;
            ensure!(example.nodes.len() > listened, "it did not move: {:?}", example.nodes);
            cluster.restart(listened_at).await?;
        }
        example.read(TIMES).await?;
        example.end().await?;
        ensure!(example.last == format!("apples is {TIMES} after {TIMES} events"), "{:?}", example.last);
        cluster.expect_counter("apples", TIMES as u64).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn python_client_says_what_it_was_refused() {
    scenario(async |s| {
        let Some(python) = python().await else { return Ok(()) };
        // The echo module knows no counters: the example's first question fails, and it must not go on as if nothing were.
        let cluster = s.cluster(1, &module("echo")).await?;
        let mut example = Example::start(&python, &cluster[0].client_address, 10)?;
        let ended = example.read(1).await;
        let told = ended.err().context("it counted without counters")?.to_string();
        ensure!(told.contains("ValueError") && told.contains("get apples"), "{told}");
        Ok(())
    });
}
