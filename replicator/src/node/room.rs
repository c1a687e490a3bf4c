//! Room on the disk: kept for what this node must promise, and made where it can be spared.
//!
//! A full disk is waited for. As primary, the node refuses new entries while its log has no room ([`super::Proposer`]); as another member it is
//! slow. Nothing else changes: reads go on, and so does everything else when there is room again.

use std::{sync::Arc, time::Duration};

use replicator_storage::Log as _;
use tokio::task::spawn_blocking;

use super::{Node, Running};

const PERIOD: Duration = Duration::from_secs(1);

impl Node {
    /// Looks at the disk now and then, for as long as the node runs.
    pub(super) async fn keep_room(self: Arc<Self>, running: Arc<Running>) {
        let mut open = true;
        loop {
            tokio::time::sleep(PERIOD).await;
            let dir = self.dir.clone();
            if let Ok(Err(error)) = spawn_blocking(move || dir.keep_spare_room()).await {
                tracing::warn!(%error, "no room is kept for this node's promises");
            }
            let room = self.log.room();
            match (open, room.open) {
                (true, false) => {
                    tracing::error!(
                        dir = %self.dir.path().display(),
                        free_bytes = room.free_bytes,
                        "the disk is full: as primary, this node takes no new entries until there is room again"
                    );
                    if let Err(error) = self.images.give_up_older(&*running.strategy).await {
                        tracing::warn!(%error, "the older image stays");
                    }
                }
                (false, true) => tracing::warn!(free_bytes = room.free_bytes, "the disk has room again"),
                _ => {}
            }
            open = room.open;
        }
    }
}
