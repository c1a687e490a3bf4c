//! How a chain begins: when all replicas of the new configuration group have been heard of, with empty logs.

use std::collections::BTreeMap;

use replicator_chain::Life;
use replicator_types::{DiskId, Position};

use crate::replication::Member;

/// Who has been heard of before there is a chain.
#[derive(Default)]
pub(super) struct Founding {
    alive: BTreeMap<DiskId, (Life, Option<Position>)>,
}

impl Founding {
    pub(super) fn alive(&mut self, life: Life, last: Option<Position>) {
        self.alive.insert(life.disk, (life, last));
    }

    /// The first chain, the lowest client port first. None: somebody is missing, or has a log, which no group without a record explains.
    pub(super) fn chain(&self, members: &[Member]) -> Option<Vec<Life>> {
        let port = |member: &Member| member.client_address.rsplit(':').next().and_then(|p| p.parse::<u16>().ok());
        let mut replicas: Vec<&Member> = members.iter().filter(|member| member.voter && !member.witness).collect();
        replicas.sort_by_key(|member| (port(member), member.node.clone()));
        let life = |member: &&Member| match self.alive.get(&member.disk) {
            Some((life, None)) => Some(*life),
            _ => None,
        };
        let chain: Option<Vec<Life>> = replicas.iter().map(life).collect();
        chain.filter(|chain| !chain.is_empty())
    }
}
