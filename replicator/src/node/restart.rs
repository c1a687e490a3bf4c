//! The account of a start: this node's logical clock, its peers', and how it caught up.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_types::LogIndex;

use super::{Node, images::CatchUp};

/// Between two rounds of asking for clocks, while nobody answers.
const ASK_AGAIN: Duration = Duration::from_millis(100);

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

    /// Asks the peers for their clocks, if nobody did: a new disk has promised nothing that would have to be checked with them.
    async fn ask_clocks(&self) {
        let configured = self.config.peers.iter().map(|peer| (peer.name.to_string(), peer.peer_address.to_string()));
        let configured: BTreeMap<String, String> = configured.collect();
        while self.restarted.borrow().peers.is_empty() && !configured.is_empty() {
            let answers = self.hello_round(configured.iter()).await.into_iter().flatten();
            let peers: Vec<_> = answers.map(|answer| (answer.node, answer.last_log_index)).collect();
            if peers.is_empty() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            self.restarted.send_modify(|restart| restart.peers = peers);
        }
    }

    /// Follows the machine until it has caught up, and says how it did.
    pub(super) async fn watch_restart(self: Arc<Self>) {
        let began = Instant::now();
        self.ask_clocks().await;
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
