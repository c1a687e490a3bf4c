//! `Subscribe`: pushed events, gapless after a cursor, with progress while there are none.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::Stream;
use replicator_machine::{Push, PushCursor, Refusal};
use replicator_proto::replicator::v1::{self as pb, subscribe_response::Item};
use replicator_types::{Lineage, LogIndex};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{NodeOrBad, errors::ApiError, session};
use crate::node::{Event, Node, NodeError, Subscribed, Target};

/// How often a subscriber is told how far it is, if there is progress to tell.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a node may be without a primary before it sends its subscribers elsewhere: longer than an election.
const CUT_OFF: Duration = Duration::from_secs(3);
/// Topics of one subscription.
const TOPICS_MAX: usize = 1_000;

/// A topic's place among the targets: the first 16 bytes of the SHA-256 of its name (docs/guest-abi.md).
fn topic_target(name: &str) -> Target {
    let hash = Sha256::digest(name.as_bytes());
    hash[..16].try_into().expect("a SHA-256 has 32 bytes")
}

/// Begins a subscription, having checked that its session exists and its cursor is good.
pub(super) async fn subscribe(
    node: Arc<Node>,
    request: pb::SubscribeRequest,
    deadline: Instant,
) -> Result<impl Stream<Item = Result<pb::SubscribeResponse, Status>> + Send, NodeOrBad> {
    if request.topics.len() > TOPICS_MAX {
        return Err(NodeOrBad::Bad(format!(
            "{} topics; at most {TOPICS_MAX} in one subscription",
            request.topics.len()
        )));
    }
    let mut names: HashMap<Target, String> =
        request.topics.into_iter().map(|name| (topic_target(&name), name)).collect();
    let client = match &request.session_id[..] {
        [] => None,
        id => Some(session(id)?),
    };
    if client.is_none() && names.is_empty() {
        return Err(NodeOrBad::Bad("neither a session nor a topic: nothing could ever come".into()));
    }
    let after = request.after.filter(|after| after.lineage != 0 || after.log_index != 0);
    if let Some(client) = client {
        node.check_session(client)?;
    }
    if client.is_some() || after.is_none() {
        // The session may have been opened at another node a moment ago; and "from now on" isn't where a replica is that catches up.
        let index = node.read_index(deadline).await?;
        node.wait_applied(index, deadline).await?;
    }
    if let Some(client) = client {
        if !node.has_session(client).await? {
            return Err(NodeError::Refused(Refusal::SessionExpired).into());
        }
        names.insert(client.0, String::new());
    }
    let lineage = node.lineage()?;
    let after = match after {
        None => None,
        Some(after) => {
            node.check_lineage(Lineage(after.lineage))?;
            // A replica behind the cursor waits, rather than count from a place it hasn't seen (safety rule 23).
            node.wait_applied(LogIndex(after.log_index), deadline).await?;
            Some(PushCursor { index: LogIndex(after.log_index), ordinal: after.ordinal })
        }
    };
    let targets: HashSet<Target> = names.keys().copied().collect();
    let begun = node.subscribe(targets.clone(), after).await?;
    let (events, receiver) = mpsc::channel(64);
    let subscription = Subscription { node, names, targets, lineage, events };
    tokio::spawn(subscription.run(begun));
    Ok(ReceiverStream::new(receiver))
}

struct Subscription {
    node: Arc<Node>,
    names: HashMap<Target, String>,
    targets: HashSet<Target>,
    lineage: Lineage,
    events: mpsc::Sender<Result<pb::SubscribeResponse, Status>>,
}

impl Subscription {
    async fn run(self, mut begun: Subscribed) {
        let mut seen = begun.from;
        if !self.tell(Item::Progress(self.cursor(seen))).await {
            return;
        }
        let mut applied = self.node.applied();
        let cut_off = self.cut_off();
        tokio::pin!(cut_off);
        // Goes on whatever comes, so that ephemeral events, which move no cursor, don't keep progress from being told.
        let mut progress = tokio::time::interval(PROGRESS);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Read before the queue is emptied: every push up to here is in it by then.
            let reached = applied.borrow_and_update().index();
            loop {
                match begun.events.try_recv() {
                    Ok(event) => {
                        if !self.deliver(event, &mut seen).await {
                            return;
                        }
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        // Not caught up yet, or too slow and cut off by the hub: what is missing is retained.
                        seen = seen.max(begun.scanned);
                        match self.node.subscribe(self.targets.clone(), Some(seen)).await {
                            Ok(again) => begun = again,
                            Err(error) => {
                                let status = ApiError::of(&self.node, error.into()).into();
                                let _ = self.events.send(Err(status)).await;
                                return;
                            }
                        }
                    }
                }
            }
            let caught_up = PushCursor::end_of(reached.unwrap_or_default());
            tokio::select! {
                () = self.events.closed() => return,
                () = &mut cut_off => {
                    let why = "this node has lost its primary, and may miss events; go on at another node";
                    let error = NodeError::NotReady(why.to_owned());
                    let _ = self.events.send(Err(ApiError::of(&self.node, error.into()).into())).await;
                    return;
                }
                event = begun.events.recv() => if let Some(event) = event
                    && !self.deliver(event, &mut seen).await {
                    return;
                },
                _ = progress.tick(), if caught_up > seen => {
                    seen = caught_up;
                    if !self.tell(Item::Progress(self.cursor(seen))).await {
                        return;
                    }
                }
                _ = applied.changed(), if caught_up <= seen => {}
            }
        }
    }

    /// Ends when this node has not been able to serve for a while: its subscribers would wait in vain.
    async fn cut_off(&self) {
        let mut serving = self.node.serving();
        loop {
            let _ = serving.wait_for(|serving| !serving).await;
            if tokio::time::timeout(CUT_OFF, serving.wait_for(|serving| *serving)).await.is_err() {
                return;
            }
        }
    }

    fn cursor(&self, at: PushCursor) -> pb::Cursor {
        pb::Cursor { lineage: self.lineage.0, log_index: at.index.0, ordinal: at.ordinal }
    }

    async fn deliver(&self, event: Event, seen: &mut PushCursor) -> bool {
        let topic = |push: &Push| self.names.get(&push.to).cloned().unwrap_or_default();
        let item = match event {
            Event::Retained(retained) => {
                *seen = retained.cursor;
                let cursor = Some(self.cursor(retained.cursor));
                Item::Push(pb::Push { cursor, topic: topic(&retained.push), payload: retained.push.payload })
            }
            Event::Ephemeral(push) => Item::Ephemeral(pb::EphemeralPush { topic: topic(&push), payload: push.payload }),
        };
        self.tell(item).await
    }

    async fn tell(&self, item: Item) -> bool {
        self.events.send(Ok(pb::SubscribeResponse { item: Some(item) })).await.is_ok()
    }
}
