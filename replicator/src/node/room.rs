//! Room on the disk: kept for what this node must promise, and made where it can be spared.
//!
//! A full disk is waited for. As primary, the node refuses new entries while its log has no room ([`super::Proposer`]), and hands its part to a
//! member whose disk has some; as another member it is slow. Nothing else changes: reads go on, and so does everything else when there is
//! room again.

use std::{sync::Arc, time::Duration};

use replicator_storage::Log as _;
use tokio::task::spawn_blocking;

use super::{Node, Running};
use crate::replication::{Member, Role};

const PERIOD: Duration = Duration::from_secs(1);
/// Looks at a full disk before the primary's part is handed over: what fills it may be gone by then.
const LOOKS: u32 = 2;

impl Node {
    /// Looks at the disk now and then, for as long as the node runs.
    pub(super) async fn keep_room(self: Arc<Self>, running: Arc<Running>) {
        let mut full_for = 0;
        loop {
            tokio::time::sleep(PERIOD).await;
            let dir = self.dir.clone();
            if let Ok(Err(error)) = spawn_blocking(move || dir.keep_spare_room()).await {
                tracing::warn!(%error, "no room is kept for this node's promises");
            }
            let room = self.log.room();
            if room.open {
                if full_for > 0 {
                    tracing::warn!(free_bytes = room.free_bytes, "the disk has room again");
                }
                full_for = 0;
                continue;
            }
            if full_for == 0 {
                tracing::error!(
                    dir = %self.dir.path().display(),
                    free_bytes = room.free_bytes,
                    "the disk is full: as primary, this node takes no new entries until there is room again"
                );
                if let Err(error) = self.images.give_up_older(&*running.strategy).await {
                    tracing::warn!(%error, "the older image stays");
                }
            }
            full_for += 1;
            if full_for >= LOOKS && running.strategy.view().borrow().role == Role::Primary {
                self.step_aside(&running).await;
            }
        }
    }

    /// Hands the primary's part to a member whose disk has room, if there is one.
    async fn step_aside(&self, running: &Running) {
        let view = running.strategy.view().borrow().clone();
        for answer in self.hello_round(self.others().iter()).await.into_iter().flatten() {
            let able = |member: &&Member| member.disk == answer.disk && member.voter && !member.witness;
            let Some(member) = view.members.iter().find(able).filter(|_| !answer.disk_full) else { continue };
            match running.strategy.transfer(member.disk).await {
                Ok(()) => {
                    return tracing::warn!(to = member.node, "this disk is full: handing the primary's part over");
                }
                Err(error) => {
                    tracing::warn!(to = member.node, error, "this disk is full, and the primary's part stays here")
                }
            }
        }
    }
}
