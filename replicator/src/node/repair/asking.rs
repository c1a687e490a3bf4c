//! Asking the peers, one after the other, for the entries that a log has lost.

use std::{collections::BTreeMap, time::Duration};

use replicator_storage::{EntrySource, GivenEntries, NodeDir, Withheld};
use replicator_types::{ClusterId, Lineage, LogIndex, Position};
use tokio::runtime::Handle;

use crate::{
    config::Peer,
    transport::{LogAnswer, Peers, TransportError},
};

/// How long a peer may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The other nodes, called from a thread that may be held up.
pub(super) struct Peerage {
    runtime: Handle,
    channels: Peers,
    cluster: (ClusterId, Lineage),
    log: &'static str,
    /// Name and address; who gave something last comes first.
    others: Vec<(String, String)>,
}

impl Peerage {
    /// The members that are known, and who is configured.
    pub(super) fn new(
        runtime: Handle,
        dir: &NodeDir,
        configured: &[Peer],
        channels: &Peers,
        cluster: (ClusterId, Lineage),
        log: &'static str,
    ) -> Self {
        let meta = dir.meta();
        let members = meta.members.iter().filter(|member| member.node != meta.node);
        let members = members.map(|member| (member.node.clone(), member.peer_address.clone()));
        let configured = configured.iter().map(|peer| (peer.name.to_string(), peer.peer_address.to_string()));
        let others: BTreeMap<String, String> = members.chain(configured).collect();
        Self { runtime, channels: channels.clone(), cluster, log, others: others.into_iter().collect() }
    }

    fn ask(&self, address: &str, from: LogIndex, to: LogIndex, anchor: Position) -> Result<LogAnswer, TransportError> {
        let channel = self.channels.channel(address)?;
        self.runtime.block_on(channel.fetch_log(self.cluster, self.log, from..to, anchor, ANSWER_MAX))
    }
}

impl EntrySource for Peerage {
    fn entries(&mut self, from: LogIndex, to: LogIndex, anchor: Position) -> Result<GivenEntries, Withheld> {
        let (mut silent, mut without) = (Vec::new(), Vec::new());
        for i in 0..self.others.len() {
            let (node, address) = &self.others[i];
            match self.ask(address, from, to, anchor) {
                Ok(LogAnswer::Holds { before, records }) => {
                    let from = node.clone();
                    self.others.swap(0, i);
                    return Ok(GivenEntries { from, before, records });
                }
                Ok(LogAnswer::Lacks(why)) | Err(TransportError::Refused(why)) => without.push(format!("{node}: {why}")),
                Err(error) => silent.push(format!("{node} at {address} ({error})")),
            }
        }
        let wanted = if from < to {
            format!("the entries from {from} to {}, before {anchor}", to.0 - 1)
        } else {
            format!("the entry before {from}, in a log with {anchor}")
        };
        let without = if without.is_empty() { String::new() } else { format!("; {}", without.join("; ")) };
        if silent.is_empty() {
            return Err(Withheld::Never(format!("nobody has {wanted}{without}")));
        }
        Err(Withheld::NotNow(format!("{wanted}, are wanted of {}, which doesn't answer{without}", silent.join(", "))))
    }
}
