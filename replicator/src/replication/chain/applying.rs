//! Handing committed entries to the machine, in order; and images, where they take the place of entries.

use std::sync::Arc;

use replicator_storage::Log;
use replicator_types::{LogIndex, Position};
use tokio::sync::{mpsc::UnboundedSender, watch};

use super::Input;
use crate::replication::{ApplySink, Committed, Images};

/// Entries that go to the machine at once, and their bytes, about.
const ENTRIES_MAX: u64 = 1_024;
const BYTES_MAX: usize = 4 << 20;

/// What the machine may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Committable {
    /// The log has no entries up to here: the machine goes on from this image, if it isn't further.
    pub(super) image: Option<Position>,
    /// The last committed entry.
    pub(super) to: Option<Position>,
}

pub(super) struct Applying {
    pub(super) log: Arc<dyn Log>,
    pub(super) sink: Arc<dyn ApplySink>,
    pub(super) images: Arc<dyn Images>,
    pub(super) inputs: UnboundedSender<Input>,
    /// The next entry to be applied.
    pub(super) next: LogIndex,
}

impl Applying {
    pub(super) async fn run(mut self, mut committed: watch::Receiver<Committable>) {
        loop {
            let Committable { image, to } = *committed.borrow_and_update();
            let end = to.map_or(LogIndex(0), |to| to.index.next());
            let done = match image.filter(|image| image.index >= self.next) {
                Some(image) => self.enter(image).await,
                None if self.next < end => self.apply(end).await,
                None if committed.changed().await.is_err() => return,
                None => Ok(()),
            };
            if let Err(what) = done {
                return drop(self.inputs.send(Input::Failed(what)));
            }
        }
    }

    async fn enter(&mut self, image: Position) -> Result<(), String> {
        self.images.enter(image).await?;
        self.next = image.index.next();
        Ok(())
    }

    async fn apply(&mut self, end: LogIndex) -> Result<(), String> {
        let to = LogIndex(end.0.min(self.next.0 + ENTRIES_MAX));
        let records = self.log.read(self.next, to, BYTES_MAX).map_err(|error| error.to_string())?;
        if records.first().is_none_or(|first| first.position.index != self.next) {
            // The log may have begun to go on from an image meanwhile.
            if self.log.ends().purged.is_none_or(|purged| purged.index < self.next) {
                return Err(format!("the committed entry {} is not in the log", self.next));
            }
            tokio::task::yield_now().await;
            return Ok(());
        }
        self.next = LogIndex(self.next.0 + records.len() as u64);
        let batch: Vec<Committed> = records.into_iter().map(|r| (r.position, Some(r.payload))).collect();
        self.sink.apply(batch).await;
        let _ = self.inputs.send(Input::Applied(LogIndex(self.next.0 - 1)));
        Ok(())
    }
}
