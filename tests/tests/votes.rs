//! Votes with real replicas, some of which answer wrongly: the build with the planted fault.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Scenario, module, replicator, scenario, wrong_replicator};
use serde_json::Value;

/// A cluster of the counter module whose replicas append these texts to their answers; none: they answer rightly.
async fn cluster(s: &Scenario, wrong: [Option<&str>; 3]) -> Result<Cluster> {
    let mut cluster = s.prepare(3).await?;
    for (index, text) in wrong.iter().enumerate() {
        if let Some(text) = text {
            cluster[index].answer_wrongly(text);
        }
    }
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    Ok(cluster)
}

/// The answers of a vote, by node.
fn ballots(told: &Value) -> Result<Vec<(String, String)>> {
    let ballots = told["vote"]["ballots"].as_array().context("no ballots")?;
    let mut ballots: Vec<(String, String)> = ballots
        .iter()
        .map(|ballot| {
            let text = |key: &str| ballot[key].as_str().unwrap_or("-").to_owned();
            (text("node_id"), text("response"))
        })
        .collect();
    ballots.sort();
    Ok(ballots)
}

fn named(expected: [(&str, &str); 3]) -> Vec<(String, String)> {
    expected.map(|(node, answer)| (node.to_owned(), answer.to_owned())).to_vec()
}

#[test]
fn replicas_that_agree_are_told_to() {
    scenario(async |s| {
        let cluster = cluster(s, [None; 3]).await?;
        let told = cluster.replicator(&["call", "--vote", "add x 5"]).await?.exits(0)?;
        ensure!(told.stdout == "5\n" && told.stderr.trim() == "AGREED 3/3", "{told:?}");
        let told = cluster.replicator(&["call", "--vote", "-o", "json", "add x 1"]).await?.exits(0)?;
        let json = told.json()?;
        ensure!(json["response"] == "6" && json["vote"]["verdict"] == "AGREED 3/3", "{json}");
        ensure!(ballots(&json)? == named([("n1", "6"), ("n2", "6"), ("n3", "6")]), "{json}");
        let told = cluster.replicator(&["query", "--vote", "get x"]).await?.exits(0)?;
        ensure!(told.stdout == "6\n" && told.stderr.trim() == "AGREED 3/3", "{told:?}");
        cluster.expect_counter("x", 6).await?;
        cluster.verify().await?;
        Ok(())
    });
}

/// Whichever replica it is, the primary too: the right answer wins, and the request is executed once.
#[test]
fn one_wrong_replica_is_outvoted_wherever_it_is() {
    scenario(async |s| {
        let mut cluster = cluster(s, [None, Some(" or so"), None]).await?;
        for (primary, expected) in [("n2", "1"), ("n3", "2")] {
            let moved = cluster.replicator(&["member", "transfer", primary]).await?.exits(0)?;
            ensure!(moved.stdout.contains(primary), "{moved:?}");
            let told = cluster.replicator(&["call", "--vote", "add x 1"]).await?.exits(0)?;
            ensure!(told.stdout.trim() == expected && told.stderr.trim() == "MAJORITY 2/3", "{told:?}");
            for _ in 0..5 {
                let told = cluster.replicator(&["query", "--vote", "get x"]).await?.exits(0)?;
                ensure!(told.stdout.trim() == expected && told.stderr.trim() == "MAJORITY 2/3", "{told:?}");
            }
        }
        let told = cluster.replicator(&["call", "--vote", "-o", "json", "add x 1"]).await?.exits(0)?.json()?;
        ensure!(ballots(&told)? == named([("n1", "3"), ("n2", "3 or so"), ("n3", "3")]), "{told}");
        ensure!(told["response"] == "3" && told["vote"]["verdict"] == "MAJORITY 2/3", "{told}");
        let told = cluster.replicator(&["query", "--vote", "-o", "json", "get x"]).await?.exits(0)?.json()?;
        ensure!(ballots(&told)? == named([("n1", "3"), ("n2", "3 or so"), ("n3", "3")]), "{told}");
        // What clients are told is wrong, and nothing else: the replicas are equal. Asked alone, the node lies.
        let alone = cluster.replicator(&["query", "--node", "n2", "get x"]).await?.exits(0)?;
        ensure!(alone.stdout == "3 or so\n", "{alone:?}");
        cluster.verify().await?;
        // Two of the three asked are one right and one wrong answer: neither has a majority.
        cluster.kill(&[0])?;
        cluster.wait_primary_among(&[1, 2]).await?;
        let told = cluster.replicator(&["query", "--vote", "--deadline", "3", "get x"]).await?;
        ensure!(told.code == Some(3) && told.stderr.contains("DISAGREE"), "{told:?}");
        Ok(())
    });
}

