//! The part that both stories have: the chat's second version takes the place of the first one, while alice goes on talking.

use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use replicator_proto::replicator::v1 as pb;

use super::{
    Versions, ensure, step,
    talk::{Chat, Talk},
};
use crate::cli::{
    cluster::{Cluster, PATIENCE},
    init,
    module::{activate, nodes::Nodes, upload},
    output,
};

const POLL: Duration = Duration::from_millis(20);

/// Tells it. An error is a step that did not hold.
pub(super) async fn tell(cluster: &Cluster, chat: &Chat, talk: &mut Talk, versions: &Versions) -> anyhow::Result<()> {
    talk.begin(1).await?;
    talk.hear(1).await?;
    let (line, message) = talk.last()?;
    let id = message.to_string();
    let refused = chat.refused("bob", &["react", &id, "👍"]).await?;
    ensure(refused.contains("nothing that the running version"), || format!("it was refused otherwise: {refused}"))?;
    step("bob can't react to a message: the version that runs knows no reactions");

    let nodes = Nodes::new(&cluster.endpoints(), PATIENCE)?;
    let second: Bytes = init::read(&versions.second)?.into();
    let began = Instant::now();
    let (uploaded, waited) = talk.during(upload::spread(&nodes, second, PATIENCE)).await?;
    uploaded.judge()?;
    step(&format!(
        "the second version is at every replica, checked and compiled, after {} ms; alice talks on, and waited at most {} ms",
        began.elapsed().as_millis(),
        waited.as_millis()
    ));
    let expected = nodes.active().await?;
    let (done, waited) = talk.during(activate::switch(&nodes, &uploaded.hash, &expected)).await?;
    ensure(!done.already, || "it was active already".into())?;
    step(&format!(
        "{} runs from log index {} on, in place of the first version: the state machine stood still for {:.1} ms, alice waited at most {} ms; digest {:016x}",
        version(&done),
        done.log_index,
        done.paused_us as f64 / 1e3,
        waited.as_millis(),
        done.state_digest
    ));
    everywhere(cluster, &uploaded.hash).await?;
    step("every replica runs it");

    chat.run("bob", &["react", &id, "👍"]).await?;
    let changed = format!("alice's line {line}, edited");
    chat.run("alice", &["edit", "bob", &id, &changed]).await?;
    talk.edited(line, changed);
    step(&format!("bob has reacted to message {id}, which the first version took, and alice has edited it"));
    Ok(())
}

/// As people know it.
fn version(done: &pb::ActivateModuleResponse) -> String {
    let words = done.description.split(' ').filter_map(|word| word.split_once('='));
    let known = words.filter(|(key, _)| ["app", "version"].contains(key)).map(|(_, value)| value);
    known.collect::<Vec<_>>().join(" ")
}

/// Waits until each replica runs the module.
async fn everywhere(cluster: &Cluster, module: &[u8]) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let nodes = cluster.survey().await;
        let replicas = nodes.iter().filter_map(|node| node.status.as_ref().ok()).filter(|status| !status.witness);
        let running = replicas.filter(|status| status.module_sha256 == module).count();
        if running == cluster.endpoints().len() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("only {running} replicas run {}", output::hex(module));
        }
        tokio::time::sleep(POLL).await;
    }
}
