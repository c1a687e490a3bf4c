//! Replicas whose state differs, in both modes: the build with the planted fault, whose module gets another request than the log has. It is found out,
//! kept from answering, made anew, and let back, while the others serve.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use replicator_client::{
    Consistency, ErrorReason, Executed,
    proto::{self, Divergence, NodeState, QueryRequest, StatusResponse, SubscribeRequest},
};
use replicator_tests::{Cluster, Load, Requests as _, Scenario, advance, module, reason, scenario, settle, until};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const MODES: [&str; 2] = ["majority", "chain"];
/// The request that one replica executes as another one.
const ASKED: &str = "add z 7";
const DONE: &str = "add z 8";
/// An image after some hundred requests.
const OFTEN: &str = "[images]\nlog_bytes = 65536\n";

/// Three replicas of a module, and the witnesses that the mode wants; `wrong` gets another request, so many times.
async fn cluster(s: &Scenario, mode: &str, settings: &str, wrong: usize, times: u32) -> Result<Cluster> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n{settings}")).await?;
    cluster[wrong].diverge(ASKED, DONE, times);
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    Ok(cluster)
}

/// Executes some requests, and the one that a replica executes as another one, at a node that is right.
async fn ask(cluster: &Cluster, at: usize) -> Result<(replicator_client::Session, Executed)> {
    let session = cluster.client_of(at)?.open_session(None).await?;
    for number in 1..=3 {
        let told = session.execute("add a 1").await?;
        ensure!(told.response[..] == *number.to_string().as_bytes(), "{told:?}");
    }
    let told = session.execute(ASKED).await?;
    ensure!(told.response[..] == *b"7", "{told:?}");
    Ok((session, told))
}

/// Waits until a node is found out.
async fn found_out(cluster: &Cluster, node: usize) -> Result<(StatusResponse, Divergence)> {
    let status = cluster
        .wait_status(node, "is found out", |status| {
            status.state() == NodeState::Quarantined && status.divergence.is_some()
        })
        .await?;
    let divergence = status.divergence.clone().context("no divergence")?;
    Ok((status, divergence))
}

/// Waits until all replicas serve and nobody is quarantined.
async fn healed(cluster: &Cluster) -> Result<()> {
    for replica in cluster.replicas() {
        cluster.wait_serves(replica).await?;
    }
    Ok(())
}

/// Checks that a node answers no client in any way.
async fn answers_nobody(cluster: &Cluster, node: usize) -> Result<()> {
    // The Rust client would go to another node.
    let mut client = cluster.node(node).await?;
    let name = &cluster[node].name;
    let query = QueryRequest {
        request: "get a".into(),
        consistency: proto::Consistency::Local.into(),
        ..QueryRequest::default()
    };
    let Err(refused) = client.query(query).await else { bail!("{name} answers a query") };
    let told = refused.message().contains("not to be believed");
    ensure!(told && reason(&refused) == Some(ErrorReason::NodeHalted), "{refused:?}");
    ensure!(client.session(0).await.is_err(), "{name} opens a session");
    let subscribe = SubscribeRequest { topics: vec!["counters".into()], ..SubscribeRequest::default() };
    ensure!(client.subscribe(subscribe).await.is_err(), "{name} takes a subscription");
    let mut health = HealthClient::new(cluster.channel(node).await?);
    until("it says that it doesn't serve", async || {
        let checked = health.check(HealthCheckRequest { service: String::new() }).await?.into_inner();
        ensure!(checked.status() == ServingStatus::NotServing, "{checked:?}");
        Ok(())
    })
    .await
}

