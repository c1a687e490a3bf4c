//! The account of a start: this node's logical clock, its peers', and how it caught up.

use std::{sync::Arc, time::Instant};

use replicator_types::LogIndex;

use super::{Node, images::CatchUp};

/// A start, as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restart {
    /// The last log index on this disk when the node started.
    pub own: LogIndex,
    /// Those of the peers that were asked, by name.
    pub peers: Vec<(String, LogIndex)>,
    /// The index at which the machine began: of an image on this disk, or 0.
    pub image: LogIndex,
    /// How long it took until everything was applied that the greatest of these clocks names, in milliseconds; None: not yet.
    pub caught_up_ms: Option<u64>,
    /// The image that a peer gave, if one did: the whole state.
    pub fetched: Option<CatchUp>,
    /// Damaged files that were mended at this start, and since.
    pub repaired: Vec<String>,
}

impl Restart {
    /// The greatest of the clocks.
    #[must_use]
    pub fn goal(&self) -> LogIndex {
        self.peers.iter().map(|(_, clock)| *clock).fold(self.own, Ord::max)
    }
}

impl Node {
    /// How this start went so far.
    pub(super) fn restart(&self) -> Restart {
        Restart { fetched: self.images.catch_up(), repaired: self.repairs.told(), ..self.restarted.borrow().clone() }
    }

    /// Follows the machine until it has caught up, and says how it did.
    pub(super) async fn watch_restart(self: Arc<Self>) {
        let began = Instant::now();
        let goal = self.restarted.borrow().goal();
        let mut state = self.applier.state.clone();
        if state.wait_for(|state| state.index().unwrap_or_default() >= goal).await.is_err() {
            return;
        }
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.restarted.send_modify(|restart| restart.caught_up_ms = Some(took_ms));
        if goal == LogIndex(0) {
            return; // There was nothing to catch up with.
        }
        let restart = self.restart();
        let taken = restart.fetched.as_ref().filter(|fetched| fetched.entered).map_or_else(
            || format!("{} entries of the log", goal.0.saturating_sub(restart.own.0)),
            |whole| format!("the whole state from {}, {} bytes", whole.from, whole.bytes.1),
        );
        let replayed = restart.own.0.saturating_sub(restart.image.0);
        tracing::info!(own = restart.own.0, goal = goal.0, replayed, took_ms, "caught up; taken from peers: {taken}");
    }
}
