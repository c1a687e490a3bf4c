//! What a folder tells of itself and of its cluster, and what may be lost with the others, in words.

use replicator_storage::Meta;
use replicator_types::{ClusterId, DiskId, Epoch, Lineage, LogIndex, Position};

use super::Findings;
use crate::{config::Mode, replication::Member};

/// What a folder tells.
#[derive(Debug, Clone)]
pub struct Account {
    /// The node's name.
    pub node: String,
    /// Its disk.
    pub disk: DiskId,
    /// The cluster.
    pub cluster: Option<ClusterId>,
    /// The history that it takes part in.
    pub lineage: Lineage,
    /// The cluster's mode.
    pub mode: Mode,
    /// The end of its log.
    pub last: Position,
    /// The greatest index that is known to be committed: what it remembers of peers, or the start of the chain's epoch. None: nothing is known.
    pub committed: Option<LogIndex>,
    /// The greatest index that its memory of the other disks holds: durable there, and committed.
    pub peers_durable: Option<LogIndex>,
    /// This disk in the membership that the folder knows. None: it isn't in there.
    pub own: Option<Member>,
    /// Every other disk of that membership: all of them must be attested dead.
    pub others: Vec<Member>,
    /// The last configuration of the chain that it knows; in chain mode.
    pub chain: Option<KnownChain>,
    /// What may be lost, and what is kept that perhaps nobody was told of.
    pub losses: Vec<String>,
}

/// A configuration of the chain.
#[derive(Debug, Clone)]
pub struct KnownChain {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its members' names, from primary to tail.
    pub members: Vec<String>,
    /// Where it began.
    pub start: Option<Position>,
    /// Whether this disk is one of them, in whatever life.
    pub holds: bool,
}

impl Account {
    pub(super) fn of(meta: &Meta, found: &Findings) -> Self {
        let peers_durable = meta.peers.values().map(|peer| peer.durable).max();
        let record = found.chain.as_ref().and_then(|(book, _)| book.record.configuration.as_ref());
        let start = record.and_then(|now| now.start).map(|start| start.index);
        let chain = record.map(|now| KnownChain {
            epoch: now.epoch,
            members: now.chain.iter().map(|life| found.name(life.disk)).collect(),
            start: now.start,
            holds: now.life_of(meta.disk).is_some(),
        });
        let mut account = Self {
            node: meta.node.clone(),
            disk: meta.disk,
            cluster: meta.cluster.map(|(cluster, _)| cluster),
            lineage: meta.cluster.map(|(_, lineage)| lineage).or(found.lineages.last().copied()).unwrap_or_default(),
            mode: found.mode,
            last: found.last,
            committed: peers_durable.max(start),
            peers_durable,
            own: found.ledger.members.iter().find(|member| member.disk == meta.disk).cloned(),
            others: found.others.clone(),
            chain,
            losses: Vec::new(),
        };
        account.losses = account.judge(&found.other_names().into_iter().collect::<Vec<_>>().join(", "));
        account
    }

    /// Names of `dead` that are no other member's, and other members that it doesn't name.
    #[must_use]
    pub fn unattested(&self, dead: &[String]) -> (Vec<String>, Vec<String>) {
        let is_other = |name: &String| self.others.iter().any(|member| member.node == **name);
        let strangers = dead.iter().filter(|name| !is_other(name)).cloned().collect();
        let mut missing: Vec<String> = self.others.iter().map(|member| member.node.clone()).collect();
        missing.retain(|name| !dead.contains(name));
        missing.sort();
        missing.dedup();
        (strangers, missing)
    }

    fn judge(&self, others: &str) -> Vec<String> {
        let end = self.last.index;
        let mut losses = Vec::new();
        if let Some(committed) = self.committed.filter(|committed| *committed > end) {
            losses.push(format!(
                "entries {} to {committed} are lost: they were committed, and this disk doesn't have them",
                end.next()
            ));
        }
        losses.push(match (&self.chain, self.mode) {
            (Some(chain), _) => self.of_chain(chain),
            (None, Mode::Chain) => format!(
                "this folder knows of no chain: whatever {others} acknowledged and this log doesn't hold is lost"
            ),
            (None, Mode::Majority) if !self.others.iter().any(|member| member.voter) => {
                "this disk is the only voter that it knows of: it holds everything that was acknowledged, unless others were made voters since".to_owned()
            }
            (None, Mode::Majority) => format!(
                "entries after {end} that a majority of the members ({others} and this one) acknowledged without this disk are lost, \
                 if there were any: one disk can't know"
            ),
        });
        let kept = self.committed.is_none_or(|committed| committed < end);
        if kept && !self.others.is_empty() {
            let from = self.committed.map_or(LogIndex(0), LogIndex::next);
            let instead = match self.mode {
                Mode::Majority => "; if a majority acknowledged other entries in their place, those are lost",
                Mode::Chain => "",
            };
            losses.push(format!(
                "entries {from} to {end} are kept, and the recovery commits them: this disk doesn't know which of them were acknowledged{instead}"
            ));
        }
        losses
    }

    fn of_chain(&self, chain: &KnownChain) -> String {
        let (epoch, names, end) = (chain.epoch, chain.members.join(", "), self.last.index);
        match chain.holds {
            true if chain.start > Some(self.last) => format!(
                "this disk was a member of epoch {epoch}, and has lost what it had confirmed: what {names} acknowledged after entry {end} is lost"
            ),
            true => format!(
                "this disk was a member of epoch {epoch}, the last that it knows: it holds everything that was acknowledged in it and before; \
                 what a later epoch without this disk acknowledged is lost, if there was one"
            ),
            false => format!(
                "entries after {end} that {names} (epoch {epoch}), or any later epoch, acknowledged are lost, if there were any: this disk was not in \
                 epoch {epoch}"
            ),
        }
    }
}
