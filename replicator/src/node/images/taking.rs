//! Taking images while the machine goes on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_machine::ImageUnavailable;
use replicator_storage::{SnapshotInfo, StorageError};
use replicator_types::{LogIndex, Position};
use tokio::sync::oneshot;

use super::{KEPT, NodeImages};
use crate::{
    node::{Running, applier::Work},
    replication::Strategy,
};

/// The least time between two images that are due, however small `log_bytes` is: the log between them is all that a node has which comes back meanwhile.
/// If it were gone before that node has installed the older image and asked for what follows, it would need the next one, and so on for ever.
const BETWEEN: Duration = Duration::from_secs(1);

/// When an image is due.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct Policy {
    /// After so many bytes of entries since the last one.
    pub(in crate::node) log_bytes: u64,
}

/// An image that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenImage {
    /// Its last entry.
    pub position: Position,
    /// Bytes of the module's memory.
    pub state_bytes: u64,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// How long it took, until it was durable.
    pub took: Duration,
    /// For how long it has held up the machine at once, at most: for its own copy of the memory, or for one that came while it was written.
    pub paused: Duration,
    /// The same in its thread's own time: less, where that had to wait for a core.
    pub paused_cpu: Duration,
}

/// Why no image was taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::node) enum TakeError {
    #[error(transparent)]
    Unavailable(#[from] ImageUnavailable),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the machine stands still")]
    Halted,
    #[error("this node's state isn't what other replicas have; it takes no images of it")]
    Quarantined,
}

impl NodeImages {
    /// Takes an image whenever it is due. Where one can't be taken (a full disk, say) the log grows, and the next batch tries again.
    pub(in crate::node) async fn keep_taking(self: Arc<Self>, running: Arc<Running>, policy: Policy) {
        let mut state = self.applier.state.clone();
        let mut due_at = self.first_due(policy);
        let mut not_before = tokio::time::Instant::now();
        loop {
            if state.wait_for(|state| state.bytes_since_image >= due_at).await.is_err() {
                return;
            }
            tokio::time::sleep_until(not_before).await;
            not_before = tokio::time::Instant::now() + BETWEEN;
            match self.take(&*running.strategy, &running).await {
                Ok(_) => due_at = policy.log_bytes,
                Err(TakeError::Halted) => return,
                Err(error) => {
                    tracing::warn!(%error, "no image was taken; the log is kept and grows");
                    due_at = policy.log_bytes.max(state.borrow().bytes_since_image + policy.log_bytes / 4);
                }
            }
        }
    }

    /// The first image comes earlier at some nodes than at others, so that they don't take theirs at the same time: all apply the same bytes.
    fn first_due(&self, policy: Policy) -> u64 {
        let meta = self.dir.meta();
        let before = self.configured.iter().filter(|peer| *peer.name.as_str() < *meta.node).count() as u64;
        let share = policy.log_bytes / (self.configured.len() as u64 + 1);
        policy.log_bytes - before * share
    }

    /// Takes one now, and lets the log before the one before go.
    pub(in crate::node) async fn take(
        self: &Arc<Self>,
        strategy: &dyn Strategy,
        running: &Running,
    ) -> Result<TakenImage, TakeError> {
        let (taken, purge) = self.take_only(strategy, running).await?;
        if let Some(purge) = purge {
            strategy.imaged(purge).await;
        }
        Ok(taken)
    }

    /// Takes one now; durable on return. Tells too through which index the log may go.
    pub(in crate::node) async fn take_only(
        self: &Arc<Self>,
        strategy: &dyn Strategy,
        running: &Running,
    ) -> Result<(TakenImage, Option<LogIndex>), TakeError> {
        if self.quarantine.is_silent() {
            return Err(TakeError::Quarantined);
        }
        let began = Instant::now();
        let (answer, taken) = oneshot::channel();
        if !self.applier.give(Work::Image(answer)).await {
            return Err(TakeError::Halted);
        }
        let image = taken.await.map_err(|_| TakeError::Halted)??;
        let position = image.position();
        let info = SnapshotInfo {
            position,
            lineage: running.envelope.lineage,
            cluster: running.envelope.cluster,
            module: image.module(),
            engine: image.engine().to_owned(),
            digest: image.digest().0.into(),
            extra: strategy.image_group(position),
            created_us: self.clock.now_us(),
        };
        let images = self.clone();
        let estimate = self.applier.state.borrow().memory_bytes;
        // The log and the clients come first: with all cores busy, an image takes its time.
        let written = self.behind("image-write", move || {
            let mut writer = images.store.begin(info, estimate)?;
            let summary = image.write_to(&mut writer).map_err(|error| images.write_error(error))?;
            let manifest = writer.finish()?;
            images.set_newest(&manifest);
            Ok::<_, StorageError>((summary, manifest, images.retain(KEPT)?))
        });
        let written = written.map_err(|error| self.write_error(error))?;
        let written = written.await.expect("writing an image doesn't panic");
        let (summary, manifest, purge) = written.map_err(|error| self.noted(error))?;
        if self.quarantine.is_silent() {
            // It was found out meanwhile; what was cleaned then can't have been this one.
            self.store.remove(position)?;
            let left = self.store.latest()?;
            self.forget(position, left.as_ref());
            return Err(TakeError::Quarantined);
        }
        let longest_copy = self.applier.state.borrow().longest_copy;
        let taken = TakenImage {
            position,
            state_bytes: summary.memory_bytes,
            file_bytes: manifest.data_bytes,
            took: began.elapsed(),
            paused: longest_copy.clock,
            paused_cpu: longest_copy.thread,
        };
        tracing::info!(
            %position,
            state_bytes = taken.state_bytes,
            file_bytes = taken.file_bytes,
            took_ms = taken.took.as_millis(),
            paused_us = taken.paused.as_micros(),
            paused_cpu_us = taken.paused_cpu.as_micros(),
            "took an image"
        );
        Ok((taken, purge))
    }

    /// On a full disk: removes all images but the newest, if that is whole, and lets the log before it go.
    pub(in crate::node) async fn give_up_older(self: &Arc<Self>, strategy: &dyn Strategy) -> Result<(), StorageError> {
        let images = self.clone();
        let purge = self.runtime.spawn_blocking(move || {
            let kept = images.store.list()?;
            let (Some(newest), true) = (kept.last(), kept.len() > 1) else { return Ok(None) };
            images.store.verify(newest.position)?;
            tracing::warn!(kept = %newest.position, "the disk is full: older images and the log before this one are given up");
            images.retain(1)
        });
        if let Some(purge) = purge.await.expect("reading an image doesn't panic")? {
            strategy.imaged(purge).await;
        }
        Ok(())
    }

    /// The writer's own errors come back as they are.
    fn write_error(&self, error: std::io::Error) -> StorageError {
        let path = self.dir.path().to_owned();
        error.downcast().unwrap_or_else(|source| StorageError::Io { path, action: "write an image to", source })
    }
}
