//! Modules on their way to the other replicas, and what all of them have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use replicator_types::{DiskId, LogIndex, ModuleHash};
use tokio::sync::mpsc;

use crate::{
    node::{AppliedState, Node, NodeError, Running},
    replication::Member,
    transport::{Envelope, HeldModule, PreparedNode, Readiness},
};

/// How long a replica may take to say what it has.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a list waits for checks that it has begun.
const CHECKS_MAX: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(300);
/// How long a replica that doesn't answer is told of a module again and again. Later it hears of it when the module is activated.
const SPREAD_MAX: Duration = Duration::from_secs(120);
/// Modules that one message may want.
const WANTED_MAX: usize = 64;

/// A module and where it is.
#[derive(Debug, Clone)]
pub struct ListedModule {
    /// Which.
    pub hash: ModuleHash,
    /// Its length; 0: nobody has it.
    pub bytes: u64,
    /// Its own description; empty: nobody is ready to run it.
    pub description: String,
    /// Whether it runs now.
    pub active: bool,
    /// Whether it ran before the active one.
    pub previous: bool,
    /// From which indexes on it ran.
    pub since: Vec<LogIndex>,
    /// How it is at each replica, by name.
    pub nodes: Vec<PreparedNode>,
}

/// A replica and what it has; None: it doesn't answer.
pub(super) type Holder = (Member, Option<Vec<HeldModule>>);

impl Node {
    /// Says what is here of these modules, and of all others if `all`, and begins to fetch and check those that are wanted.
    pub(crate) async fn on_modules(self: &Arc<Self>, wanted: Vec<ModuleHash>, all: bool) -> Vec<HeldModule> {
        let node = self.clone();
        // Files are not for the group's thread, on which this may be called.
        let looked = self.shelf.runtime.spawn_blocking(move || {
            let mut held = if all { node.shelf.look_at_all().unwrap_or_default() } else { Vec::new() };
            for hash in wanted.into_iter().take(WANTED_MAX) {
                node.shelf.want(hash);
                let module = node.shelf.look(hash, || node.fetches.why_missing(hash));
                if matches!(module.readiness, Readiness::Missing(_)) {
                    node.begin_fetch(hash);
                }
                held.retain(|held| held.hash != hash);
                held.push(module);
            }
            held
        });
        looked.await.unwrap_or_default()
    }

    /// Asks every replica, this one too.
    pub(super) async fn ask_replicas(
        self: &Arc<Self>,
        running: &Running,
        wanted: &[ModuleHash],
        all: bool,
    ) -> Vec<Holder> {
        let members = running.strategy.view().borrow().members.clone();
        let replicas = members.iter().filter(|member| !member.witness).cloned();
        join_all(replicas.map(|member| self.ask_replica(running.envelope, member, wanted, all))).await
    }

    async fn ask_replica(self: &Arc<Self>, from: Envelope, member: Member, wanted: &[ModuleHash], all: bool) -> Holder {
        let held = if member.disk == self.disk {
            Some(self.on_modules(wanted.to_vec(), all).await)
        } else {
            let asked = async {
                let channel = self.peers.channel(&member.peer_address)?;
                channel.modules(Envelope { to: member.disk, ..from }, wanted, all, ANSWER_MAX).await
            };
            asked.await.inspect_err(|error| tracing::debug!(%error, peer = member.node, "no word of modules")).ok()
        };
        (member, held)
    }

    /// What all replicas have.
    ///
    /// # Errors
    /// If this node takes no part, or holds no application data.
    pub async fn list_modules(self: &Arc<Self>) -> Result<Vec<ListedModule>, NodeError> {
        let running = self.running()?;
        self.check_halted()?;
        let (mut holders, mut waited) = (self.ask_replicas(&running, &[], true).await, false);
        while !waited && is_checked_by_somebody(&holders) {
            waited = true;
            self.shelf.settled(CHECKS_MAX).await;
            holders = self.ask_replicas(&running, &[], true).await;
        }
        holders.sort_by(|a, b| a.0.node.cmp(&b.0.node));
        let applied = self.applier.state.borrow().clone();
        Ok(listed(&applied, &holders))
    }

