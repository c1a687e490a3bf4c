//! A new disk takes the place of the old one under the same name: learner first, voter when it has caught up.
//!
//! Safety rule 1: the new disk is a new voter, so nothing that the old one had promised is forgotten by counting it twice. The old
//! voter is removed by a committed change, in the same joint step that makes the new one a voter.

use std::time::Duration;

use openraft::{ChangeMembers, Instant as _, async_runtime::watch::WatchReceiver as _};
use replicator_types::DiskId;

use super::{
    MajorityRaft,
    types::{Address, members},
};
use crate::{
    replication::Member,
    transport::{Join, JoinAnswer},
};

/// How long a replica must be silent before its disk counts as dead enough to be replaced.
const SILENCE: Duration = Duration::from_secs(3);

/// A learner this close to the end of the log becomes a voter.
const LAG_MAX: u64 = 1_000;

/// Takes the next step for `join`; the joining node asks again until it votes.
pub(super) async fn join(raft: &MajorityRaft, own: DiskId, join: Join) -> JoinAnswer {
    let metrics = raft.metrics().borrow_watched().clone();
    let members = members(metrics.membership_config.membership());
    if metrics.current_leader != Some(own) {
        let primary = members.iter().find(|member| Some(member.disk) == metrics.current_leader);
        return JoinAnswer {
            primary_peer_address: primary.map(|member| member.peer_address.clone()),
            detail: "not the primary".into(),
            ..JoinAnswer::default()
        };
    }
    let refused = |detail: String| JoinAnswer { detail, ..JoinAnswer::default() };
    let accepted = |detail: String| JoinAnswer { accepted: true, detail, ..JoinAnswer::default() };

    if let Some(member) = members.iter().find(|member| member.disk == join.disk) {
        if member.voter {
            return accepted("votes".into());
        }
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&join.disk)).and_then(|id| *id);
        let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |id| id.index));
        if matched.is_none() || lag > LAG_MAX {
            return accepted(format!("learns: {lag} entries behind"));
        }
        let old = old_disks(&members, &join);
        if let Some(alive) = alive(&metrics, &old) {
            return accepted(format!("waits: disk {alive} of the same name answers again"));
        }
        let votes = |disk: &DiskId| members.iter().any(|member| member.disk == *disk && member.voter);
        let (voters, learners) = old.into_iter().partition(votes);
        let change = ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds([join.disk].into()),
            ChangeMembers::RemoveVoters(voters),
            ChangeMembers::RemoveNodes(learners),
        ]);
        // On its own: were it dropped with the peer's call, the change could stop half way.
        let (raft, disk) = (raft.clone(), join.disk);
        tokio::spawn(async move {
            if let Err(error) = raft.change_membership(change, false).await {
                tracing::warn!(%disk, %error, "making a learner a voter failed; it asks again");
            }
        });
        return accepted("becomes a voter".into());
    }

    let old = old_disks(&members, &join);
    if old.is_empty() {
        let names: Vec<&str> = members.iter().map(|member| member.node.as_str()).collect();
        return refused(format!("no member is called {:?}; the members are {}", join.node, names.join(", ")));
    }
    if let Some(kind) = members.iter().find(|member| member.node == join.node && member.witness != join.witness) {
        let command = if kind.witness { "witness" } else { "node" };
        return refused(format!("{} is one that is run by `replicator {command}`: start it so", join.node));
    }
    if let Some(alive) = alive(&metrics, &old) {
        return refused(format!(
            "{} runs on disk {alive} and has just answered; stop that process, or wait a few seconds if it has ended",
            join.node
        ));
    }
    let address =
        Address { node: join.node, client: join.client_address, peer: join.peer_address, witness: join.witness };
    match raft.add_learner(join.disk, address, false).await {
        Ok(_) => accepted("learns".into()),
        Err(error) => refused(error.to_string()),
    }
}

/// Takes a voter out.
pub(super) async fn remove(raft: MajorityRaft, disk: DiskId) -> Result<(), String> {
    let change = ChangeMembers::RemoveVoters([disk].into());
    // On its own: were it dropped with its caller, the change could stop half way.
    let changed = tokio::spawn(async move { raft.change_membership(change, false).await }).await;
    changed.map_err(|error| error.to_string())?.map(drop).map_err(|error| error.to_string())
}

/// Finishes changes of voters that their primary left half way, when this replica is the primary.
pub(super) async fn finish_changes(raft: MajorityRaft) {
    let mut metrics = raft.server_metrics();
    loop {
        let (leads, joint) = {
            let now = metrics.borrow_watched();
            let joint = now.membership_config.membership().get_joint_config().clone();
            (now.current_leader == Some(now.id), joint)
        };
        let waited = tokio::time::timeout(SILENCE, metrics.changed()).await;
        match waited {
            Ok(Err(_)) => return, // The group has stopped.
            // Still joint after all that time: whoever began it has gone.
            Err(_) if leads && joint.len() > 1 => {
                let voters = joint.last().cloned().unwrap_or_default();
                tracing::info!(?voters, "finishing a change of voters");
                if let Err(error) = raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await {
                    tracing::warn!(%error, "finishing a change of voters failed; trying again");
                }
            }
            _ => {}
        }
    }
}

fn old_disks(members: &[Member], join: &Join) -> Vec<DiskId> {
    members.iter().filter(|m| m.node == join.node && m.disk != join.disk).map(|m| m.disk).collect()
}

/// A disk among `disks` that has answered a heartbeat lately: its node is not to be replaced.
fn alive(metrics: &openraft::RaftMetrics<super::types::TypeConfig>, disks: &[DiskId]) -> Option<DiskId> {
    let heartbeats = metrics.heartbeat.as_ref()?;
    disks
        .iter()
        .copied()
        .find(|disk| heartbeats.get(disk).and_then(|at| at.as_ref()).is_some_and(|at| at.elapsed() < SILENCE))
}
