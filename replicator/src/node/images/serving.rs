//! Giving an image to a peer.

use std::{sync::Arc, time::Duration};

use replicator_storage::{SnapshotData, SnapshotManifest, SnapshotPiece, StorageError};
use replicator_types::Position;
use tokio::task::JoinHandle;

use super::NodeImages;

/// A piece, in bytes: its message is made by the thread of the group, which has more to do. Less where the rate is bounded, so that none takes more
/// than about a tenth of a second.
const PIECE_BYTES: usize = 512 << 10;
const PIECE_BYTES_MIN: u64 = 4 << 10;

/// An image on its way to a peer.
pub(crate) struct Served {
    images: Arc<NodeImages>,
    data: Arc<SnapshotData>,
    offset: u64,
    next_at: tokio::time::Instant,
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
        let opened = known.and_then(|known| {
            let data = self.store.data_file(known.position()).ok()?;
            (*data.manifest() == known && known.position() >= at_least).then_some((data, offset))
        });
        let (data, offset) = match opened {
            Some(opened) => opened,
            None => match self.store.latest()?.filter(|newest| newest.position() >= at_least) {
                Some(newest) => (self.store.data_file(newest.position())?, 0),
                None => return Ok(None),
            },
        };
        let next_at = tokio::time::Instant::now();
        Ok(Some(Served { images: self.clone(), data: Arc::new(data), offset, next_at, ahead: None }))
    }
}

impl Served {
    pub(crate) fn manifest(&self) -> &SnapshotManifest {
        self.data.manifest()
    }

    /// The next piece, no sooner than the rate allows; None: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<SnapshotPiece>, StorageError> {
        let Some(reading) = self.ahead.take().or_else(|| self.read()) else { return Ok(None) };
        tokio::time::sleep_until(self.next_at).await;
        let piece = reading.await.expect("reading a file doesn't panic")?;
        self.offset += piece.bytes.len() as u64;
        if let Some(rate) = self.images.config.transfer_bytes_per_sec {
            let pause = Duration::from_secs_f64(piece.bytes.len() as f64 / rate.get() as f64);
            self.next_at = self.next_at.max(tokio::time::Instant::now() - Duration::from_millis(100)) + pause;
        }
        // While this one is sent.
        self.ahead = self.read();
        Ok(Some(piece))
    }

    /// Begins to read the piece at `offset`, if there is one.
    fn read(&self) -> Option<JoinHandle<Result<SnapshotPiece, StorageError>>> {
        let (data, offset) = (self.data.clone(), self.offset);
        let rate = self.images.config.transfer_bytes_per_sec;
        let piece = rate.map_or(PIECE_BYTES, |rate| {
            usize::try_from((rate.get() / 10).max(PIECE_BYTES_MIN)).map_or(PIECE_BYTES, |bytes| bytes.min(PIECE_BYTES))
        });
        let left = offset < data.manifest().data_bytes;
        left.then(|| self.images.runtime.spawn_blocking(move || data.read_at(offset, piece)))
    }
}
