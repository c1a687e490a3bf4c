//! `--vote`: every server is asked.

use std::net::TcpListener;

use serde_json::Value;

use crate::{User, server::Server};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn servers_that_agree_are_said_to() {
    let server = Server::start(3);
    let alice = User::new(&server, "alice");
    alice.enter();
    let (sent, verdict) = alice.run(0, &["--vote", "send", "alice", "hi"]);
    assert_eq!((sent.as_str(), verdict.as_str()), ("sent 1 to alice\n", "AGREED 3/3\n"));
    assert_eq!(server.texts("alice"), ["hi"], "three requests of one number: once");
    let (me, quiet) = alice.run(0, &["--vote", "-o", "json", "whoami"]);
    assert_eq!((&json(&me)["vote"], &json(&me)["unread"], quiet.as_str()), (&"AGREED 3/3".into(), &1.into(), ""));
    let (_, verdict) = alice.run(0, &["list", "--vote"]);
    assert_eq!(verdict, "AGREED 3/3\n", "of all pages together");
    let (_, refused) = alice.run(1, &["--vote", "send", "nobody", "x"]);
    assert!(refused.contains("AGREED 3/3") && refused.contains("no such account"), "{refused}");
    let (lines, _) = alice.run_with(0, &["--vote", "-o", "json", "send", "alice", "--stdin"], "a\nb\n");
    assert!(lines.lines().all(|line| json(line)["vote"] == "AGREED 3/3"), "{lines}");
}

#[test]
fn one_wrong_server_is_outvoted_and_shown() {
    let server = Server::start(3);
    let alice = User::new(&server, "alice");
    alice.enter();
    server.let_lie(&[1]);
    let (me, verdict) = alice.run(0, &["--vote", "whoami"]);
    assert_eq!(me, "alice; 0 unread\n");
    assert!(verdict.starts_with("MAJORITY 2/3\n") && verdict.contains("unread: 2"), "{verdict}");
}

#[test]
fn servers_that_all_differ_fail_the_command_with_3() {
    let server = Server::start(3);
    let alice = User::new(&server, "alice");
    alice.enter();
    server.let_lie(&[0, 1, 2]);
    let (_, verdict) = alice.run(3, &["--vote", "whoami"]);
    assert!(verdict.starts_with("DISAGREE\n") && verdict.lines().count() == 4, "{verdict}");
    for difference in ["unread: 1", "unread: 2", "unread: 3"] {
        assert!(verdict.contains(difference), "{verdict}");
    }
    let (sent, _) = alice.run(3, &["--vote", "-o", "json", "send", "alice", "hi"]);
    let sent = json(&sent);
    assert_eq!((&sent["vote"], sent["ballots"].as_array().map(Vec::len)), (&"DISAGREE".into(), Some(3)), "{sent}");
}

#[test]
fn too_few_servers_confirm_nothing() {
    let server = Server::start(1);
    let mut alice = User::new(&server, "alice");
    alice.enter();
    // Two more that nobody listens at.
    let closed = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    alice.endpoints = format!("{},{},{}", alice.endpoints, closed[0], closed[1]);
    let (me, verdict) = alice.run(1, &["--vote", "--deadline", "1", "whoami"]);
    assert_eq!(me, "alice; 0 unread\n");
    assert!(verdict.starts_with("UNCONFIRMED 1/3\n"), "{verdict}");
    assert!(closed.iter().all(|address| verdict.contains(&format!("{address}: no answer"))), "{verdict}");
}

#[test]
fn where_it_makes_no_sense_it_is_refused() {
    let server = Server::start(1);
    let alice = User::new(&server, "alice");
    alice.enter();
    for args in [&["--vote"][..], &["--vote", "listen"], &["--vote", "send", "alice", "--stdin", "--window", "8"]] {
        let (_, error) = alice.run(2, args);
        assert!(error.contains("--vote"), "{error}");
    }
}
