//! The program `replicator` and a node's doors as users, scripts, load balancers and scanners meet them.

#[path = "commands/watch.rs"]
mod watch;

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use replicator_client::{ErrorReason, proto::QueryRequest};
use replicator_tests::{Cluster, Ran, Scenario, module, reason, replicator, run, scenario, until, until_within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1 as reflection;

/// A good file, line by line; line 1 is `name`.
fn config(s: &Scenario) -> String {
    format!(
        "name = \"n1\"\ndata_dir = '{}'\nclient_address = \"127.0.0.1:7101\"\npeer_address = \"127.0.0.1:7201\"\n",
        s.dir().join("data").display()
    )
}

async fn node_with(s: &Scenario, config: &str) -> Result<Ran> {
    let file = s.file("node.toml", config)?;
    let file = file.display().to_string();
    run(&replicator(), ["node", "--exit-with-stdin", "--config", &file], &[]).await
}

#[test]
fn bad_configuration_is_named_with_its_line_and_exits_2() {
    scenario(async |s| {
        let good = config(s);
        let bad = [
            ("name = \"n1\"", "nmae = \"n1\"", &["line 1", "nmae"][..]),
            ("name = \"n1\"", "name = \"n 1\"", &["line 1", "no node name"]),
            ("client_address = \"127.0.0.1:7101\"", "client_address = \"127.0.0.1\"", &["line 3", "host:port"]),
            ("client_address = \"127.0.0.1:7101\"", "client_address = 7101", &["line 3", "string"]),
            ("client_address = \"127.0.0.1:7101\"", "client_address = \"127.0.0.1:7201\"", &["use two"]),
            ("peer_address = \"127.0.0.1:7201\"", "peer_address = \"127.0.0.1:99999\"", &["line 4", "host:port"]),
            ("peer_address = \"127.0.0.1:7201\"", "", &["peer_address", "--peer-address", "REPLICATOR_PEER_ADDRESS"]),
            ("name = \"n1\"", "", &["--name", "REPLICATOR_NAME"]),
            ("name = \"n1\"", "name = \"n1", &["line 1"]),
            ("name = \"n1\"", "name = \"n1\"\nlog = \"loud,=\"", &["loud"]),
            ("name = \"n1\"", "name = \"n1\"\nmode = \"anarchy\"", &["line 2", "anarchy"]),
        ];
        for (line, wrong, words) in bad {
            ensure!(good.contains(line), "{line}");
            let told = node_with(s, &good.replace(line, wrong)).await?;
            let told = told.exits(2).with_context(|| wrong.to_owned())?.complains_of(words)?;
            ensure!(!s.dir().join("data").exists(), "{wrong}: the folder was made");
            ensure!(told.stdout.is_empty(), "{wrong}: {}", told.stdout);
        }
        let two = format!("{good}peers = [{{ name = \"n2\", peer_address = \"127.0.0.1:7202\" }}]\n");
        node_with(s, &two).await?.exits(2)?.complains_of(&["2 nodes", "1, 3 or 5"])?;
        let twice = format!("{good}peers = [{{ name = \"n1\", peer_address = \"127.0.0.1:7202\" }}]\n");
        node_with(s, &twice).await?.exits(2)?.complains_of(&["two nodes are called n1"])?;
        let typo = format!("{good}[timing]\nheartbeat_msec = 50\n");
        node_with(s, &typo).await?.exits(2)?.complains_of(&["line 6", "heartbeat_msec"])?;
        let missing = run(&replicator(), ["node", "--config", "/nowhere/node.toml"], &[]).await?;
        missing.exits(2)?.complains_of(&["/nowhere/node.toml"])?;
        run(&replicator(), ["node", "--client-address", "here"], &[]).await?.exits(2)?.complains_of(&["host:port"])?;
        run(&replicator(), ["conquer"], &[]).await?.exits(2)?;
        Ok(())
    });
}

#[test]
fn address_in_use_is_named_and_exits_1() {
    scenario(async |s| {
        let cluster = s.blank(1).await?;
        let taken = &cluster[0].client_address;
        let config = config(s).replace("127.0.0.1:7101", taken).replace("7201", "0");
        node_with(s, &config).await?.exits(1)?.complains_of(&[taken, "client_address", "another process has it"])?;
        Ok(())
    });
}

#[test]
fn status_is_json_for_programs_and_plain_text_in_pipes() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let status = cluster.replicator(&["status", "-o", "json"]).await?.exits(0)?.json()?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let names: Vec<_> = nodes.iter().filter_map(|node| node["node_id"].as_str()).collect();
        ensure!(names == ["n1", "n2", "n3"], "{names:?}");
        let primaries = nodes.iter().filter(|node| node["state"] == "primary").count();
        ensure!(primaries == 1, "{primaries} primaries: {status}");
        for node in nodes {
            ensure!(node["members"].as_array().is_some_and(|members| members.len() == 3), "{node}");
            ensure!(node["module"].as_str().is_some_and(|module| module.starts_with("app=counter ")), "{node}");
            ensure!(node["mode"] == "majority" && node["incarnation"] == 1, "{node}");
        }
        // One endpoint is enough: the others are found.
        let one = run(&replicator(), ["status", "-o", "json", "--endpoints", &cluster[1].client_address], &[]).await?;
        ensure!(one.exits(0)?.json()?["nodes"].as_array().map(Vec::len) == Some(3), "the others were not found");
        for environment in [&[][..], &[("NO_COLOR", "1")], &[("CLICOLOR", "1"), ("TERM", "xterm-256color")]] {
            let endpoints = cluster.endpoints();
            let args = ["status", "--verify", "--endpoints", &endpoints];
            let table = run(&replicator(), args, environment).await?.exits(0)?;
            ensure!(!table.stdout.contains('\u{1b}'), "escape codes in a pipe: {:?}", table.stdout);
            ensure!(table.stdout.contains("NODE") && table.stdout.contains("3 replicas are equal"), "{}", table.stdout);
        }
        cluster.kill(&[2])?;
        let table = cluster.replicator(&["status"]).await?.exits(0)?;
        ensure!(table.stdout.contains("unreachable") && !table.stdout.contains('\u{1b}'), "{}", table.stdout);
        cluster.kill(&[0, 1])?;
        let none = cluster.replicator(&["status"]).await?.exits(1)?.complains_of(&["none of the endpoints answers"])?;
        ensure!(!none.stderr.contains('\u{1b}'), "escape codes in a pipe: {:?}", none.stderr);
        cluster.replicator(&["status", "--verify"]).await?.exits(1)?;
        Ok(())
    });
}