#[test]
fn a_replica_that_differs_is_quarantined_named_and_made_anew() {
    scenario(async |s| {
        for mode in MODES {
            // The first two times it is made anew it is wrong again.
            let cluster = cluster(s, mode, "", 2, 3).await?;
            let loads = Load::several(&cluster, 1).await?;
            advance(&loads, 50).await?;
            let (session, executed) = ask(&cluster, 0).await?;
            let (status, divergence) = found_out(&cluster, 2).await?;
            let Divergence { outvoted, answers_differ, exact, log_index, equal_log_index, .. } = divergence;
            ensure!(outvoted && answers_differ && exact, "{mode}: {divergence:?}");
            ensure!(log_index == executed.log_index.0 && equal_log_index == log_index - 1, "{mode}: {divergence:?}");
            ensure!(divergence.against_node_ids == ["n1", "n2"], "{mode}: {divergence:?}");
            ensure!(divergence.digest_there == executed.state_digest.0, "{mode}: {divergence:?}");
            ensure!(divergence.digest != divergence.digest_there, "{mode}: {divergence:?}");
            let request = divergence.request.context("no request")?;
            ensure!(request.preview == ASKED && request.bytes == 7 && request.sequence == 4, "{mode}: {request:?}");
            ensure!(request.session_id[..] == session.id().0[..], "{mode}: {request:?}");
            for said in ["quarantined", "n1 and n2", ASKED, &log_index.to_string()] {
                ensure!(status.detail.contains(said), "{mode}: {said:?} isn't in {}", status.detail);
            }
            answers_nobody(&cluster, 2).await?;
            let told = cluster.replicator(&["status", "-o", "json"]).await?.exits(0)?.json()?;
            let node = told["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["node_id"] == "n3"));
            let node = node.context("n3 isn't in the status")?;
            ensure!(node["state"] == "quarantined", "{node}");
            ensure!(node["divergence"]["request"]["preview"] == ASKED, "{node}");
            let told = cluster.replicator(&["status"]).await?.exits(0)?;
            ensure!(told.stdout.contains("quarantined") && told.stdout.contains(ASKED), "{told:?}");
            // The others serve, and hear nothing of it.
            advance(&loads, 50).await?;
            healed(&cluster).await?;
            let log = cluster[2].told(0)?;
            ensure!(log.contains("differs again"), "{mode}: it was made anew only once");
            ensure!(session.execute("add z 1").await?.response[..] == *b"8", "{mode}");
            settle(&cluster, loads).await?;
            cluster.expect_counter("z", 8).await?;
        }
        Ok(())
    });
}

/// Both requests have the same answer, and leave other bytes.
#[test]
fn a_state_that_differs_behind_equal_answers_is_found() {
    scenario(async |s| {
        for mode in MODES {
            let witnesses = if mode == "chain" { 2 } else { 0 };
            let mut cluster = s.prepare_with(3, witnesses, &format!("mode = \"{mode}\"\n")).await?;
            cluster[1].diverge("write 3 right", "write 3 wrong", 1);
            cluster.start_all().await?;
            cluster.init(&module("blocks"), &[]).await?;
            let session = cluster.client_of(0)?.open_session(None).await?;
            session.execute("fill 100").await?;
            let executed = session.execute("write 3 right").await?;
            ensure!(executed.response[..] == *b"1", "{executed:?}");
            let (status, divergence) = found_out(&cluster, 1).await?;
            ensure!(divergence.outvoted && !divergence.answers_differ, "{mode}: {divergence:?}");
            let between = divergence.equal_log_index..=divergence.log_index;
            ensure!(between.contains(&executed.log_index.0), "{mode}: {executed:?} {divergence:?}");
            ensure!(status.detail.contains("behind equal answers"), "{mode}: {}", status.detail);
            healed(&cluster).await?;
            for replica in cluster.replicas() {
                let told = cluster.client_of(replica)?.query("read 3", Consistency::Linearizable, None).await?;
                ensure!(told.response[..] == *b"1 right", "{mode}: {told:?}");
            }
            session.close().await?;
            cluster.verify().await?;
        }
        Ok(())
    });
}

#[test]
fn a_wrong_primary_hands_its_part_over() {
    scenario(async |s| {
        for mode in MODES {
            let cluster = cluster(s, mode, "", 0, 3).await?;
            let moved = cluster.replicator(&["member", "transfer", "n1"]).await?.exits(0)?;
            ensure!(moved.stdout.contains("n1"), "{moved:?}");
            let loads = Load::several(&cluster, 1).await?;
            advance(&loads, 20).await?;
            let (_, executed) = ask(&cluster, 1).await?;
            let (_, divergence) = found_out(&cluster, 0).await?;
            ensure!(divergence.exact && divergence.log_index == executed.log_index.0, "{mode}: {divergence:?}");
            cluster.wait_primary_among(&[1, 2]).await?;
            advance(&loads, 50).await?;
            healed(&cluster).await?;
            settle(&cluster, loads).await?;
            cluster.expect_counter("z", 7).await?;
        }
        Ok(())
    });
}

#[test]
fn one_against_one_answer_nobody_until_a_third_decides() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, "", 1, 1).await?;
            cluster.kill(&[2])?;
            cluster.wait_primary_among(&[0, 1]).await?;
            let (_, executed) = ask(&cluster, 0).await?;
            for node in [0, 1] {
                let (status, divergence) = found_out(&cluster, node).await?;
                ensure!(!divergence.outvoted && divergence.exact, "{mode}: {divergence:?}");
                ensure!(divergence.log_index == executed.log_index.0, "{mode}: {divergence:?}");
                ensure!(status.detail.contains("no third replica"), "{mode}: {}", status.detail);
                answers_nobody(&cluster, node).await?;
            }
            cluster[2].start(&[])?;
            healed(&cluster).await?;
            let told = cluster[1].told(0)?;
            ensure!(told.contains("quarantined: its answers differ"), "{mode}: n2 was not outvoted");
            ensure!(!cluster[0].told(0)?.contains("quarantined: its answers differ"), "{mode}: n1 was");
            cluster.expect_counter("z", 7).await?;
            cluster.verify().await?;
        }
        Ok(())
    });
}

