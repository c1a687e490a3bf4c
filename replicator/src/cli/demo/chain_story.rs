//! The story that `demo --mode chain --script` tells: head, middle and tail die, then two at once, the program is replaced, then all die, and no
//! acknowledged message is lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use replicator_proto::replicator::v1::NodeState;
use rustix::process::Signal;

use super::{
    Versions, blow, step,
    story::conclude,
    swap,
    talk::{Account, Chat, Talk},
};
use crate::cli::{chain, cluster::Cluster};

/// Messages of each part of the story; nodes die after a third of them.
const MESSAGES: usize = 60;
/// How long the chain may take to come to what it should be. A cold start waits some seconds for disks that are missing.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Tells it. An error is a step that did not hold.
pub(super) async fn tell(cluster: &mut Cluster, versions: &Versions) -> anyhow::Result<()> {
    let began = Instant::now();
    let chat = Chat::of(cluster)?;
    let replicas = cluster.endpoints().len();
    println!(
        "A chat on a chain of {replicas} replicas with {} witnesses, and what happens when nodes die, and when its program is replaced.",
        cluster.len() - replicas
    );
    cluster.start_all().await?;
    cluster.found(&versions.first).await?;
    step("the nodes run and have founded a cluster");
    show(cluster, replicas).await?;
    chat.log_in().await?;
    let mut listener = chat.listen()?;
    let mut talk = Talk::start(&chat)?;

    let middle = replicas / 2;
    for (what, places) in [
        ("the primary", vec![0]),
        ("the middle", vec![middle]),
        ("the tail", vec![replicas - 1]),
        ("two at once, the primary among them", vec![0, middle]),
    ] {
        talk.begin(MESSAGES).await?;
        talk.hear(MESSAGES / 3).await?;
        let chain = members(cluster).await?;
        let victims: Vec<usize> = places.iter().filter_map(|place| chain.get(*place).copied()).collect();
        for &victim in &victims {
            cluster.kill(victim).await?;
        }
        let names = victims.iter().map(|victim| cluster.name(*victim)).collect::<Vec<_>>().join(" and ");
        blow(&format!("kill -9 {names}: {what}, {} messages acknowledged", talk.acknowledged()));
        let gap = talk.hear(MESSAGES - MESSAGES / 3).await?;
        step(&format!("the chain goes on; alice waited {} ms, and lost nothing she knows of", gap.as_millis()));
        show(cluster, replicas - victims.len()).await?;
        for &victim in &victims {
            cluster.restart(victim).await?;
        }
        show(cluster, replicas).await?;
        step(&format!("{names} learned what was missing, and the chain is whole"));
    }
    swap::tell(cluster, &chat, &mut talk, versions).await?;
    out_of_step(cluster, &mut talk).await?;

    let told = talk.end(&mut listener).await?;
    let mut account = Account::default();
    account.check(&chat.run("bob", &["messages"]).await?, told)?;
    conclude(cluster, &account, began).await
}

/// All die, the tail a moment after it stopped taking what the others took: the logs end at different places.
async fn out_of_step(cluster: &mut Cluster, talk: &mut Talk) -> anyhow::Result<()> {
    talk.begin(MESSAGES).await?;
    talk.hear(MESSAGES / 3).await?;
    let chain = members(cluster).await?;
    let tail = *chain.last().context("the chain is empty")?;
    cluster.signal(tail, Signal::STOP)?;
    tokio::time::sleep(Duration::from_millis(150)).await; // Shorter than it takes to be missed.
    for index in 0..cluster.len() {
        cluster.kill(index).await?;
    }
    blow(&format!(
        "kill -9 of all {} nodes, {} a moment earlier out of step, {} messages acknowledged",
        cluster.len(),
        cluster.name(tail),
        talk.acknowledged()
    ));
    let mut ends = Vec::new();
    for &index in &chain {
        cluster.restart(index).await?;
        let status = cluster.client().status(&cluster.all_endpoints()[index], false).await?;
        ends.push(format!("{} ends at {}", cluster.name(index), status.last_log_index));
    }
    for index in 0..cluster.len() {
        if !cluster.is_running(index) {
            cluster.restart(index).await?;
        }
    }
    step(&format!("all are started again, with their files as they were: {}", ends.join(", ")));
    let gap = talk.hear(MESSAGES - MESSAGES / 3).await?;
    show(cluster, chain.len()).await?;
    step(&format!("the freshest log won, the others were made equal to it; alice waited {} ms", gap.as_millis()));
    Ok(())
}

/// The chain's members by index, from primary to tail.
async fn members(cluster: &Cluster) -> anyhow::Result<Vec<usize>> {
    let nodes = cluster.survey().await;
    let chains = nodes.iter().filter_map(|node| node.status.as_ref().ok()?.chain.as_ref());
    let newest = chains.max_by_key(|chain| chain.epoch).context("no node knows a chain")?;
    let index = |name: &str| (0..cluster.len()).find(|index| cluster.name(*index) == name);
    Ok(newest.members.iter().filter_map(|member| index(&member.node_id)).collect())
}

/// Waits until the chain has so many members, and all of them take part. Draws it.
async fn show(cluster: &Cluster, length: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let nodes = cluster.survey().await;
        let statuses = nodes.iter().filter_map(|node| node.status.as_ref().ok());
        let newest = statuses.clone().filter_map(|status| status.chain.as_ref()).max_by_key(|chain| chain.epoch);
        let epoch = newest.map_or(0, |chain| chain.epoch);
        let active = statuses.filter(|status| {
            matches!(status.state(), NodeState::Primary | NodeState::Follower)
                && status.chain.as_ref().is_some_and(|chain| chain.epoch == epoch)
        });
        let reached = newest.is_some_and(|chain| chain.members.len() == length) && active.count() == length;
        let drawn = chain::drawn(&nodes).unwrap_or_default();
        if reached {
            println!("    {drawn}");
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("the chain did not come to have {length} members within {} s: {drawn}", PATIENCE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}
