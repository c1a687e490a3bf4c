//! `replicator call` and `query`: requests of raw bytes from the command line, exactly once even when the program is killed.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Ran, module, prepared, replicator, run_with, scenario, until};
use serde_json::Value;

/// So that what comes into the log is what the test sends, and no tick of the session clock.
const NO_TICKS: [&str; 4] = ["--tick-ms", "600000", "--session-ttl-ms", "1800000"];

/// Runs `replicator` on the cluster with this standard input.
async fn piped(cluster: &Cluster, args: &[&str], input: impl AsRef<[u8]>) -> Result<Ran> {
    run_with(&replicator(), args, &[("REPLICATOR_ENDPOINTS", &cluster.endpoints())], input.as_ref()).await
}

/// The error on standard error, as JSON.
fn error(ran: &Ran) -> Result<Value> {
    let json: Value = serde_json::from_str(&ran.stderr).with_context(|| format!("no JSON: {}", ran.stderr))?;
    Ok(json["error"].clone())
}

#[test]
fn request_comes_in_every_form_and_the_response_goes_out_as_asked() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("echo")).await?;
        let bytes: Vec<u8> = (0..=255).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = s.file("request", &bytes)?.display().to_string();
        for command in ["call", "query"] {
            let told = cluster.replicator(&[command, "grüße"]).await?.exits(0)?;
            ensure!(told.stdout == "grüße\n" && told.stderr.is_empty(), "{told:?}");
            for form in [&["--file", file.as_str()][..], &["--hex", &hex]] {
                let args: Vec<&str> = [command].iter().chain(form).copied().collect();
                let told = cluster.replicator(&args).await?.exits(0)?;
                ensure!(told.stdout == format!("{hex}\n"), "bytes are not shown as hex: {told:?}");
                let json = cluster.replicator(&[&args[..], &["-o", "json"]].concat()).await?.exits(0)?.json()?;
                ensure!(json["response_hex"] == hex && json["response"].is_null(), "{json}");
            }
            let told = piped(&cluster, &[command, "--file", "-", "--raw"], "no end of line").await?.exits(0)?;
            ensure!(told.stdout == "no end of line" && told.stderr.is_empty(), "{told:?}");
            let told = cluster.replicator(&[command, ""]).await?.exits(0)?;
            ensure!(told.stdout == "\n", "{told:?}");
            let json = cluster.replicator(&[command, "\u{1b}[2J", "-o", "json"]).await?.exits(0)?.json()?;
            ensure!(json["response"] == "\u{1b}[2J" && json["log_index"].as_u64() > Some(0), "{json}");
            let told = cluster.replicator(&[command, "\u{1b}[2J"]).await?.exits(0)?;
            ensure!(told.stdout == "1b5b324a\n", "an escape code reached the terminal: {told:?}");
            for wrong in [&["a", "--stdin"][..], &[], &["--hex", "0g"], &["--hex", "123"], &["a", "--window", "3"]] {
                let args: Vec<&str> = [command].iter().chain(wrong).copied().collect();
                cluster.replicator(&args).await?.exits(2).with_context(|| format!("{args:?}"))?;
            }
        }
        let json = cluster.replicator(&["call", "x", "-o", "json"]).await?.exits(0)?.json()?;
        ensure!(json["sequence"] == 1 && json["epoch"].as_u64() > Some(0), "{json}");
        ensure!(json["state_digest"].as_str().map(str::len) == Some(16) && json["session"].is_null(), "{json}");
        // Nothing is left behind: each call closed its session.
        let sessions = cluster.status(0).await?.sessions;
        ensure!(sessions == 0, "{sessions} sessions are open");
        Ok(())
    });
}