    /// Tells the other replicas of modules that were uploaded here, and gets those that this one may need to run: the active one and the one before.
    pub(in crate::node) async fn keep_modules(self: Arc<Self>, mut uploads: mpsc::UnboundedReceiver<ModuleHash>) {
        let mut state = self.applied();
        let mut known = 0;
        let mut spreading: BTreeMap<ModuleHash, Spread> = BTreeMap::new();
        let mut lacking = false;
        loop {
            tokio::select! {
                uploaded = uploads.recv() => match uploaded {
                    Some(hash) => drop(spreading.insert(hash, Spread::default())),
                    None => return,
                },
                changed = async { state.wait_for(|state| state.modules_changed != known).await.map(|state| state.modules_changed) } => match changed {
                    Ok(changed) => known = changed,
                    Err(_) => return,
                },
                () = tokio::time::sleep(RETRY), if lacking || !spreading.is_empty() => {}
            }
            let needed = state.borrow().runnable();
            let held = self.on_modules(needed, false).await;
            lacking = held.iter().any(|held| matches!(held.readiness, Readiness::Missing(_)));
            if let Ok(running) = self.running() {
                self.spread(&running, &mut spreading).await;
            }
        }
    }

    async fn spread(self: &Arc<Self>, running: &Running, spreading: &mut BTreeMap<ModuleHash, Spread>) {
        let wanted: Vec<ModuleHash> = spreading.keys().copied().collect();
        if wanted.is_empty() {
            return;
        }
        let holders = self.ask_replicas(running, &wanted, false).await;
        for (member, held) in &holders {
            for held in held.iter().flatten().filter(|held| !matches!(held.readiness, Readiness::Missing(_))) {
                if let Some(spread) = spreading.get_mut(&held.hash) {
                    spread.done.insert(member.disk);
                }
            }
        }
        let everywhere = |done: &BTreeSet<DiskId>| holders.iter().all(|(member, _)| done.contains(&member.disk));
        spreading.retain(|_, spread| {
            spread.rounds += 1;
            !everywhere(&spread.done) && RETRY * spread.rounds < SPREAD_MAX
        });
    }
}

/// A module that is being spread.
#[derive(Default)]
struct Spread {
    /// Who has it.
    done: BTreeSet<DiskId>,
    rounds: u32,
}

fn is_checked_by_somebody(holders: &[Holder]) -> bool {
    let mut held = holders.iter().filter_map(|(_, held)| held.as_ref()).flatten();
    held.any(|held| held.readiness == Readiness::Checking)
}

/// The active module first, then those that ran, the last one first, then the others by hash.
fn listed(applied: &AppliedState, holders: &[Holder]) -> Vec<ListedModule> {
    let history = &applied.modules;
    let mut hashes: Vec<ModuleHash> = Vec::new();
    let others: BTreeSet<ModuleHash> =
        holders.iter().filter_map(|(_, held)| held.as_ref()).flatten().map(|held| held.hash).collect();
    for hash in history.iter().rev().map(|span| span.module).chain(others) {
        if !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }
    let one = |hash: ModuleHash| {
        let nodes: Vec<PreparedNode> =
            holders.iter().map(|(member, held)| at_replica(hash, member, held.as_deref(), false)).collect();
        let held = || nodes.iter().filter_map(|node| node.held.as_ref());
        let bytes = held().map(|held| held.bytes).max().unwrap_or_default();
        let description = description_of(&nodes);
        ListedModule {
            hash,
            bytes,
            description,
            active: applied.active_module() == Some(hash),
            previous: applied.previous_module() == Some(hash),
            since: history.iter().filter(|span| span.module == hash).map(|span| span.from.index).collect(),
            nodes,
        }
    };
    hashes.into_iter().map(one).collect()
}

/// A module's own description, from a replica that is ready to run it; empty if none is.
pub(super) fn description_of(nodes: &[PreparedNode]) -> String {
    let held = nodes.iter().filter_map(|node| node.held.as_ref());
    let ready = held.filter_map(|held| match &held.readiness {
        Readiness::Ready { description } => Some(description.clone()),
        _ => None,
    });
    ready.max().unwrap_or_default()
}

/// How a module is at a replica that said what it has, or didn't answer.
pub(super) fn at_replica(
    hash: ModuleHash,
    member: &Member,
    held: Option<&[HeldModule]>,
    required: bool,
) -> PreparedNode {
    let missing = || HeldModule { hash, bytes: 0, readiness: Readiness::Missing(String::new()) };
    let held = held.map(|held| held.iter().find(|held| held.hash == hash).cloned().unwrap_or_else(missing));
    PreparedNode { node: member.node.clone(), held, required }
}
