//! What the driver shows of itself and of the chain, in words where something is wrong.

use replicator_chain::{Life, Replica, Role as ChainRole};

use super::{super::Seen, Driver};
use crate::replication::{Member, Role, View};

/// So long without a majority is told of.
const CUT_OFF_TICKS: u64 = 20;

impl Driver {
    pub(super) fn chain_names(&self, chain: &[Life]) -> String {
        let name = |life: &Life| {
            let member = self.members.iter().find(|member| member.disk == life.disk);
            member.map_or_else(|| life.disk.to_string(), |member| member.node.clone())
        };
        chain.iter().map(name).collect::<Vec<_>>().join(" → ")
    }

    /// Why the configuration group can decide nothing, if that is so. Judged by who is connected: a group's members remember their last leader
    /// long after its death.
    fn group_trouble(&self) -> Option<String> {
        if self.cut_off_ticks <= CUT_OFF_TICKS {
            return None;
        }
        let away: Vec<&str> = self.voters_away().map(|member| member.node.as_str()).collect();
        let voters = self.members.iter().filter(|member| member.voter);
        let (count, witnesses) = (voters.clone().count(), voters.filter(|member| member.witness).count());
        let help = match witnesses {
            0 => "; a chain with witnesses (`replicator witness`) outlives more deaths",
            _ => "",
        };
        Some(format!(
            "no majority of the {count} nodes that decide about the chain can be reached ({} away): it can't be changed, so writes and linearizable reads wait \
             while a member of it is dead. Start nodes again, or mend this one's network, until it \
             reaches {} of the {count}{help}. If they are lost for ever: stop this node and use `replicator recover`",
            away.join(", "),
            count / 2 + 1
        ))
    }

    pub(super) fn voters_away(&self) -> impl Iterator<Item = &Member> {
        let away = |member: &&Member| member.disk != self.parts.own && !self.parts.mesh.is_open(member.disk);
        self.members.iter().filter(|member| member.voter).filter(away)
    }

    /// What the coordinator does, or why it can't go on.
    fn trouble(&self) -> String {
        let progress = self.parts.coordinator.phase();
        self.named(progress.trouble.or(progress.reason).unwrap_or_default())
    }

    /// With names for disks.
    pub(super) fn named(&self, told: String) -> String {
        self.members.iter().fold(told, |told, member| told.replace(&member.disk.to_string(), &member.node))
    }

    /// Publishes what has changed.
    pub(super) fn tell(&mut self) {
        let standing = self.parts.replica.as_ref().map(Replica::standing);
        let configuration = self.record.configuration.as_ref();
        // A witness has no log, but it knows who is in the chain.
        let (epoch, chain) = match &standing {
            Some(standing) => (standing.epoch, standing.chain.clone()),
            None => configuration.map_or_else(Default::default, |now| (now.epoch, now.chain.clone())),
        };
        let role = match standing.as_ref().map(|standing| standing.role) {
            None => Role::Witness,
            Some(ChainRole::Primary) => Role::Primary,
            Some(ChainRole::Middle | ChainRole::Tail) => Role::Follower,
            Some(ChainRole::Sealed) => Role::Candidate,
            Some(ChainRole::Idle | ChainRole::Learner) => Role::Learner,
        };
        let primary = chain.first().map(|life| life.disk);
        let view = View { role, epoch, primary, members: self.members.clone() };
        self.parts.view.send_if_modified(|old| {
            let changed = *old != view;
            *old = view;
            changed
        });
        let detail = match self.group_trouble() {
            Some(trouble) => trouble,
            // Cut off, it would take its own loneliness for the death of the others.
            None if self.leads() && self.cut_off_ticks == 0 => self.trouble(),
            None => String::new(),
        };
        self.parts.seen.send_replace(Seen { standing, epoch, chain, detail, coordinator: self.leader });
    }
}