#[test]
fn lines_are_executed_in_order_and_answered_in_order() {
    scenario(async |s| {
        const LINES: u64 = 3_000;
        let cluster = s.cluster(3, &module("counter")).await?;
        let input = "add x 1\n".repeat(LINES as usize);
        let expected: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
        let told = piped(&cluster, &["call", "--stdin", "--window", "500"], &input).await?.exits(0)?;
        ensure!(told.stdout == expected, "the answers are not 1 to {LINES} in order");
        let file = s.dir().join("session").display().to_string();
        let args = ["call", "--stdin", "--session", &file, "-o", "json"];
        let told = piped(&cluster, &args, "add y 1\nget y\n\nadd y 1").await?.exits(0)?;
        let lines: Vec<Value> = told.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let answers: Vec<_> = lines.iter().filter_map(|line| line["response"].as_str()).collect();
        ensure!(answers.len() == 4 && answers[..2] == ["1", "1"] && answers[3] == "2", "{answers:?}");
        let numbers: Vec<_> = lines.iter().map(|line| (line["line"].as_u64(), line["sequence"].as_u64())).collect();
        ensure!(numbers == (1..=4).map(|n| (Some(n), Some(n))).collect::<Vec<_>>(), "{numbers:?}");
        let told = piped(&cluster, &["query", "--stdin"], "get x\nget y\n".repeat(500)).await?.exits(0)?;
        ensure!(told.stdout == format!("{LINES}\n2\n").repeat(500), "the answers are not in the order of the lines");
        let hex = piped(&cluster, &["query", "--stdin", "--hex"], "6765742078\n67 65 74 20 79\n").await?.exits(0)?;
        ensure!(hex.stdout == format!("{LINES}\n2\n"), "{hex:?}");
        // A line that can't be read ends the input; what came before it is done.
        let args = ["call", "--stdin", "--hex"];
        let told = piped(&cluster, &args, "6765742078\n0g\n6765742078\n").await?.exits(1)?.complains_of(&["line 2"])?;
        ensure!(told.stdout == format!("{LINES}\n"), "{told:?}");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn query_sees_as_much_as_it_asks_for() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let file = s.dir().join("session").display().to_string();
        let written =
            cluster.replicator(&["call", "--session", &file, "-o", "json", "add x 1"]).await?.exits(0)?.json()?;
        let index = written["log_index"].as_u64().context("no log index")?;
        for (flags, node) in [
            (&["--consistency", "linearizable"][..], None),
            (&["--min-log-index", &index.to_string(), "--node", "n2"], Some("n2")),
            (&["--session", &file, "--node", "n3"], Some("n3")),
            (&["--session", &file, "--consistency", "session"], None),
        ] {
            let args: Vec<&str> = ["query", "-o", "json", "get x"].iter().chain(flags).copied().collect();
            let told = cluster.replicator(&args).await?.exits(0)?.json()?;
            ensure!(told["response"] == "1" && told["log_index"].as_u64() >= Some(index), "{flags:?}: {told}");
            ensure!(node.is_none_or(|node| told["node_id"] == node), "{flags:?}: {told}");
        }
        let future = (index + 100_000).to_string();
        let args = ["query", "--min-log-index", &future, "--deadline", "1", "-o", "json", "get x"];
        let told = cluster.replicator(&args).await?.exits(1)?;
        ensure!(error(&told)?["message"].as_str().is_some_and(|message| !message.is_empty()), "{told:?}");
        for wrong in [&["--consistency", "session"][..], &["--consistency", "local", "--min-log-index", "3"]] {
            let args: Vec<&str> = ["query", "get x"].iter().chain(wrong).copied().collect();
            cluster.replicator(&args).await?.exits(2)?;
        }
        // Without a majority, a node still says what it has, and only that.
        cluster.kill(&[0, 2])?;
        let local = ["query", "--node", &cluster[1].client_address, "--consistency", "local", "get x"];
        ensure!(cluster.replicator(&local).await?.exits(0)?.stdout == "1\n", "the local answer");
        let told = cluster.replicator(&["query", "--deadline", "1.5", "-o", "json", "get x"]).await?.exits(1)?;
        ensure!(!error(&told)?["message"].is_null(), "{told:?}");
        let unknown = cluster.replicator(&["query", "--node", "n9", "get x"]).await?.exits(1)?;
        unknown.complains_of(&["n9", "replicator status"])?;
        Ok(())
    });
}

