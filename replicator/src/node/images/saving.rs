//! Giving an image to an operator, as one file that a new cluster can begin from.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_machine::ImageUnavailable;
use replicator_storage::{SavedOrigin, SavedSource, SnapshotManifest, SnapshotPiece, StorageError};
use replicator_types::Position;
use tokio::runtime::Handle;

use super::{NodeImages, pace::Pace, taking::TakeError};
use crate::{node::Node, replication::Images as _};

/// How long this replica may take to catch up with what was acknowledged.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// How long another image may be in the way.
const IN_THE_WAY_MAX: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(100);

/// A saved snapshot on its way out.
pub struct Saving {
    source: Arc<SavedSource>,
    /// Whether it holds all that was acknowledged, by any node, when it was asked for.
    pub up_to_date: bool,
    offset: u64,
    pace: Pace,
    runtime: Handle,
}

impl Node {
    /// A saved snapshot of this replica: of an image taken now, which holds all that was acknowledged before if the group confirms
    /// it in time; or of the newest image that there is.
    ///
    /// # Errors
    /// If the node takes no part yet or is a witness, there is no image, or none can be taken.
    pub async fn save_image(&self, newest: bool) -> Result<Saving, String> {
        let running = self.running().map_err(|error| error.to_string())?;
        self.check_halted().map_err(|error| error.to_string())?;
        let images = self.images.clone();
        let (position, up_to_date) = if newest {
            let none = "this node has taken no image yet; leave out --newest, and it takes one";
            (images.newest().ok_or(none)?.position, false)
        } else {
            let deadline = Self::deadline(CATCH_UP_MAX);
            let up_to_date = match self.read_index(deadline).await {
                Ok(index) => self.wait_applied(index, deadline).await.is_ok(),
                Err(_) => false,
            };
            let given_up = Instant::now() + IN_THE_WAY_MAX;
            let position = loop {
                match images.take(&*running.strategy, &running).await {
                    Ok(taken) => break taken.position,
                    Err(error) if is_in_the_way(&error) && Instant::now() < given_up => tokio::time::sleep(RETRY).await,
                    Err(error) => return Err(error.to_string()),
                }
            };
            (position, up_to_date)
        };
        let origin = SavedOrigin {
            node: self.config.name.to_string(),
            mode: self.config.mode.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            saved_us: self.seams.clock.now_us(),
        };
        let source = images.clone().source(position, origin).await?;
        Ok(Saving {
            source: Arc::new(source),
            up_to_date,
            offset: 0,
            pace: Pace::new(images.config.transfer_bytes_per_sec),
            runtime: images.runtime.clone(),
        })
    }
}

/// Another image is being taken: this node's own, or for somebody who saves it too.
fn is_in_the_way(error: &TakeError) -> bool {
    matches!(
        error,
        TakeError::Unavailable(ImageUnavailable::AnotherLives) | TakeError::Storage(StorageError::Busy { .. })
    )
}

impl NodeImages {
    async fn source(self: Arc<Self>, position: Position, origin: SavedOrigin) -> Result<SavedSource, String> {
        let runtime = self.runtime.clone();
        let opened = runtime.spawn_blocking(move || {
            let data = self.store.data_file(position).map_err(|error| error.to_string())?;
            let hash = data.manifest().info.module;
            let module = self.modules.module(&hash);
            let module =
                module.ok_or_else(|| format!("the module {hash} isn't whole in this node's store; save another's"))?;
            // For a rollback in the new cluster, if it is here.
            let previous = self.applier.state.borrow().previous_module().filter(|previous| *previous != hash);
            let previous = previous.and_then(|previous| self.modules.module(&previous));
            Ok(SavedSource::new(data, [module].into_iter().chain(previous).collect(), origin))
        });
        opened.await.map_err(|error| error.to_string())?
    }
}

impl Saving {
    /// Bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    /// What is saved.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        self.source.manifest()
    }

    /// The file's next piece, no sooner than the rate allows; None: that was all.
    ///
    /// # Errors
    /// If the image can't be read.
    pub async fn next(&mut self) -> Result<Option<SnapshotPiece>, StorageError> {
        if self.offset >= self.source.bytes() {
            return Ok(None);
        }
        self.pace.wait().await;
        let (source, offset, bytes) = (self.source.clone(), self.offset, self.pace.piece_bytes());
        let read = self.runtime.spawn_blocking(move || source.read_at(offset, bytes));
        let piece = read.await.expect("reading a file doesn't panic")?;
        self.offset += piece.bytes.len() as u64;
        self.pace.sent(piece.bytes.len());
        Ok(Some(piece))
    }
}
