//! What peers ask of this node.

use std::sync::Arc;

use bytes::Bytes;
use replicator_storage::{Log, PeerMemory, StorageError};
use replicator_types::{Incarnation, LogIndex};

use super::{Node, Running, Stage};
use crate::transport::{Envelope, Hello, HelloAnswer, Join, JoinAnswer};

/// Why a peer's message was not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It isn't for this disk, cluster or history, or its sender has been started anew since.
    #[error("{0}")]
    Refused(String),
    /// This node doesn't take part yet.
    #[error("{0}")]
    NotReady(String),
    /// What must be remembered of the sender can't be.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Node {
    /// Tells a starting peer what this node remembers of its disk, having remembered its new incarnation durably (safety rule 2).
    ///
    /// # Errors
    /// If the peer is of another cluster, or the disk fails.
    pub async fn on_hello(&self, hello: Hello) -> Result<HelloAnswer, EnvelopeError> {
        let meta = self.dir.meta();
        if let (Some(theirs), Some(ours)) = (hello.cluster, meta.cluster)
            && theirs != ours
        {
            return Err(EnvelopeError::Refused(format!(
                "{} belongs to cluster {} lineage {}, and you to cluster {} lineage {}",
                self.config.name, ours.0, ours.1, theirs.0, theirs.1
            )));
        }
        let known = meta.peers.get(&hello.disk).copied();
        let matched = self.running().ok().and_then(|running| {
            let matched = running.strategy.progress().matched;
            matched.into_iter().find(|(disk, _)| *disk == hello.disk).map(|(_, index)| index)
        });
        let known_durable = known.map_or(LogIndex(0), |known| known.durable).max(matched.unwrap_or_default());
        if known.is_none_or(|known| known.incarnation < hello.incarnation) && hello.cluster.is_some() {
            self.remember(&hello, known_durable).await?;
        }
        let last_log_index = self.log.ends().last.map_or(LogIndex(0), |at| at.index);
        let same_name = meta.members.iter().any(|member| member.node == hello.node && member.disk != hello.disk);
        let member = meta.members.iter().any(|member| member.disk == hello.disk);
        Ok(HelloAnswer {
            cluster: meta.cluster,
            node: self.config.name.to_string(),
            disk: self.disk,
            known_incarnation: known.map_or(Incarnation(0), |known| known.incarnation),
            known_durable,
            last_log_index,
            // A log that is behind the asker's can't tell: the asker may have been let in after its end.
            replaced: hello.cluster.is_some() && same_name && !member && last_log_index >= hello.last_log_index,
        })
    }

    async fn remember(&self, hello: &Hello, durable: LogIndex) -> Result<(), StorageError> {
        let (dir, disk, incarnation) = (self.dir.clone(), hello.disk, hello.incarnation);
        let memory = PeerMemory { incarnation, durable };
        let stored = tokio::task::spawn_blocking(move || {
            dir.update(|meta| {
                let kept = meta.peers.entry(disk).or_insert(memory);
                kept.incarnation = kept.incarnation.max(memory.incarnation);
                kept.durable = kept.durable.max(memory.durable);
            })
        });
        stored.await.expect("storing meta doesn't panic").inspect_err(|error| self.fail(error.to_string()))
    }

    /// Lets in a message that is meant for this disk, in this history, from the sender's newest start. A blank node adopts the
    /// cluster that speaks to its disk: the disk id is random, so only the cluster that let it in knows it.
    ///
    /// # Errors
    /// If it isn't, or this node doesn't take part yet.
    pub(crate) async fn admit(&self, envelope: &Envelope) -> Result<Arc<Running>, EnvelopeError> {
        if envelope.to != self.disk {
            return Err(EnvelopeError::Refused(format!(
                "{} is disk {}, not {}",
                self.config.name, self.disk, envelope.to
            )));
        }
        let stage = self.stage.borrow().clone();
        let running = match stage {
            Stage::Running(running) => running,
            Stage::Checking(detail) => return Err(EnvelopeError::NotReady(detail)),
            Stage::Blank(detail) => {
                let _ = self.adoptions.try_send((envelope.cluster, envelope.lineage));
                return Err(EnvelopeError::NotReady(detail));
            }
        };
        if (running.cluster, running.lineage) != (envelope.cluster, envelope.lineage) {
            return Err(EnvelopeError::Refused(format!(
                "this is cluster {} lineage {}, not {} lineage {}",
                running.cluster, running.lineage, envelope.cluster, envelope.lineage
            )));
        }
        let known = self.dir.meta().peers.get(&envelope.from).map(|known| known.incarnation);
        if known.is_some_and(|known| known > envelope.incarnation) {
            return Err(EnvelopeError::Refused(format!(
                "disk {} has been started anew since incarnation {}",
                envelope.from, envelope.incarnation
            )));
        }
        Ok(running)
    }

    /// Takes entries that a follower's clients gave it. False: this node isn't the primary.
    pub(crate) async fn on_propose(&self, running: &Running, entries: Vec<Bytes>) -> bool {
        match running.strategy.propose(entries).await {
            Ok(result) => {
                // If they come to nothing, the follower repeats them: it never sees them applied.
                tokio::spawn(result);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "refused a follower's entries");
                false
            }
        }
    }

    /// A new disk asks to be let in.
    pub async fn on_join(&self, join: Join) -> JoinAnswer {
        let Ok(running) = self.running() else {
            return JoinAnswer { detail: "this node has no cluster yet".into(), ..JoinAnswer::default() };
        };
        let cluster = Some((running.cluster, running.lineage));
        JoinAnswer { cluster, ..running.strategy.join(join).await }
    }
}
