//! Read indexes for linearizable reads, from whichever node is the primary.
//!
//! Reads that wait while one round trip is under way share the next one, which begins after all of them arrived (safety rule 11).

use std::{sync::Arc, time::Duration};

use replicator_types::LogIndex;
use tokio::sync::{mpsc, oneshot};

use crate::{
    replication::Strategy,
    transport::{Envelope, Peers},
};

/// Reads in one round.
const GROUP_MAX: usize = 4_096;
const BACKOFF: Duration = Duration::from_millis(10);
const ROUND_MAX: Duration = Duration::from_millis(500);

/// Where a read waits for its index.
pub(super) type Reader = oneshot::Sender<LogIndex>;

pub(super) struct Reads {
    pub(super) strategy: Arc<dyn Strategy>,
    pub(super) peers: Peers,
    /// With this node as sender; the receiver is filled in.
    pub(super) envelope: Envelope,
}

impl Reads {
    pub(super) async fn run(self, mut incoming: mpsc::Receiver<Reader>) {
        let mut group = Vec::new();
        while incoming.recv_many(&mut group, GROUP_MAX).await > 0 {
            let index = loop {
                group.retain(|reader: &Reader| !reader.is_closed());
                if group.is_empty() {
                    break None;
                }
                match self.round().await {
                    Some(index) => break Some(index),
                    None => tokio::time::sleep(BACKOFF).await,
                }
            };
            for reader in group.drain(..) {
                let _ = index.map(|index| reader.send(index));
            }
        }
    }

    async fn round(&self) -> Option<LogIndex> {
        let view = self.strategy.view().borrow().clone();
        let primary = view.primary()?;
        if primary.disk == self.envelope.from {
            return tokio::time::timeout(ROUND_MAX, self.strategy.read_index()).await.ok()?;
        }
        let envelope = Envelope { to: primary.disk, ..self.envelope };
        let channel = self.peers.channel(&primary.peer_address).ok()?;
        channel.read_index(envelope, ROUND_MAX).await.ok()?
    }
}
