//! The part that both stories have: the chat's second version takes the place of the first one, while alice goes on talking.

use std::time::Instant;

use bytes::Bytes;

use super::{
    Versions, ensure, step,
    talk::{Chat, Talk},
};
use crate::cli::{
    cluster::{Cluster, PATIENCE},
    init,
    module::{
        activate,
        nodes::{self, Nodes},
        upload,
    },
};

/// Tells it. An error is a step that did not hold.
pub(super) async fn tell(cluster: &Cluster, chat: &Chat, talk: &mut Talk, versions: &Versions) -> anyhow::Result<()> {
    talk.begin(1).await?;
    talk.hear(1).await?;
    let (line, message) = talk.last()?;
    let id = message.to_string();
    let refused = chat.refused("bob", &["react", &id, "👍"]).await?;
    ensure(refused.contains("nothing that the running version"), || format!("it was refused otherwise: {refused}"))?;
    step("bob can't react to a message: the version that runs knows no reactions");

    let replicas = Nodes::new(&cluster.endpoints(), PATIENCE)?;
    let second: Bytes = init::read(&versions.second)?.into();
    let began = Instant::now();
    let (uploaded, waited) = talk.during(upload::spread(&replicas, second, PATIENCE)).await?;
    uploaded.judge()?;
    step(&format!(
        "the second version is at every replica, checked and compiled, after {} ms; alice talks on, and waited at most {} ms",
        began.elapsed().as_millis(),
        waited.as_millis()
    ));
    let expected = replicas.active().await?;
    let (done, waited) = talk.during(activate::switch(&replicas, &uploaded.hash, &expected)).await?;
    ensure(!done.already, || "it was active already".into())?;
    step(&format!(
        "{} runs from log index {} on, in place of the first version: the state machine stood still for {:.1} ms, alice waited at most {} ms; digest {:016x}",
        ["app", "version"].map(|key| nodes::word(&done.description, key).unwrap_or_default()).join(" "),
        done.log_index,
        done.paused_us as f64 / 1e3,
        waited.as_millis(),
        done.state_digest
    ));
    for index in (0..cluster.len()).filter(|index| !cluster.is_witness(*index)) {
        cluster.wait_module(index, &uploaded.hash).await?;
    }
    step("every replica runs it");

    chat.run("bob", &["react", &id, "👍"]).await?;
    let changed = format!("alice's line {line}, edited");
    chat.run("alice", &["edit", "bob", &id, &changed]).await?;
    talk.edited(line, changed);
    step(&format!("bob has reacted to message {id}, which the first version took, and alice has edited it"));
    Ok(())
}
