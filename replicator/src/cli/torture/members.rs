//! Whether all nodes are full members, as they must be before a disk may be lost: nobody else's then has to make up for it.

use replicator_proto::replicator::v1::{NodeState, StatusResponse};

/// Why one of the nodes isn't a full member, in words; none if all are: each with the disk that it has now, and no other, a voter, and each
/// replica of a chain in it. As the primary has it.
pub(super) fn missing(nodes: &[StatusResponse], chain: bool) -> Option<String> {
    let primaries = nodes.iter().filter(|node| node.state() == NodeState::Primary);
    let Some(primary) = primaries.max_by_key(|primary| primary.epoch) else { return Some("nobody is primary".into()) };
    let in_chain: Vec<u64> =
        primary.chain.iter().flat_map(|chain| &chain.members).map(|member| member.disk_id).collect();
    nodes.iter().find_map(|node| {
        let name = &node.node_id;
        let disks: Vec<_> = primary.members.iter().filter(|member| member.node_id == *name).collect();
        if let Some(other) = disks.iter().find(|member| member.disk_id != node.disk_id) {
            return Some(format!("{name}'s other disk {:016x} is still a member", other.disk_id));
        }
        if !disks.iter().any(|member| member.voter) {
            return Some(format!("{name}'s disk {:016x} doesn't vote", node.disk_id));
        }
        let left_out = chain && !node.witness && !in_chain.contains(&node.disk_id);
        left_out.then(|| format!("{name} is not in the chain"))
    })
}

#[cfg(test)]
mod tests {
    use replicator_proto::replicator::v1::{Chain, ChainMember, Member};

    use super::*;

    /// n1, n2 and the witness w1, on disks 1, 2 and 3; n1 is primary.
    fn cluster() -> Vec<StatusResponse> {
        let member = |(disk_id, node_id): (u64, &&str)| Member {
            node_id: (*node_id).into(),
            disk_id,
            voter: true,
            ..Member::default()
        };
        let names = ["n1", "n2", "w1"];
        let members: Vec<Member> = (1..).zip(&names).map(member).collect();
        let chain_members = [1, 2].map(|disk_id| ChainMember { disk_id, ..ChainMember::default() });
        let node = |member: &Member| StatusResponse {
            node_id: member.node_id.clone(),
            disk_id: member.disk_id,
            witness: member.node_id == "w1",
            members: members.clone(),
            chain: Some(Chain { members: chain_members.to_vec(), ..Chain::default() }),
            ..StatusResponse::default()
        };
        let mut nodes: Vec<StatusResponse> = members.iter().map(node).collect();
        nodes[0].set_state(NodeState::Primary);
        nodes
    }

    #[test]
    fn a_new_disk_is_missing_until_it_votes_alone_and_is_in_the_chain() {
        let mut nodes = cluster();
        assert_eq!(missing(&nodes, true), None);
        nodes[1].disk_id = 9;
        assert!(missing(&nodes, true).unwrap().contains("n2's other disk 0000000000000002 is still a member"));
        nodes[0].members[1].disk_id = 9;
        nodes[0].members[1].voter = false;
        assert!(missing(&nodes, false).unwrap().contains("n2's disk 0000000000000009 doesn't vote"));
        nodes[0].members[1].voter = true;
        assert_eq!(missing(&nodes, true), Some("n2 is not in the chain".into()));
        assert_eq!(missing(&nodes, false), None);
    }

    #[test]
    fn the_newest_primary_is_believed() {
        let mut nodes = cluster();
        nodes[1].set_state(NodeState::Primary);
        nodes[1].epoch = 1;
        nodes[1].members[2].voter = false;
        assert!(missing(&nodes, true).unwrap().starts_with("w1"));
        nodes[0].set_state(NodeState::Follower);
        nodes[1].set_state(NodeState::Follower);
        assert_eq!(missing(&nodes, true), Some("nobody is primary".into()));
    }
}
