//! Giving an image to a peer.

use std::{sync::Arc, time::Duration};

use replicator_storage::{SnapshotData, SnapshotManifest, SnapshotPiece, StorageError};
use replicator_types::Position;

use super::NodeImages;

/// A piece, in bytes: less where the rate is bounded, so that none takes more than about a tenth of a second. Small in tests, so that small images are
/// cut between pieces too.
const PIECE_BYTES: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };
const PIECE_BYTES_MIN: u64 = 4 << 10;

/// An image on its way to a peer.
pub(crate) struct Served {
    images: Arc<NodeImages>,
    data: Arc<SnapshotData>,
    offset: u64,
    next_at: tokio::time::Instant,
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
        Ok(Some(Served { images: self.clone(), data: Arc::new(data), offset, next_at: tokio::time::Instant::now() }))
    }
}

impl Served {
    pub(crate) fn manifest(&self) -> &SnapshotManifest {
        self.data.manifest()
    }

    /// The next piece, no sooner than the rate allows; None: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<SnapshotPiece>, StorageError> {
        if self.offset >= self.data.manifest().data_bytes {
            return Ok(None);
        }
        tokio::time::sleep_until(self.next_at).await;
        let (data, offset) = (self.data.clone(), self.offset);
        let rate = self.images.config.transfer_bytes_per_sec;
        let piece = rate.map_or(PIECE_BYTES, |rate| {
            usize::try_from((rate.get() / 10).max(PIECE_BYTES_MIN)).map_or(PIECE_BYTES, |bytes| bytes.min(PIECE_BYTES))
        });
        let read = self.images.runtime.spawn_blocking(move || data.read_at(offset, piece));
        let piece = read.await.expect("reading a file doesn't panic")?;
        self.offset += piece.bytes.len() as u64;
        if let Some(rate) = rate {
            let pause = Duration::from_secs_f64(piece.bytes.len() as f64 / rate.get() as f64);
            self.next_at = self.next_at.max(tokio::time::Instant::now() - Duration::from_millis(100)) + pause;
        }
        Ok(Some(piece))
    }
}
