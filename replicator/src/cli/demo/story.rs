//! The story that `demo --script` tells: a conversation that survives the death of its primary and the swap of its program, with every message accounted for.

use std::time::Instant;

use anyhow::bail;

use super::{
    Versions, blow, ensure, step, swap,
    talk::{Account, Chat, Talk, number},
};
use crate::cli::{
    cluster::Cluster,
    status::{self, Verdict},
};

/// Messages that alice sends; the nodes die after a third of them.
const MESSAGES: usize = 300;
/// Messages that bob answers while nodes are dead.
const ANSWERS: usize = 20;

/// Tells it. An error is a step that did not hold.
pub(super) async fn tell(cluster: &mut Cluster, versions: &Versions) -> anyhow::Result<()> {
    let began = Instant::now();
    let chat = Chat::of(cluster)?;
    println!(
        "A chat on {} nodes, replicated by majority, and what happens when nodes die, and when its program is replaced.",
        cluster.len()
    );
    cluster.start_all().await?;
    cluster.found(&versions.first).await?;
    step(&format!("{} nodes run and have founded a cluster", cluster.len()));
    chat.log_in().await?;
    let mut listener = chat.listen()?;

    // alice talks; nodes die in the middle; she goes on.
    let mut talk = Talk::start(&chat)?;
    talk.begin(MESSAGES).await?;
    talk.hear(MESSAGES / 3).await?;
    let victims = (cluster.len() - 1) / 2;
    let primary = cluster.wait_primary().await?;
    let killed: Vec<usize> = (0..victims).map(|i| (primary + i) % cluster.len()).collect();
    let mut dead = Vec::new();
    for &index in &killed {
        let pid = cluster.kill(index).await?;
        let role = if index == primary { "the primary" } else { "a follower" };
        dead.push(format!("{} ({role}, pid {pid})", cluster.name(index)));
    }
    blow(&format!("kill -9 {} in mid-conversation, {} messages acknowledged", dead.join(" and "), talk.acknowledged()));
    // What had been acknowledged before the kill may still be in the pipe; the gap ends with the first that comes late.
    let gap = talk.hear(MESSAGES / 3).await?;
    let next = cluster.wait_primary().await?;
    step(&format!(
        "{} leads now; alice waited {} ms for it, and lost nothing she knows of",
        cluster.name(next),
        gap.as_millis()
    ));
    let mut answers = Vec::new();
    for line in 1..=ANSWERS {
        answers.push((number(&chat.run("bob", &["send", "alice", &answer(line)]).await?, "message_id")?, answer(line)));
    }
    step(&format!("bob has answered {ANSWERS} times meanwhile"));
    for &index in &killed {
        cluster.restart(index).await?;
        let back = cluster.wait_serving(index).await?;
        step(&format!("{} is back, and has caught up to log index {}", back.node_id, back.applied_log_index));
    }
    talk.hear(MESSAGES / 3).await?;
    swap::tell(cluster, &chat, &mut talk, versions).await?;

    let told = talk.end(&mut listener).await?;
    let mut account = Account::default();
    account.check(&chat.run("bob", &["messages"]).await?, told)?;
    account.check(&chat.run("alice", &["messages"]).await?, answers)?;
    conclude(cluster, &account, began).await
}

/// The end of every story: nothing acknowledged is missing, and all replicas are equal.
pub(super) async fn conclude(cluster: &Cluster, account: &Account, began: Instant) -> anyhow::Result<()> {
    ensure(account.holds(), || account.to_string())?;
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

fn answer(line: usize) -> String {
    format!("bob's answer {line} of {ANSWERS}")
}
