//! Whether this disk is the newest copy of itself: asked of the voters before anything else is answered (safety rule 2).
//!
//! Every disk counts its starts and every peer remembers the count. A peer that knows a count as high as ours has met a newer
//! copy of this folder: votes and acknowledgements given since are missing from this one, so it must not vote again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use replicator_storage::Log;
use replicator_types::{DiskId, LogIndex};

use super::{Node, Stage, startup::StartError};
use crate::transport::{Hello, HelloAnswer};

/// How long a start waits for all voters; then a majority is enough.
const GRACE: Duration = Duration::from_secs(1);
const ROUND: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_millis(900);

/// The other members to ask: disk, peer address, whether it votes.
type Others = BTreeMap<DiskId, (String, bool)>;

impl Node {
    fn others(&self) -> Others {
        let meta = self.dir.meta();
        let configured: BTreeMap<&str, &str> =
            self.config.peers.iter().map(|peer| (peer.name.as_str(), peer.peer_address.as_str())).collect();
        let others = meta.members.iter().filter(|member| member.disk != self.disk);
        others
            .map(|member| {
                let address = configured.get(member.node.as_str()).copied().unwrap_or(&member.peer_address);
                (member.disk, (address.to_owned(), member.voter))
            })
            .collect()
    }

    /// Ends when a majority of the voters, this disk counted, has said that it knows no newer copy; all of them if they answer
    /// soon. The rest is asked in the background.
    pub(super) async fn check_disk(self: &Arc<Self>) -> Result<(), StartError> {
        let others = self.others();
        let voters = others.values().filter(|(_, voter)| *voter).count() + 1;
        let began = Instant::now();
        let mut answered: BTreeMap<DiskId, HelloAnswer> = BTreeMap::new();
        loop {
            for (disk, answer) in self.hello_round(&others, &answered).await {
                self.judge(&answer)?;
                answered.insert(disk, answer);
            }
            // Said by all that answered: a single peer's log may hold a change that was never committed.
            let replaced = answered.values().filter(|answer| answer.replaced).count();
            if replaced > 0 && replaced == answered.len() && replaced >= voters / 2 {
                return Err(StartError::Replaced { node: self.config.name.to_string(), disk: self.disk });
            }
            let agreeing = 1 + answered.keys().filter(|disk| others[disk].1).count();
            let enough = agreeing > voters / 2 && began.elapsed() >= GRACE;
            if enough || answered.len() == others.len() {
                break;
            }
            self.stage.send_replace(Stage::Checking(format!(
                "asking the voters whether this disk is the newest copy of itself: {agreeing} of {voters} agree, {} are needed",
                voters / 2 + 1
            )));
            tokio::time::sleep(ROUND).await;
        }
        let own = self.log.ends().last.map_or(LogIndex(0), |at| at.index);
        let clocks: Vec<String> =
            answered.values().map(|answer| format!("{} {}", answer.node, answer.last_log_index)).collect();
        tracing::info!(own = own.0, peers = clocks.join(", "), "the logical clocks, by last log index");
        if answered.len() < others.len() {
            let node = self.clone();
            tokio::spawn(async move { node.keep_asking(others, answered).await });
        }
        Ok(())
    }

    /// Registers this start with those that were not there, so that each of them would know an old copy too.
    async fn keep_asking(&self, others: Others, mut answered: BTreeMap<DiskId, HelloAnswer>) {
        while answered.len() < others.len() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (disk, answer) in self.hello_round(&others, &answered).await {
                if let Err(error) = self.judge(&answer) {
                    return self.fail(error.to_string());
                }
                answered.insert(disk, answer);
            }
        }
    }

    async fn hello_round(
        &self,
        others: &Others,
        answered: &BTreeMap<DiskId, HelloAnswer>,
    ) -> Vec<(DiskId, HelloAnswer)> {
        let hello = Hello {
            cluster: self.dir.meta().cluster,
            node: self.config.name.to_string(),
            disk: self.disk,
            incarnation: self.incarnation,
            last_log_index: self.log.ends().last.map_or(LogIndex(0), |at| at.index),
        };
        let unanswered = others.iter().filter(|(disk, _)| !answered.contains_key(disk));
        let calls: FuturesUnordered<_> = unanswered
            .map(|(disk, (address, _))| {
                let (hello, channel) = (&hello, self.peers.channel(address));
                async move {
                    let answer = channel.ok()?.hello(hello, ANSWER_MAX).await;
                    // An address may be another disk's by now; its answer is none of the one asked.
                    answer
                        .inspect_err(|error| tracing::debug!(%error, address, "no answer to hello"))
                        .ok()
                        .filter(|answer| answer.disk == *disk)
                        .map(|answer| (*disk, answer))
                }
            })
            .collect();
        calls.filter_map(std::future::ready).collect().await
    }

    fn judge(&self, answer: &HelloAnswer) -> Result<(), StartError> {
        let own = self.log.ends().last.map_or(LogIndex(0), |at| at.index);
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