#[test]
fn bad_addresses_and_command_lines_exit_2_and_errors_are_json_for_programs() {
    scenario(async |s| {
        let module = module("counter").display().to_string();
        let commands: [&[&str]; 6] = [
            &["status"],
            &["status", "--watch"],
            &["call", "x"],
            &["query", "x"],
            &["member", "transfer", "n1"],
            &["init", "--module", &module],
        ];
        for command in commands {
            for address in ["foo", "foo:", "127.0.0.1:99999", "127.0.0.1:7101,foo", "http://x/y"] {
                let args: Vec<&str> = command.iter().chain(&["--endpoints", address]).copied().collect();
                let told = run(&replicator(), &args, &[]).await?.exits(2)?.complains_of(&["host:port"])?;
                ensure!(told.stderr.starts_with("error: "), "{told:?}");
                let args: Vec<&str> = args.iter().chain(&["-o", "json"]).copied().collect();
                let told = run(&replicator(), &args, &[]).await?.exits(2)?;
                let json: serde_json::Value = serde_json::from_str(&told.stderr).context("no JSON")?;
                ensure!(json["error"]["message"].as_str().is_some_and(|told| told.contains("host:port")), "{json}");
                ensure!(told.stdout.is_empty(), "{told:?}");
            }
        }
        for wrong in [&["conquer", "-o", "json"][..], &["status", "-o", "json"], &["call", "--output=json", "--frob"]] {
            let told = run(&replicator(), wrong, &[]).await?.exits(2)?;
            let json: serde_json::Value = serde_json::from_str(&told.stderr).context("no JSON")?;
            ensure!(json["error"]["message"].as_str().is_some_and(|told| told.contains("--help")), "{json}");
        }
        // A failure has its reason beside its words: here a blank node, which can't serve.
        let cluster = s.blank(1).await?;
        let told = cluster.replicator(&["call", "--deadline", "1", "x", "-o", "json"]).await?.exits(1)?;
        let json: serde_json::Value = serde_json::from_str(&told.stderr).context("no JSON")?;
        ensure!(json["error"]["reason"] == "NOT_READY", "{json}");
        Ok(())
    });
}

#[test]
fn completions_are_there_for_every_shell() {
    scenario(async |_| {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let told = run(&replicator(), ["completions", shell], &[]).await?.exits(0)?;
            for word in ["status", "call", "query", "--endpoints", "--watch", "completions"] {
                ensure!(told.stdout.contains(word.trim_start_matches('-')), "{shell} doesn't know {word}");
            }
        }
        // A shell that is here can read its own.
        let bash = run(&replicator(), ["completions", "bash"], &[]).await?.exits(0)?.stdout;
        let read = format!("{bash}\ncomplete -p replicator");
        run(std::path::Path::new("bash"), ["-c", &read], &[]).await?.exits(0)?;
        run(&replicator(), ["completions", "tcsh"], &[]).await?.exits(2)?;
        Ok(())
    });
}

