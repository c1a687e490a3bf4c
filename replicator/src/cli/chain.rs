//! The chain, as `status` and the demo show it.

use replicator_proto::replicator::v1::{self as pb, NodeState, StatusResponse};
use serde_json::{Value, json};

use super::status::Surveyed;

/// The chain in one line: `client → n1(primary) → n2 → n3(tail)  epoch 4`. None: no node that answers knows one.
pub(super) fn drawn(nodes: &[Surveyed]) -> Option<String> {
    let chain = newest(nodes)?;
    let last = chain.members.len().saturating_sub(1);
    let members = chain.members.iter().enumerate().map(|(place, member)| {
        let name = if member.node_id.is_empty() { format!("{:016x}", member.disk_id) } else { member.node_id.clone() };
        match place {
            0 if last == 0 => format!("{name}(primary, alone)"),
            0 => format!("{name}(primary)"),
            place if place == last => format!("{name}(tail)"),
            _ => name,
        }
    });
    let row: Vec<String> = ["client".to_owned()].into_iter().chain(members).collect();
    Some(format!("{}  epoch {}", row.join(" → "), chain.epoch))
}

/// The chain, its links, and who is on the way back into it. Nothing in majority mode.
pub(super) fn lines(nodes: &[Surveyed]) -> Vec<String> {
    let Some(drawn) = drawn(nodes) else { return Vec::new() };
    let mut lines = vec![drawn];
    let newest = newest(nodes).map_or(0, |chain| chain.epoch);
    let head = answers(nodes).map(|status| status.committed_log_index).max().unwrap_or_default();
    for status in answers(nodes) {
        let Some(chain) = &status.chain else { continue };
        match (&chain.link, status.state()) {
            (Some(link), _) if chain.epoch == newest => lines.push(link_line(&status.node_id, link)),
            (_, NodeState::Learner) if is_removed(nodes, status, newest) => lines.push(format!(
                "  {} is no member any more: it was removed, or another disk has its name. Stop it",
                status.node_id
            )),
            (_, NodeState::Learner) => {
                let behind = head.saturating_sub(status.last_log_index);
                lines.push(format!("  {} is on its way back: {behind} entries behind", status.node_id));
            }
            (_, NodeState::Candidate) => lines.push(format!(
                "  {} has sealed epoch {}: it waits for the next one",
                status.node_id, chain.sealed_epoch
            )),
            _ => {}
        }
        if !chain.detail.is_empty() {
            lines.push(format!("  {} (coordinator): {}", status.node_id, chain.detail));
        }
    }
    lines
}

/// Whether those that know the newest epoch count the node's disk among the members no more.
fn is_removed(nodes: &[Surveyed], learner: &StatusResponse, newest: u64) -> bool {
    let knows = |status: &&StatusResponse| {
        status.chain.as_ref().is_some_and(|chain| chain.epoch == newest) && status.state() != NodeState::Learner
    };
    let mut knowing = answers(nodes).filter(knows).peekable();
    knowing.peek().is_some()
        && knowing.all(|status| status.members.iter().all(|member| member.disk_id != learner.disk_id))
}

fn link_line(from: &str, link: &pb::ChainLink) -> String {
    let pb::ChainLink { node_id, sent_log_index, received_log_index, durable_log_index, silent_ms } = link;
    let mut line = format!(
        "  {from} → {node_id}: sent {sent_log_index}, acknowledged {received_log_index}, durable {durable_log_index}"
    );
    if *silent_ms >= STUCK_MS {
        line.push_str(&format!(
            "; silent for {silent_ms} ms. Look at {node_id}'s log and disk, and whether {from} can reach its peer address; if it stays so, the \
             chain goes on without it"
        ));
    }
    line
}

/// After this a link counts as stuck.
const STUCK_MS: u64 = 300;

/// For programs.
pub(super) fn json(chain: &pb::Chain) -> Value {
    json!({
        "epoch": chain.epoch,
        "members": chain.members.iter().map(|member| json!({
            "node_id": member.node_id,
            "disk_id": format!("{:016x}", member.disk_id),
            "incarnation": member.incarnation,
        })).collect::<Vec<_>>(),
        "sealed_epoch": chain.sealed_epoch,
        "link": chain.link.as_ref().map(|link| json!({
            "node_id": link.node_id,
            "sent_log_index": link.sent_log_index,
            "received_log_index": link.received_log_index,
            "durable_log_index": link.durable_log_index,
            "silent_ms": link.silent_ms,
        })),
        "detail": chain.detail,
        "coordinator_node_id": chain.coordinator_node_id,
    })
}

fn answers(nodes: &[Surveyed]) -> impl Iterator<Item = &StatusResponse> {
    nodes.iter().filter_map(|node| node.status.as_ref().ok())
}

fn newest(nodes: &[Surveyed]) -> Option<&pb::Chain> {
    let chains = answers(nodes).filter_map(|status| status.chain.as_ref());
    chains.filter(|chain| !chain.members.is_empty()).max_by_key(|chain| chain.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, chain: pb::Chain) -> Surveyed {
        let status = StatusResponse { node_id: name.into(), chain: Some(chain), ..StatusResponse::default() };
        Surveyed { endpoint: name.into(), status: Ok(status) }
    }

    fn chain(epoch: u64, members: &[&str]) -> pb::Chain {
        let members = members.iter().map(|name| pb::ChainMember { node_id: (*name).into(), ..Default::default() });
        pb::Chain { epoch, members: members.collect(), ..Default::default() }
    }

    #[test]
    fn the_newest_chain_is_drawn_from_client_to_tail() {
        let nodes = [node("n1", chain(3, &["n1", "n2"])), node("n2", chain(4, &["n1", "n2", "n3"]))];
        assert_eq!(drawn(&nodes).unwrap(), "client → n1(primary) → n2 → n3(tail)  epoch 4");
        assert_eq!(drawn(&[node("n2", chain(5, &["n2"]))]).unwrap(), "client → n2(primary, alone)  epoch 5");
        assert_eq!(drawn(&[node("n2", chain(0, &[]))]), None);
    }

    #[test]
    fn a_silent_link_says_what_to_look_at() {
        let link = pb::ChainLink { node_id: "n2".into(), silent_ms: 900, ..Default::default() };
        let nodes = [node("n1", pb::Chain { link: Some(link), ..chain(3, &["n1", "n2"]) })];
        assert!(lines(&nodes)[1].contains("Look at n2's log and disk"), "{:?}", lines(&nodes));
    }
}