#[test]
fn trap_is_an_outcome_with_its_place_in_the_log() {
    scenario(async |s| {
        // It echoes what follows an e, and panics at a p.
        let hostile = s.file("hostile.wasm", wat::parse_str(include_str!("hostile.wat"))?)?;
        let cluster = s.cluster_with(3, &hostile, &["--request-bytes", "50000"]).await?;
        let file = s.dir().join("session").display().to_string();
        let told = cluster.replicator(&["call", "--session", &file, "-o", "json", "p"]).await?.exits(1)?;
        let error = error(&told)?;
        ensure!(error["reason"] == "MODULE_TRAPPED" && error["log_index"].as_u64() > Some(0), "{error}");
        ensure!(told.stdout.is_empty(), "{told:?}");
        let index = error["log_index"].to_string();
        let told = cluster.replicator(&["call", "p"]).await?.exits(1)?.complains_of(&["trapped", "log index"])?;
        ensure!(!told.stderr.contains(&format!("index {index}:")), "two traps in one place: {told:?}");
        // It has used up its number, and the session goes on.
        let told = cluster.replicator(&["call", "--session", &file, "-o", "json", "e"]).await?.exits(0)?.json()?;
        ensure!(told["sequence"] == 2, "{told}");
        // Of many, the others go on.
        let told = piped(&cluster, &["call", "--stdin", "-o", "json"], "e1\np\ne2\n").await?.exits(1)?;
        let lines: Vec<Value> = told.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(lines.len() == 3 && lines[1]["error"]["reason"] == "MODULE_TRAPPED", "{lines:?}");
        ensure!(lines[0]["response"] == "1" && lines[2]["response"] == "2", "{lines:?}");
        Ok(())
    });
}