#[test]
fn node_log_in_a_file_has_no_escape_codes() {
    scenario(async |s| {
        let mut cluster = s.cluster(1, &module("counter")).await?;
        cluster[0].shut_down().await?;
        let told = cluster[0].told(0)?;
        ensure!(told.contains("serving") && told.contains("stopping"), "{told}");
        ensure!(!told.contains('\u{1b}'), "escape codes in a file: {told:?}");
        Ok(())
    });
}

async fn health(cluster: &Cluster, index: usize, service: &str) -> Result<ServingStatus> {
    let mut health = HealthClient::new(cluster.channel(index).await?);
    let service = service.to_owned();
    Ok(health.check(HealthCheckRequest { service }).await?.into_inner().status())
}

async fn wait_health(cluster: &Cluster, index: usize, wanted: ServingStatus) -> Result<()> {
    for service in ["", "replicator.v1.ReplicatorService"] {
        until(&format!("{} is {wanted:?} for {service:?}", cluster[index].name), async || {
            let found = health(cluster, index, service).await?;
            ensure!(found == wanted, "it is {found:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[test]
fn health_follows_whether_the_node_can_serve() {
    scenario(async |s| {
        let mut cluster = s.blank(3).await?;
        wait_health(&cluster, 0, ServingStatus::NotServing).await?;
        cluster.init(&module("counter"), &[]).await?;
        for index in 0..3 {
            wait_health(&cluster, index, ServingStatus::Serving).await?;
        }
        let primary = cluster.wait_primary().await?;
        for left in [primary, (primary + 1) % 3] {
            let killed = cluster.others(left);
            cluster.kill(&killed)?;
            wait_health(&cluster, left, ServingStatus::NotServing).await?;
            for index in killed {
                cluster[index].start(&[])?;
            }
            for index in 0..3 {
                wait_health(&cluster, index, ServingStatus::Serving).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn reflection_lists_the_services_that_clients_may_call() {
    use reflection::{
        server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    scenario(async |s| {
        let cluster = s.blank(1).await?;
        let mut client = ServerReflectionClient::new(cluster.channel(0).await?);
        let ask = |message_request| reflection::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let symbol = MessageRequest::FileContainingSymbol("replicator.v1.ReplicatorService.Execute".to_owned());
        let asked = [ask(MessageRequest::ListServices(String::new())), ask(symbol)];
        let mut answers = client.server_reflection_info(tokio_stream::iter(asked)).await?.into_inner();
        let listed = answers.message().await?.and_then(|answer| answer.message_response);
        let Some(MessageResponse::ListServicesResponse(listed)) = listed else { bail!("{listed:?}") };
        let names: BTreeSet<String> = listed.service.into_iter().map(|service| service.name).collect();
        for service in ["replicator.v1.ReplicatorService", "replicator.v1.AdminService", "grpc.health.v1.Health"] {
            ensure!(names.contains(service), "{service} is not among {names:?}");
        }
        let file = answers.message().await?.and_then(|answer| answer.message_response);
        let Some(MessageResponse::FileDescriptorResponse(file)) = file else { bail!("{file:?}") };
        ensure!(!file.file_descriptor_proto.is_empty(), "an empty descriptor");
        Ok(())
    });
}

/// Reads until the other side closes.
async fn closed(mut stream: TcpStream, limit: Duration) -> Result<()> {
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(limit, stream.read_to_end(&mut bytes)).await;
    end.with_context(|| format!("the socket is open after {limit:?}"))?.ok(); // A reset is an end too.
    Ok(())
}

#[test]
fn silent_and_dribbling_sockets_are_closed_and_stop_nobody() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let doors = [cluster[0].client_address.clone(), cluster[0].peer_address.clone()];
        let began = Instant::now();
        let mut ends = Vec::new();
        for door in &doors {
            for _ in 0..200 {
                let silent = TcpStream::connect(door).await?;
                ends.push(tokio::spawn(closed(silent, Duration::from_secs(20))));
            }
            let mut wrong = TcpStream::connect(door).await?;
            wrong.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            ends.push(tokio::spawn(closed(wrong, Duration::from_secs(5))));
            let mut dribbling = TcpStream::connect(door).await?;
            ends.push(tokio::spawn(async move {
                // One byte of a good preface each second: the deadline is for the whole of it.
                for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
                    if dribbling.write_all(&[*byte]).await.is_err() {
                        return Ok(());
                    }
                    let mut end = [0];
                    match tokio::time::timeout(Duration::from_secs(1), dribbling.read(&mut end)).await {
                        Ok(Ok(0) | Err(_)) => return Ok(()),
                        Ok(Ok(_)) => bail!("the node spoke to half a preface"),
                        Err(_) => {}
                    }
                }
                bail!("a preface that took {} s was taken", began.elapsed().as_secs())
            }));
        }
        // Meanwhile others are served.
        let session = cluster.client_of(0)?.open_session(None).await?;
        let mut number = 0;
        while ends.iter().any(|end| !end.is_finished()) {
            number += 1;
            let answer = session.execute("add x 1").await?;
            ensure!(answer.response == number.to_string(), "{answer:?}");
        }
        for end in ends {
            end.await??;
        }
        ensure!(number > 10, "only {number} requests were served meanwhile");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn garbage_after_a_good_preface_harms_only_its_own_connection() {
    scenario(async |s| {
        let cluster = s.cluster(1, &module("counter")).await?;
        for door in [cluster[0].client_address.clone(), cluster[0].peer_address.clone()] {
            for seed in 0..20_u8 {
                let mut stream = TcpStream::connect(&door).await?;
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
                let garbage: Vec<u8> =
                    (0..4_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
                let _ = stream.write_all(&garbage).await; // It may be closed already.
                closed(stream, Duration::from_secs(10)).await?;
            }
        }
        cluster.counter_at(0, "x").await?;
        let cut = QueryRequest { session_id: vec![1].into(), ..QueryRequest::default() };
        let status = cluster.node(0).await?.query(cut).await.expect_err("a session id of one byte was taken");
        ensure!(reason(&status) == Some(ErrorReason::InvalidRequest), "{status:?}");
        Ok(())
    });
}

#[test]
fn demo_script_tells_its_story_and_exits_0() {
    scenario(async |s| {
        s.turn().await?;
        let told = run(&replicator(), ["demo", "--script"], &[("NO_COLOR", "1")]).await?.exits(0)?;
        ensure!(told.stdout.contains("lost=0 doubled=0 unknown=0"), "{}", told.stdout);
        ensure!(told.stdout.contains("Every step held") && !told.stdout.contains('\u{1b}'), "{}", told.stdout);
        Ok(())
    });
}

/// A `replicator demo` in live mode.
struct Demo {
    child: std::process::Child,
    dir: std::path::PathBuf,
}

impl Demo {
    async fn start(s: &Scenario) -> Result<Self> {
        s.turn().await?;
        let dir = s.dir().join("demo");
        let out = fs::File::create(s.dir().join("demo.out"))?;
        let child = Command::new(replicator())
            .args(["demo", "--data-dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let demo = Self { child, dir };
        until("the demo says what to type", async || {
            let told = fs::read_to_string(s.dir().join("demo.out"))?;
            ensure!(told.contains("Ctrl-C ends it all"), "{told}");
            Ok(())
        })
        .await?;
        ensure!(demo.nodes()?.len() == 3, "{:?}", demo.nodes()?);
        Ok(demo)
    }

    /// The node processes that run on the demo's folder.
    fn nodes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(" node ") && line.contains(&*self.dir.to_string_lossy()) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    async fn wait_no_nodes(&self) -> Result<()> {
        until_within(Duration::from_secs(10), "no node process is left", async || {
            let left = self.nodes()?;
            ensure!(left.is_empty(), "{left:?} run");
            Ok(())
        })
        .await
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn demo_killed_leaves_no_node_behind() {
    scenario(async |s| {
        let mut demo = Demo::start(s).await?;
        demo.child.kill()?;
        demo.child.wait()?;
        demo.wait_no_nodes().await
    });
}

#[test]
fn demo_brings_a_killed_node_back_and_ends_well_on_interrupt() {
    scenario(async |s| {
        let mut demo = Demo::start(s).await?;
        let before = demo.nodes()?;
        let pid = |pid: u32| rustix::process::Pid::from_raw(i32::try_from(pid).unwrap_or_default());
        let victim = pid(before[0]).context("no pid")?;
        rustix::process::kill_process(victim, rustix::process::Signal::KILL)?;
        until("the killed node is back", async || {
            let told = fs::read_to_string(s.dir().join("demo.out"))?;
            ensure!(told.contains("is back"), "{told}");
            ensure!(demo.nodes()?.len() == 3, "{:?}", demo.nodes()?);
            Ok(())
        })
        .await?;
        let child = pid(demo.child.id()).context("no pid")?;
        rustix::process::kill_process(child, rustix::process::Signal::INT)?;
        let status = until("the demo ends", async || demo.child.try_wait()?.context("it runs")).await?;
        ensure!(status.success(), "it ended with {status}");
        demo.wait_no_nodes().await
    });
}
