//! Giving an image to a peer.

use std::sync::Arc;

use replicator_storage::{SnapshotData, SnapshotManifest, SnapshotPiece, StorageError};
use replicator_types::Position;
use tokio::task::JoinHandle;

use super::{NodeImages, pace::Pace};

/// An image on its way to a peer.
pub(crate) struct Served {
    images: Arc<NodeImages>,
    data: Arc<SnapshotData>,
    offset: u64,
    pace: Pace,
    /// The piece at `offset`, being read.
    ahead: Option<JoinHandle<Result<SnapshotPiece, StorageError>>>,
}

impl NodeImages {
    /// The image that the peer has a part of, if it is still here, from where its part ends; else the newest, from its beginning. None: this node has
    /// none of `at_least`.
    pub(in crate::node) fn serve(
        self: &Arc<Self>,
        at_least: Position,
        known: Option<SnapshotManifest>,
        offset: u64,
    ) -> Result<Option<Served>, StorageError> {
        let Some(good) = self.quarantine.gives_images_to() else { return Ok(None) };
        let known = known.filter(|known| known.position().index <= good);
        let opened = known.and_then(|known| {
            let data = self.store.data_file(known.position()).ok()?;
            (*data.manifest() == known && known.position() >= at_least).then_some((data, offset))
        });
        let (data, offset) = match opened {
            Some(opened) => opened,
            None => {
                let kept = self.store.list()?.into_iter().rev();
                let mut whole = kept.filter(|entry| entry.manifest.is_ok() && entry.position.index <= good);
                match whole.next().filter(|newest| newest.position >= at_least) {
                    Some(newest) => (self.store.data_file(newest.position)?, 0),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Served {
            images: self.clone(),
            data: Arc::new(data),
            offset,
            pace: Pace::new(self.config.transfer_bytes_per_sec),
            ahead: None,
        }))
    }
}

impl Served {
    pub(crate) fn manifest(&self) -> &SnapshotManifest {
        self.data.manifest()
    }

    /// The next piece, no sooner than the rate allows; None: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<SnapshotPiece>, StorageError> {
        let Some(reading) = self.ahead.take().or_else(|| self.read()) else { return Ok(None) };
        self.pace.wait().await;
        let piece = reading.await.expect("reading a file doesn't panic")?;
        self.offset += piece.bytes.len() as u64;
        self.pace.sent(piece.bytes.len());
        // While this one is sent.
        self.ahead = self.read();
        Ok(Some(piece))
    }

    /// Begins to read the piece at `offset`, if there is one.
    fn read(&self) -> Option<JoinHandle<Result<SnapshotPiece, StorageError>>> {
        let (data, offset, bytes) = (self.data.clone(), self.offset, self.pace.piece_bytes());
        let left = offset < data.manifest().data_bytes;
        left.then(|| self.images.runtime.spawn_blocking(move || data.read_at(offset, bytes)))
    }
}