#[test]
fn three_different_answers_disagree_and_exit_3() {
    scenario(async |s| {
        let cluster = cluster(s, [None, Some("0"), Some(" apples")]).await?;
        for (command, request, answers) in
            [("call", "add x 7", ["7", "70", "7 apples"]), ("query", "get x", ["7", "70", "7 apples"])]
        {
            let told = cluster.replicator(&[command, "--vote", request]).await?.exits(3)?;
            let first = told.stdout.lines().next().context("no answer is shown")?;
            ensure!(told.stdout.lines().count() == 1 && answers.contains(&first), "{told:?}");
            ensure!(told.stderr.contains("DISAGREE"), "{told:?}");
            for (node, answer) in ["n1", "n2", "n3"].into_iter().zip(answers) {
                let shown = told.stderr.lines().any(|line| line.contains(node) && line.contains(answer));
                ensure!(shown, "{node}'s answer {answer} is not in the table: {}", told.stderr);
            }
            // The one that is shown is marked as such.
            let shown = told.stderr.lines().filter(|line| line.starts_with("shown")).collect::<Vec<_>>();
            ensure!(shown.len() == 1 && shown[0].contains(first), "{}", told.stderr);
            let told = cluster.replicator(&[command, "--vote", "-o", "json", "get x"]).await?.exits(3)?;
            let json = told.json()?;
            ensure!(json["vote"]["verdict"] == "DISAGREE", "{json}");
            ensure!(ballots(&json)? == named([("n1", "7"), ("n2", "70"), ("n3", "7 apples")]), "{json}");
            let error: Value = serde_json::from_str(&told.stderr)?;
            ensure!(error["error"]["message"].as_str().is_some_and(|told| told.contains("DISAGREE")), "{error}");
        }
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn dead_replica_counts_among_those_asked() {
    scenario(async |s| {
        let mut cluster = cluster(s, [None; 3]).await?;
        cluster.kill(&[2])?;
        cluster.wait_primary_among(&[0, 1]).await?;
        let told = cluster.replicator(&["call", "--vote", "--deadline", "3", "add x 1"]).await?.exits(0)?;
        ensure!(told.stdout == "1\n" && told.stderr.trim() == "MAJORITY 2/3", "{told:?}");
        let told = cluster.replicator(&["query", "--vote", "--deadline", "3", "get x"]).await?.exits(0)?;
        ensure!(told.stdout == "1\n" && told.stderr.trim() == "MAJORITY 2/3", "{told:?}");
        // One answer of three confirms nothing.
        cluster.kill(&[1])?;
        let told = cluster
            .replicator(&["query", "--vote", "--consistency", "local", "--deadline", "3", "get x"])
            .await?
            .exits(1)?
            .complains_of(&["UNCONFIRMED 1/3"])?;
        ensure!(told.stdout == "1\n", "{told:?}");
        Ok(())
    });
}

#[test]
fn vote_in_a_kept_session_uses_one_number() {
    scenario(async |s| {
        let cluster = cluster(s, [None, None, Some("!")]).await?;
        let file = s.dir().join("session").display().to_string();
        for (sequence, command) in [(1, &["--vote"][..]), (2, &[]), (3, &["--vote"])] {
            let args = ["call", "--session", &file, "-o", "json", "add x 1"].into_iter().chain(command.iter().copied());
            let told = cluster.replicator(&args.collect::<Vec<_>>()).await?.exits(0)?.json()?;
            ensure!(told["sequence"] == sequence, "{told}");
        }
        cluster.replicator(&["call", "--session", &file, "--vote", "add x 1"]).await?.exits(0)?;
        let told = cluster.replicator(&["query", "--vote", "get x"]).await?.exits(0)?;
        ensure!(told.stdout == "4\n", "{told:?}");
        Ok(())
    });
}

/// Cargo switches a feature on for all that is built together: a careless command would put the fault into the real program.
#[test]
fn real_program_has_no_planted_fault() {
    let has = |program: &Path| {
        let bytes = fs::read(program).expect("the program can be read");
        let name = b"REPLICATOR_WRONG_ANSWERS";
        bytes.windows(name.len()).any(|window| window == name)
    };
    assert!(has(&wrong_replicator()), "the planted fault can't be found where it must be");
    assert!(
        !has(&replicator()),
        "the real program has the planted fault: build it with `make`, without replicator-wrong"
    );
}
