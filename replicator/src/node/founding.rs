//! How a cluster begins: what `replicator init` decides, checked, and its genesis entry.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use replicator_machine::{Command, Entry, Genesis, Limits, Machine, Outcome, engine_fingerprint, with_apply_stack};
use replicator_types::{ClusterId, Lineage, LogIndex, ModuleHash, Position, Seed};
use tokio::sync::oneshot;

use super::{Node, Running, modules::Modules};
use crate::{
    config::{Mode, NODES_MAX},
    replication::Member,
};

/// How long the new group may take to elect a primary and commit the genesis entry.
const FOUND_MAX: Duration = Duration::from_secs(30);

/// What `replicator init` decides.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its voters, the receiver among them.
    pub members: Vec<Member>,
    /// Its module.
    pub module: ModuleHash,
    /// For the module.
    pub app_config: Bytes,
    /// For ever.
    pub limits: Limits,
}

/// A founding, and where its genesis entry's index goes.
pub(super) type FoundingCall = (Founding, oneshot::Sender<Result<LogIndex, String>>);

impl Node {
    /// Checks what can't be taken back: a genesis entry that the machine refuses would halt every replica for ever.
    pub(super) async fn check_founding(&self, founding: &Founding) -> Result<(), String> {
        if self.config.witness {
            return Err(format!(
                "{} is a witness, and has no log to begin the history in; ask a replica",
                self.config.name
            ));
        }
        if !founding.members.iter().any(|member| member.disk == self.disk) {
            return Err(format!("{} (disk {}) is not among the founding members", self.config.name, self.disk));
        }
        let names: BTreeSet<&str> = founding.members.iter().map(|member| member.node.as_str()).collect();
        let peers = self.config.peers.iter().map(|peer| peer.name.as_str());
        let configured: BTreeSet<&str> = peers.chain([self.config.name.as_str()]).collect();
        if names != configured {
            let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "{} is configured with the nodes {}, and `init` names {}; give --endpoints of all of them, each once",
                self.config.name,
                list(&configured),
                list(&names)
            ));
        }
        let replicas = founding.members.iter().filter(|member| !member.witness).count();
        match (self.config.mode, founding.members.len()) {
            (Mode::Majority, n) if replicas < n => return Err("a majority cluster has no witnesses".into()),
            (Mode::Majority, n) if !matches!(n, 1 | 3 | 5) => {
                return Err(format!("{n} members: a majority cluster has 1, 3 or 5"));
            }
            (Mode::Chain, n) if replicas == 0 || n > NODES_MAX => {
                return Err(format!(
                    "{replicas} replicas of {n} nodes: a chain has at least 1 replica, and at most {NODES_MAX} nodes"
                ));
            }
            _ => {}
        }
        let least = self.config.chain.least_length;
        if self.config.mode == Mode::Chain && usize::try_from(least).map_or(true, |least| least > replicas) {
            return Err(format!(
                "chain.least_length = {least}, and there are {replicas} replicas: it would never take a write"
            ));
        }
        let entry = self.genesis_entry(founding, founding.cluster, Lineage(0));
        let modules = Modules(self.modules.clone());
        let tried = tokio::task::spawn_blocking(move || {
            with_apply_stack(|| Machine::new(Arc::new(modules)).apply(Position::new(1, 1), &entry).map(drop))
        });
        let tried = tried.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        tried.map_err(|halt| halt.to_string())
    }

    fn genesis_entry(&self, founding: &Founding, cluster: ClusterId, lineage: Lineage) -> Entry {
        let genesis = Genesis {
            cluster,
            lineage,
            module: founding.module,
            app_config: founding.app_config.clone(),
            limits: founding.limits.clone(),
            engine: engine_fingerprint(),
        };
        let command = Command::Genesis(Box::new(genesis));
        Entry { time_us: self.seams.clock.now_us(), seed: Seed(self.seams.random()), command }
    }

    /// Gets the genesis entry into the log, through whichever primary the new group elects.
    pub(super) async fn begin_history(&self, running: &Running, founding: Founding) -> Result<LogIndex, String> {
        let entry = self.genesis_entry(&founding, running.envelope.cluster, running.envelope.lineage);
        let deadline = Self::deadline(FOUND_MAX);
        match self.submit(entry.command, deadline).await {
            Ok(done) if done.outcome == Outcome::Genesis => Ok(done.position.index),
            Ok(done) => Err(format!("the genesis entry became {:?}", done.outcome)),
            Err(error) => Err(error.to_string()),
        }
    }
}