/// A `replicator call` that is under way.
fn start(endpoints: &str, args: &[&str]) -> Result<Child> {
    let mut command = prepared(&replicator(), args, &[("REPLICATOR_ENDPOINTS", endpoints)]);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Kills a call after its request has reached the primary's log and before there can be an answer: the followers stand still.
async fn kill_between_proposal_and_answer(cluster: &mut Cluster, args: &[&str], input: &str) -> Result<usize> {
    let primary = cluster.wait_primary().await?;
    let before = cluster.status(primary).await?.last_log_index;
    for follower in cluster.others(primary) {
        cluster[follower].pause()?;
    }
    let mut call = start(&cluster[primary].client_address, args)?;
    if let Some(mut stdin) = call.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let in_the_log = until("the request is in the primary's log", async || {
        let last = cluster.status(primary).await?.last_log_index;
        ensure!(last > before, "its log ends at {last}");
        Ok(())
    });
    let reached = in_the_log.await;
    ensure!(call.try_wait()?.is_none(), "the call ended without a majority");
    call.kill()?;
    call.wait()?;
    for follower in cluster.others(primary) {
        cluster[follower].resume()?;
    }
    reached?;
    Ok(primary)
}

#[test]
fn killed_call_is_finished_by_its_repeat_and_executed_once() {
    scenario(async |s| {
        let mut cluster = s.cluster_with(3, &module("counter"), &NO_TICKS).await?;
        let path = s.dir().join("session");
        let file = path.display().to_string();
        let first = cluster.replicator(&["call", "--session", &file, "add x 1"]).await?.exits(0)?;
        ensure!(first.stdout == "1\n", "{first:?}");
        ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600, "others can read the session");
        // The same command again: the same number.
        let args = ["call", "--session", &file, "add x 10"];
        kill_between_proposal_and_answer(&mut cluster, &args, "").await?;
        let json = ["call", "--session", &file, "-o", "json", "add x 10"];
        let again = cluster.replicator(&json).await?.exits(0)?;
        let told = again.json()?;
        ensure!(told["response"] == "11" && told["sequence"] == 2 && told["repeated"] == true, "{told}");
        ensure!(again.stderr.contains("interrupted earlier; it is not executed twice"), "{again:?}");
        // Another command: the interrupted one is finished first, and said.
        kill_between_proposal_and_answer(&mut cluster, &args, "").await?;
        let other = cluster.replicator(&["call", "--session", &file, "add x 100"]).await?.exits(0)?;
        ensure!(other.stdout == "121\n", "{other:?}");
        other.complains_of(&["request 3, interrupted earlier, was executed at log index", "answered: 21"])?;
        // Now the same words are a new request.
        let new = cluster.replicator(&json).await?.exits(0)?.json()?;
        ensure!(new["response"] == "131" && new["sequence"] == 5 && new["repeated"].is_null(), "{new}");
        cluster.expect_counter("x", 131).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn killed_lines_go_on_where_they_were_answered_last() {
    scenario(async |s| {
        let mut cluster = s.cluster_with(3, &module("counter"), &NO_TICKS).await?;
        let file = s.dir().join("session").display().to_string();
        let args = ["call", "--session", &file, "--stdin"];
        let lines: Vec<String> = (1..=40).map(|n| format!("add x {n}\n")).collect();
        let done = piped(&cluster, &args, lines[..10].concat()).await?.exits(0)?;
        ensure!(done.stdout.lines().count() == 10, "{done:?}");
        kill_between_proposal_and_answer(&mut cluster, &args, &lines[10..30].concat()).await?;
        // Nothing had been answered, so the input goes on there.
        let done = piped(&cluster, &args, lines[10..].concat()).await?.exits(0)?;
        let sums: Vec<u64> = (11..=40).map(|n| n * (n + 1) / 2).collect();
        let told: Vec<u64> = done.stdout.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(told == sums, "{told:?}");
        cluster.expect_counter("x", 820).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn call_without_an_answer_says_so_and_is_finished_later() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let file = s.dir().join("session").display().to_string();
        cluster.replicator(&["call", "--session", &file, "add x 1"]).await?.exits(0)?;
        let primary = cluster.wait_primary().await?;
        for follower in cluster.others(primary) {
            cluster[follower].pause()?;
        }
        let args = ["call", "--session", &file, "--deadline", "2", "-o", "json", "add x 1"];
        let lost = cluster.replicator(&args).await?.exits(1)?;
        let told = error(&lost)?;
        ensure!(told["reason"] == "OUTCOME_UNKNOWN", "{told}");
        ensure!(told["message"].as_str().is_some_and(|told| told.contains("give the same command again")), "{told}");
        // Still nobody: it stays as it was.
        cluster.replicator(&args).await?.exits(1)?.complains_of(&["interrupted earlier, has to be finished first"])?;
        for follower in cluster.others(primary) {
            cluster[follower].resume()?;
        }
        let found = until("the cluster answers again", async || {
            cluster.replicator(&["call", "--session", &file, "-o", "json", "add x 1"]).await?.exits(0)?.json()
        });
        let found = found.await?;
        ensure!(found["response"] == "2" && found["sequence"] == 2, "{found}");
        cluster.expect_counter("x", 2).await?;
        // Without a file nothing can be asked later, and that is said.
        cluster.kill(&[0, 1, 2])?;
        let none = cluster.replicator(&["call", "--deadline", "1", "-o", "json", "add x 1"]).await?.exits(1)?;
        ensure!(error(&none)?["message"].as_str().is_some_and(|told| told.contains("cannot connect")), "{none:?}");
        Ok(())
    });
}

#[test]
fn refused_line_before_others_leaves_no_hole_for_the_next_call() {
    scenario(async |s| {
        let cluster = s.cluster_with(3, &module("counter"), &["--request-bytes", "5000"]).await?;
        let file = s.dir().join("session").display().to_string();
        let args = ["call", "--session", &file, "--stdin"];
        let input = format!("add x 1\n{}\n{}", " ".repeat(6_000), "add x 1\n".repeat(8));
        let mut sum = 0;
        // In the middle, and as the first line of a session that goes on or begins anew.
        for input in [&input[..], &input[8..]] {
            let told =
                piped(&cluster, &args, input).await?.exits(1)?.complains_of(&["stopped at line", "too large"])?;
            // What is told as done is done, and what isn't never is.
            sum += told.stdout.lines().filter(|line| line.parse::<u64>().is_ok()).count() as u64;
            cluster.expect_counter("x", sum).await?;
            let next = cluster.replicator(&["call", "--session", &file, "add x 1"]).await?.exits(0)?;
            sum += 1;
            ensure!(next.stdout == format!("{sum}\n") && next.stderr.is_empty(), "{next:?}");
            let again = piped(&cluster, &args, "add x 1\nadd x 1\n").await?.exits(0)?;
            ensure!(again.stdout == format!("{}\n{}\n", sum + 1, sum + 2), "{again:?}");
            sum += 2;
            cluster.expect_counter("x", sum).await?;
        }
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn session_that_is_gone_or_no_session_is_told_with_what_to_do() {
    scenario(async |s| {
        let cluster = s.cluster_with(1, &module("counter"), &["--tick-ms", "300", "--session-ttl-ms", "1000"]).await?;
        let path = s.dir().join("session");
        let file = path.display().to_string();
        let args = ["call", "--session", &file, "-o", "json", "add x 1"];
        cluster.replicator(&args).await?.exits(0)?;
        until("the session expires", async || {
            let sessions = cluster.status(0).await?.sessions;
            ensure!(sessions == 0, "{sessions} sessions are open");
            Ok(())
        })
        .await?;
        let gone = cluster.replicator(&args).await?.exits(1)?;
        ensure!(error(&gone)?["reason"] == "SESSION_EXPIRED", "{gone:?}");
        gone.complains_of(&["remove", "session"])?;
        fs::remove_file(&path)?;
        let anew = cluster.replicator(&args).await?.exits(0)?.json()?;
        ensure!(anew["sequence"] == 1 && anew["response"] == "2", "{anew}");
        fs::write(&path, "{}")?;
        cluster.replicator(&args).await?.exits(1)?.complains_of(&["holds no session", "remove this one"])?;
        ensure!(fs::read_to_string(&path)? == "{}", "it was written over");
        // Refused before it was executed: no effect, and the number is free.
        fs::remove_file(&path)?;
        let large = s.file("large", vec![b' '; 2 << 20])?.display().to_string();
        let told = cluster.replicator(&["call", "--session", &file, "--file", &large, "-o", "json"]).await?.exits(1)?;
        ensure!(error(&told)?["reason"] == "REQUEST_TOO_LARGE", "{told:?}");
        ensure!(cluster.replicator(&args).await?.exits(0)?.json()?["sequence"] == 1, "the number was used up");
        Ok(())
    });
}

#[test]
fn old_copy_of_a_session_file_is_noticed_and_executes_nothing_twice() {
    scenario(async |s| {
        let cluster = s.cluster(1, &module("counter")).await?;
        let path = s.dir().join("session");
        let file = path.display().to_string();
        let args = ["call", "--session", &file, "-o", "json", "add x 1"];
        cluster.replicator(&args).await?.exits(0)?;
        let old = fs::read_to_string(&path)?;
        for _ in 0..2 {
            cluster.replicator(&args).await?.exits(0)?;
        }
        // Its next number is one that the cluster has forgotten by now.
        fs::write(&path, &old)?;
        let told = cluster.replicator(&args).await?.exits(1)?;
        ensure!(error(&told)?["reason"] == "SEQUENCE_STALE", "{told:?}");
        cluster.expect_counter("x", 3).await?;
        let next = cluster.replicator(&args).await?.exits(0)?.json()?;
        ensure!(next["sequence"] == 4 && next["response"] == "4", "it is not in step again: {next}");
        // The same with requests that were under way: one forgotten, one whose number went to another, one that was never sent.
        let hex = |request: &str| request.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        let under_way = [hex("add x 1"), hex("add x 1"), hex("add x 100"), hex("add x 1000")];
        let under_way = under_way.map(|request| format!("\"{request}\"")).join(", ");
        ensure!(old.contains("\"next_sequence\": 2") && old.contains("\"unanswered\": []"), "{old}");
        fs::write(&path, old.replace("\"unanswered\": []", &format!("\"unanswered\": [{under_way}]")))?;
        let told = cluster.replicator(&["call", "--session", &file, "add x 10000"]).await?.exits(0)?;
        let told = told.complains_of(&[
            "request 2, interrupted earlier, was executed; its answer is no longer kept",
            "request 3, interrupted earlier, was executed; its answer is no longer kept",
            "request 4, interrupted earlier, was not executed: its number was used for another",
            "request 5, interrupted earlier, was executed at log index",
            "answered: 1004",
        ])?;
        ensure!(told.stdout == "11004\n", "{told:?}");
        cluster.expect_counter("x", 11_004).await
    });
}
