//! Planned changes under load: a hand-over and a removal refuse no call, also of clients that ask one node once, without retry.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::proto::{Consistency, NodeState};
use replicator_tests::{Cluster, Residents, Scenario, module, scenario, until};

const ADVANCE: u64 = 20;

/// How often a test does it: more for figures than to find out whether it works.
fn times() -> usize {
    env::var("RUNS").ok().map_or(4, |text| text.parse().unwrap_or_else(|_| panic!("RUNS={text:?} is no number")))
}

fn tell(what: &str, mut pauses: Vec<Duration>) {
    pauses.sort_unstable();
    let ms: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
    println!(
        "{what}: nothing acknowledged for {} ms (median of {}), at most {:?} ms",
        ms[ms.len() / 2],
        ms.len(),
        ms.last()
    );
}

/// Waits until all replicas take part in one epoch. Returns the primary.
async fn whole(cluster: &Cluster) -> Result<usize> {
    until("all replicas take part", async || {
        let (mut primary, mut epochs) = (None, Vec::new());
        for index in cluster.replicas() {
            let status = cluster.status(index).await?;
            match status.state() {
                NodeState::Primary => primary = Some(index),
                NodeState::Follower => {}
                other => anyhow::bail!("{} is {other:?}", status.node_id),
            }
            epochs.push(status.epoch);
        }
        ensure!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
        primary.context("no primary")
    })
    .await
}

async fn hand_over_in_turn(cluster: &Cluster, what: &str) -> Result<()> {
    let all: Vec<usize> = cluster.replicas().collect();
    let mut residents = Residents::start(cluster).await?;
    let mut pauses = Vec::new();
    for _ in 0..times() {
        let primary = whole(cluster).await?;
        residents.advance(&all, ADVANCE, ADVANCE).await?;
        let (refused, began) = (residents.failures(), Instant::now());
        let target = cluster[(primary + 1) % all.len()].name.clone();
        cluster.replicator(&["member", "transfer", &target]).await?.exits(0)?;
        residents.advance(&all, ADVANCE, ADVANCE).await?;
        pauses.push(residents.longest_silence(&all, began, Instant::now()));
        let refused = residents.failures() - refused;
        ensure!(refused == 0, "{what}: {refused} calls were refused while {target} took over");
    }
    tell(&format!("{what}, hand-over"), pauses);
    residents.settle(cluster).await?;
    cluster.verify().await?;
    Ok(())
}

async fn chain(s: &Scenario, order: &str) -> Result<Cluster> {
    s.chain(3, 2, order, &module("counter")).await
}

#[test]
fn transfer_in_a_chain_refuses_no_call() {
    scenario(async |s| {
        for order in ["backups-first", "parallel"] {
            hand_over_in_turn(&chain(s, order).await?, &format!("chain, {order}")).await?;
        }
        Ok(())
    });
}

#[test]
fn transfer_in_a_majority_refuses_no_call() {
    scenario(async |s| hand_over_in_turn(&s.cluster(3, &module("counter")).await?, "majority").await);
}

#[test]
fn removal_refuses_no_call_at_those_that_stay() {
    let (mut pauses, mut without) = (Vec::new(), Vec::new());
    for _ in 0..times().div_ceil(2) {
        // Who was removed doesn't come back, so each time in a cluster of its own.
        scenario(async |s| {
            let mut cluster = s.chain(4, 1, "backups-first", &module("counter")).await?;
            let mut staying: Vec<usize> = cluster.replicas().collect();
            // A chain begins with the lowest port, and goes on in its order: the primary, and then the tail of two backups.
            for place in [0, 2] {
                let leaving = staying.remove(place);
                let mut residents = Residents::start_at(&cluster, &staying, Consistency::Linearizable).await?;
                residents.advance(&staying, ADVANCE, ADVANCE).await?;
                let (name, began) = (cluster[leaving].name.clone(), Instant::now());
                cluster.replicator(&["member", "remove", &name]).await?.exits(0)?;
                residents.advance(&staying, ADVANCE, ADVANCE).await?;
                pauses.push(residents.longest_silence(&staying, began, Instant::now()));
                let refused = residents.failures();
                ensure!(refused == 0, "{refused} calls were refused at those that stay while {name} left");
                cluster[leaving].kill()?;
                // What the machine does by itself, to compare with.
                let began = Instant::now();
                residents.advance(&staying, ADVANCE, ADVANCE).await.context("the removed node was missed")?;
                without.push(residents.longest_silence(&staying, began, Instant::now()));
                residents.settle_at(&cluster, &staying).await?;
            }
            cluster.verify_some(2).await?;
            Ok(())
        });
    }
    tell("chain, removal", pauses);
    tell("chain, without a change", without);
}
