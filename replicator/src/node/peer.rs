//! What peers ask of this node.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use replicator_machine::Entry;
use replicator_storage::{Log as _, PeerMemory, StorageError};
use replicator_types::{ClusterId, Incarnation, Lineage, LogIndex, codec};

use super::{ENTRY_BYTES_MAX, Node, Running, Stage, StartError};
use crate::{
    replication::{Fate, Role},
    transport::{Envelope, Hello, HelloAnswer, Join, JoinAnswer, Proposed},
};

/// How long a primary waits for a follower's entries to be applied or refused before it says that they are proposed: as long as one batch
/// is under way, the follower gathers the next.
const UNDER_WAY: Duration = Duration::from_millis(20);

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
            return Err(EnvelopeError::Refused(self.foreign(ours, theirs)));
        }
        let member = meta.members.iter().any(|member| member.disk == hello.disk);
        let known = meta.peers.get(&hello.disk).copied();
        let matched = self.running().ok().and_then(|running| {
            let progress = running.strategy.progress();
            let matched = progress.matched.into_iter().find(|(disk, _)| *disk == hello.disk)?;
            Some(matched.1.min(progress.committed?)) // Above that, a new primary may yet truncate it.
        });
        let known_durable = known.map_or(LogIndex(0), |known| known.durable).max(matched.unwrap_or_default());
        let floor = known_durable.max(hello.floor);
        let newer = known.is_none_or(|known| known.incarnation < hello.incarnation || known.durable < floor);
        // Strangers are not remembered: anybody can name a disk.
        if member && newer && hello.cluster == meta.cluster {
            self.remember(&hello, floor).await?;
        }
        let last_log_index = self.last_log_index();
        // A repeated hello of the start that is remembered is told what was known before it.
        let repeated = known.is_some_and(|known| (known.incarnation, known.start) == (hello.incarnation, hello.start));
        let known_incarnation = match known {
            Some(_) if repeated => Incarnation(hello.incarnation.0.saturating_sub(1)),
            Some(known) => known.incarnation,
            None => Incarnation(0),
        };
        let same_name = meta.members.iter().any(|member| member.node == hello.node && member.disk != hello.disk);
        Ok(HelloAnswer {
            cluster: meta.cluster,
            node: self.config.name.to_string(),
            disk: self.disk,
            known_incarnation,
            known_durable,
            last_log_index,
            // A log that is behind the asker's can't tell: the asker may have been let in after its end.
            replaced: hello.cluster.is_some() && same_name && !member && last_log_index >= hello.last_log_index,
            disk_full: !self.log.room().open,
        })
    }

    /// Why a peer of another history is refused, and what its operator can do.
    fn foreign(&self, ours: (ClusterId, Lineage), theirs: (ClusterId, Lineage)) -> String {
        let belongs = format!(
            "{} belongs to cluster {} lineage {}, and you to cluster {} lineage {}",
            self.config.name, ours.0, ours.1, theirs.0, theirs.1
        );
        let recovered = "an operator has begun a new lineage with `replicator recover`";
        match self.applier.state.borrow().lineages.contains(&theirs.1) {
            _ if ours.0 != theirs.0 => belongs,
            true => format!(
                "{belongs}: {recovered}, and yours is of before. Start your node with --rejoin, to take part in the new one"
            ),
            false => format!("{belongs}: {recovered}. A node of the old one takes part in the new one with --rejoin"),
        }
    }

    async fn remember(&self, hello: &Hello, durable: LogIndex) -> Result<(), StorageError> {
        let (dir, disk) = (self.dir.clone(), hello.disk);
        let memory = PeerMemory { incarnation: hello.incarnation, start: hello.start, durable };
        let stored = tokio::task::spawn_blocking(move || {
            dir.update(|meta| {
                let kept = meta.peers.entry(disk).or_insert(memory);
                if kept.incarnation < memory.incarnation {
                    (kept.incarnation, kept.start) = (memory.incarnation, memory.start);
                }
                // A copy of the disk that is older than the one remembered must not be the one to raise its floor.
                if kept.start == memory.start {
                    kept.durable = kept.durable.max(memory.durable);
                }
            })
        });
        let stored = stored.await.expect("storing meta doesn't panic");
        if let Err(error) = &stored {
            self.fail(StartError::Stopped(error.to_string()));
        }
        stored
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
        let (ours, theirs) = (running.envelope.history(), envelope.history());
        if ours != theirs {
            return Err(EnvelopeError::Refused(self.foreign(ours, theirs)));
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

    /// Takes entries that a follower's clients gave it.
    ///
    /// # Errors
    /// If an entry can't be read or is too large: once in the log, it would halt every replica, or their logs.
    pub(crate) async fn on_propose(&self, running: &Running, entries: Vec<Bytes>) -> Result<Proposed, EnvelopeError> {
        for entry in &entries {
            if entry.len() > ENTRY_BYTES_MAX {
                let (bytes, max) = (entry.len(), ENTRY_BYTES_MAX);
                return Err(EnvelopeError::Refused(format!("an entry of {bytes} bytes; at most {max} are taken")));
            }
            codec::decode::<Entry>(entry).map_err(|error| EnvelopeError::Refused(error.to_string()))?;
        }
        if running.strategy.view().borrow().role == Role::Primary && !self.log.room().open {
            return Ok(Proposed::NoRoom);
        }
        let result = match running.strategy.propose(entries).await {
            Ok(result) => result,
            Err(error) => {
                tracing::debug!(%error, "refused a follower's entries");
                return Ok(Proposed::NotPrimary);
            }
        };
        match tokio::time::timeout(UNDER_WAY, result).await {
            // What is still under way, the follower hears of by applying it, or by its silence, and proposes it again.
            Ok(Fate::Applied) | Err(_) => Ok(Proposed::Taken),
            Ok(Fate::Refused) => Ok(Proposed::NotPrimary),
            Ok(Fate::NoRoom) => Ok(Proposed::NoRoom),
            Ok(Fate::Unknown) => Err(EnvelopeError::NotReady("the primary has changed; propose them again".into())),
        }
    }

    /// A new disk asks to be let in.
    pub async fn on_join(&self, join: Join) -> JoinAnswer {
        let Ok(running) = self.running() else {
            return JoinAnswer { detail: "this node has no cluster yet".into(), ..JoinAnswer::default() };
        };
        let cluster = Some((running.envelope.cluster, running.envelope.lineage));
        JoinAnswer { cluster, ..running.strategy.join(join).await }
    }
}
