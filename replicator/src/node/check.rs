//! Whether this disk is the newest copy of itself: asked of the voters before anything else is answered (safety rule 2).
//!
//! Every disk counts its starts, and its peers remember the count, and how far its log was durable and committed. A peer that knows a
//! later start, or a longer log, has met a newer copy of this folder: votes and acknowledgements given since are missing from this one, so
//! it must not vote again.
//!
//! What this finds: an older copy, as long as one of those that answer has met a later start of the disk, or been told of a floor above its
//! end. Told are all members at a start, and then every few seconds while the log grows. What it can't find: a copy from the same
//! start that is not below the floor; and an older one while the only members that know better are down and a majority of the others, this
//! disk counted, isn't. Waiting for all would find that one too, and one dead node would then keep every other from starting again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use replicator_storage::Log;
use replicator_types::LogIndex;

use super::{Node, Running, Stage, startup::StartError, status::IF_LOST};
use crate::transport::{Hello, HelloAnswer, TransportError};

/// How long a start waits for all voters; then a majority is enough.
const GRACE: Duration = Duration::from_secs(1);
const ROUND: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_millis(900);
/// How often members are told of this disk's start and floor, if they haven't been.
const REGISTER: Duration = Duration::from_secs(5);

/// Why a peer's answer doesn't count.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unheard {
    /// It is of another cluster or history.
    #[error("{0}")]
    Refused(String),
    /// It is somebody else, or knows nothing.
    #[error("{0}")]
    Other(String),
}

/// The other nodes by name: peer address. One disk speaks for a name, whichever it is by now.
pub(super) type Others = BTreeMap<String, String>;

impl Node {
    pub(super) fn others(&self) -> Others {
        let meta = self.dir.meta();
        let configured = |name: &str| self.config.peers.iter().find(|peer| peer.name.as_str() == name);
        let others = meta.members.iter().filter(|member| member.node != self.config.name.as_str());
        others
            .map(|member| {
                let address = configured(&member.node).map_or(&*member.peer_address, |peer| peer.peer_address.as_str());
                (member.node.clone(), address.to_owned())
            })
            .collect()
    }

    /// The voters by name. During a replacement two disks of one name are voters; the node counts once.
    fn voter_names(&self) -> BTreeSet<String> {
        let meta = self.dir.meta();
        let voters = meta.members.iter().filter(|member| member.voter);
        voters.map(|member| member.node.clone()).chain([self.config.name.to_string()]).collect()
    }

    /// Ends when a majority of the voters, this one counted, has said that it knows no newer copy; all of them if they answer soon.
    pub(super) async fn check_disk(self: &Arc<Self>) -> Result<(), StartError> {
        let (others, voters) = (self.others(), self.voter_names());
        let began = Instant::now();
        let mut answered: BTreeMap<String, HelloAnswer> = BTreeMap::new();
        let mut told_before = String::new();
        loop {
            let mut told = String::new();
            let unanswered = others.iter().filter(|(name, _)| !answered.contains_key(*name));
            for answer in self.hello_round(unanswered).await {
                match answer {
                    Ok(answer) => {
                        self.judge(&answer)?;
                        answered.insert(answer.node.clone(), answer);
                    }
                    Err(why) => told = format!("; {why}"),
                }
            }
            if told != told_before {
                tracing::warn!("can't start yet{told}");
                told_before.clone_from(&told);
            }
            // Said by all that answered: a single peer's log may hold a change that was never committed.
            let replaced = answered.values().filter(|answer| answer.replaced).count();
            if replaced > 0 && replaced == answered.len() && replaced >= voters.len() / 2 {
                return Err(StartError::Replaced { node: self.config.name.to_string(), disk: self.disk });
            }
            let agreeing = 1 + answered.keys().filter(|name| voters.contains(*name)).count();
            let enough = agreeing > voters.len() / 2 && began.elapsed() >= GRACE;
            if enough || answered.len() == others.len() {
                break;
            }
            self.stage.send_replace(Stage::Checking(format!(
                "asking the voters whether this disk is the newest copy of itself: {agreeing} of {} agree, {} are needed{told}. {IF_LOST}",
                voters.len(),
                voters.len() / 2 + 1
            )));
            tokio::time::sleep(ROUND).await;
        }
        let own = self.last_log_index();
        let peers = answered.into_values().map(|answer| (answer.node, answer.last_log_index));
        self.restarted.send_modify(|restart| restart.peers = peers.collect());
        let clocks: Vec<String> =
            self.restarted.borrow().peers.iter().map(|(node, clock)| format!("{node} {clock}")).collect();
        tracing::info!(own = own.0, peers = clocks.join(", "), "the logical clocks, by last log index");
        Ok(())
    }