/// A chain of two, which no third will ever come to.
#[test]
fn an_operator_decides_between_two() {
    scenario(async |s| {
        let mut cluster = s.prepare_with(2, 1, "mode = \"chain\"\n").await?;
        cluster[0].diverge(ASKED, DONE, 1);
        cluster.start_all().await?;
        cluster.init(&module("counter"), &[]).await?;
        let (_, executed) = ask(&cluster, 1).await?;
        for node in [0, 1] {
            let (_, divergence) = found_out(&cluster, node).await?;
            ensure!(!divergence.outvoted && divergence.exact, "{divergence:?}");
            ensure!(divergence.log_index == executed.log_index.0, "{divergence:?}");
        }
        let removed = cluster.replicator(&["member", "remove", "n1"]).await?.exits(0)?;
        ensure!(removed.stdout.contains("n1 is out of the chain"), "{removed:?}");
        cluster.wait_serves(1).await?;
        ensure!(cluster.counter_at(1, "z").await? == 7, "it has the wrong state");
        let session = cluster.client_of(1)?.open_session(None).await?;
        ensure!(session.execute("add z 1").await?.response[..] == *b"8", "it doesn't go on");
        Ok(())
    });
}

#[test]
fn a_quarantine_outlives_restarts_in_a_majority() {
    scenario(async |s| outlives_restarts(s, "majority").await);
}

#[test]
fn a_quarantine_outlives_restarts_in_a_chain() {
    scenario(async |s| outlives_restarts(s, "chain").await);
}

async fn outlives_restarts(s: &Scenario, mode: &str) -> Result<()> {
    let mut cluster = cluster(s, mode, "", 2, 100).await?;
    ask(&cluster, 0).await?;
    let (_, before) = found_out(&cluster, 2).await?;
    for wrong_still in [true, false] {
        if !wrong_still {
            cluster[2].behave();
        }
        cluster.kill(&[2])?;
        cluster[2].start(&[])?;
        // It doesn't answer even once before it is compared.
        let status = cluster
            .wait_status(2, "takes part", |status| !matches!(status.state(), NodeState::Blank | NodeState::Checking));
        let status = status.await?;
        ensure!(status.state() == NodeState::Quarantined, "{mode}: it is {:?} at first", status.state());
        let after = status.divergence.context("no divergence")?;
        ensure!(after == before, "{mode}: {after:?} after {before:?}");
        if wrong_still {
            cluster.wait_status(2, "is wrong again", |status| status.detail.contains("made anew it differed")).await?;
            answers_nobody(&cluster, 2).await?;
        }
    }
    healed(&cluster).await?;
    cluster.expect_counter("z", 7).await?;
    cluster.verify().await?;
    // And no longer than that.
    cluster.kill(&[2])?;
    let status = cluster.restart(2).await?;
    ensure!(status.divergence.is_none(), "{mode}: {status:?}");
    Ok(())
}

/// Where the log doesn't reach back any more: a peer's image, and none of those that hold the wrong state.
#[test]
fn images_of_a_wrong_state_are_given_up() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, OFTEN, 2, 1).await?;
            let loads = Load::several(&cluster, 1).await?;
            for replica in 0..3 {
                let purged = |status: &StatusResponse| status.purged_log_index > 0;
                cluster.wait_status(replica, "has dropped some of its log", purged).await?;
            }
            let (_, executed) = ask(&cluster, 0).await?;
            let (_, divergence) = found_out(&cluster, 2).await?;
            ensure!(divergence.exact && divergence.log_index == executed.log_index.0, "{mode}: {divergence:?}");
            healed(&cluster).await?;
            advance(&loads, 50).await?;
            // In its next life the planted fault strikes again, if that request is still to be replayed.
            let imaged = |status: &StatusResponse| status.snapshot_log_index >= executed.log_index.0;
            cluster.wait_status(2, "has the request in an image", imaged).await?;
            // What is left in its folder is right.
            cluster.kill(&[2])?;
            cluster.restart(2).await?;
            settle(&cluster, loads).await?;
            cluster.expect_counter("z", 7).await?;
        }
        Ok(())
    });
}

/// The first that is asked for an image says something of it that the other one knows better.
#[test]
fn an_image_that_another_node_contradicts_is_not_taken() {
    scenario(async |s| {
        let mut cluster = s.prepare_with(3, 0, OFTEN).await?;
        cluster[0].give_wrong_images();
        cluster.start_all().await?;
        cluster.init(&module("counter"), &[]).await?;
        let loads = Load::several(&cluster, 1).await?;
        let moved = cluster.replicator(&["member", "transfer", "n2"]).await?.exits(0)?;
        ensure!(moved.stdout.contains("n2"), "{moved:?}");
        for replica in 0..3 {
            let purged = |status: &StatusResponse| status.purged_log_index > 0;
            cluster.wait_status(replica, "has dropped some of its log", purged).await?;
        }
        cluster.kill(&[2])?;
        fs::remove_dir_all(&cluster[2].data_dir)?;
        advance(&loads, 50).await?;
        cluster.restart(2).await?;
        let whole = cluster.wait_whole_state(2).await?;
        ensure!(whole.from_node_id == "n2", "{whole:?}");
        settle(&cluster, loads).await?;
        Ok(())
    });
}
