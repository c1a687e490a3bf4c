//! What queries push, on its way to the other nodes: passed on at once, at most once, and lost where a peer can't keep up.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use replicator_machine::Push;
use replicator_types::DiskId;
use tokio::sync::mpsc;

use super::{EnvelopeError, Node, applier::Work};
use crate::transport::Envelope;

/// Queries whose pushes may wait to be passed on.
pub(super) const QUERIES_WAITING_MAX: usize = 1_024;
/// Bytes of pushes that may wait for one peer.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Pushes of one message that are taken.
const PUSHES_MAX: usize = 65_536;
/// How long a peer may take, before what waits for it goes out.
const BOUND: Duration = Duration::from_secs(1);

/// What waits for one peer.
#[derive(Default)]
struct Waiting {
    pushes: Vec<Push>,
    bytes: usize,
}

impl Waiting {
    fn add(&mut self, push: &Push) {
        let bytes = push.payload.len() + mem::size_of::<Push>();
        if self.bytes + bytes <= WAITING_BYTES_MAX {
            self.bytes += bytes;
            self.pushes.push(push.clone());
        }
    }
}

impl Node {
    /// Passes pushes on, to each peer one message at a time, until the node ends.
    pub(super) async fn pass_on(self: Arc<Self>, mut pushed: mpsc::Receiver<Vec<Push>>) {
        let mut waiting: HashMap<DiskId, Waiting> = HashMap::new();
        let mut busy: HashSet<DiskId> = HashSet::new();
        let mut sending = FuturesUnordered::new();
        let mut groups = Vec::new();
        loop {
            tokio::select! {
                taken = pushed.recv_many(&mut groups, QUERIES_WAITING_MAX) => if taken == 0 {
                    return;
                },
                Some(disk) = sending.next() => drop(busy.remove(&disk)),
            }
            let Ok(running) = self.running() else {
                groups.clear();
                continue;
            };
            let members = running.strategy.view().borrow().members.clone();
            waiting.retain(|disk, _| members.iter().any(|member| member.disk == *disk));
            for member in members.iter().filter(|member| member.disk != self.disk && !member.witness) {
                let peer = waiting.entry(member.disk).or_default();
                groups.iter().flatten().for_each(|push| peer.add(push));
                if peer.pushes.is_empty() || !busy.insert(member.disk) {
                    continue;
                }
                let pushes = mem::take(peer).pushes;
                let envelope = Envelope { to: member.disk, ..running.envelope };
                sending.push(self.clone().deliver(envelope, member.peer_address.clone(), pushes));
            }
            groups.clear();
        }
    }

    async fn deliver(self: Arc<Self>, envelope: Envelope, address: String, pushes: Vec<Push>) -> DiskId {
        if let Ok(channel) = self.peers.channel(&address) {
            let pushes = pushes.into_iter().map(|push| (push.to, push.payload)).collect();
            if let Err(error) = channel.deliver(envelope, pushes, BOUND).await {
                tracing::debug!(%error, address, "ephemeral pushes were lost");
            }
        }
        envelope.to
    }

    /// Takes what queries have pushed at another node.
    ///
    /// # Errors
    /// If it is more than a node would send.
    pub(crate) async fn on_deliver(&self, pushes: Vec<Push>) -> Result<(), EnvelopeError> {
        if pushes.len() > PUSHES_MAX {
            return Err(EnvelopeError::Refused(format!("{} pushes; at most {PUSHES_MAX} are taken", pushes.len())));
        }
        self.applier.give(Work::Deliver(pushes)).await;
        Ok(())
    }
}