    /// Tells every member of this start and, as the log grows, of its floor, so that each would know an old copy.
    pub(super) async fn register(self: Arc<Self>, running: Arc<Running>) {
        let mut told: BTreeMap<String, LogIndex> = BTreeMap::new();
        loop {
            let floor = self.floor(&running);
            let others = self.others();
            // Who has lost the primary may have been left behind by a recovery, and hears of it so.
            let lost = !*self.serving.borrow();
            let untold = others.iter().filter(|(name, _)| lost || told.get(*name).is_none_or(|told| *told < floor));
            let mut refused = None;
            for answer in self.hello_round(untold).await {
                match answer {
                    Ok(answer) => {
                        if let Err(error) = self.judge(&answer) {
                            return self.fail(error);
                        }
                        told.insert(answer.node, floor);
                    }
                    Err(Unheard::Refused(why)) => refused = Some(why),
                    Err(Unheard::Other(_)) => {}
                }
            }
            self.note_refusal(refused);
            tokio::time::sleep(REGISTER).await;
        }
    }

    fn note_refusal(&self, refused: Option<String>) {
        self.refused.send_if_modified(|before| {
            let changed = *before != refused;
            if changed && let Some(why) = &refused {
                tracing::warn!("{why}");
            }
            *before = refused;
            changed
        });
    }

    /// What this disk can never be without again: durable here, and committed, so that no new primary truncates it.
    fn floor(&self, running: &Running) -> LogIndex {
        let durable = self.log.ends().durable.map_or(LogIndex(0), |at| at.index);
        durable.min(running.strategy.progress().committed.unwrap_or_default())
    }

    pub(super) fn last_log_index(&self) -> LogIndex {
        self.log.ends().last.map_or(LogIndex(0), |at| at.index)
    }

    /// Says hello to some. An error is the answer of somebody else than the one asked, or a refusal; silence is left out.
    pub(super) async fn hello_round(
        &self,
        others: impl Iterator<Item = (&String, &String)>,
    ) -> Vec<Result<HelloAnswer, Unheard>> {
        let cluster = self.dir.meta().cluster;
        let floor = self.running().map_or(LogIndex(0), |running| self.floor(&running));
        let hello = Hello {
            cluster,
            node: self.config.name.to_string(),
            disk: self.disk,
            incarnation: self.incarnation,
            start: self.start,
            last_log_index: self.last_log_index(),
            floor,
        };
        let calls: FuturesUnordered<_> = others
            .map(|(name, address)| {
                let (hello, channel) = (&hello, self.peers.channel(address));
                async move {
                    match channel.ok()?.hello(hello, ANSWER_MAX).await {
                        Ok(answer) if answer.node != *name => {
                            Some(Err(Unheard::Other(format!("{address} is node {}, not {name}", answer.node))))
                        }
                        // A blank disk under that name remembers nothing, and can't speak for it.
                        Ok(answer) if answer.cluster != cluster => {
                            Some(Err(Unheard::Other(format!("{name} at {address} is blank: its disk is new"))))
                        }
                        Ok(answer) => Some(Ok(answer)),
                        Err(TransportError::Refused(why)) => {
                            Some(Err(Unheard::Refused(format!("{address} refuses: {why}"))))
                        }
                        Err(error) => {
                            tracing::debug!(%error, address, "no answer to hello");
                            None
                        }
                    }
                }
            })
            .collect();
        calls.filter_map(std::future::ready).collect().await
    }

    fn judge(&self, answer: &HelloAnswer) -> Result<(), StartError> {
        let own = self.last_log_index();
        let regressed =
            |what: String| StartError::Regressed { dir: self.dir.path().to_owned(), peer: answer.node.clone(), what };
        if answer.known_incarnation >= self.incarnation {
            return Err(regressed(format!(
                "has met start {} of this disk, and this is only start {}",
                answer.known_incarnation, self.incarnation
            )));
        }
        if answer.known_durable > own {
            return Err(regressed(format!(
                "knows that this disk held the log up to {}, and it ends at {own}",
                answer.known_durable
            )));
        }
        Ok(())
    }
}
