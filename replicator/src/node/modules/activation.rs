//! Activating a module: when it may be proposed, and what came of it.
//!
//! The primary proposes nothing before the module is durable, checked and compiled at every member of the chain, or at a majority of the voters
//! (safety rule 21): so no crash can leave an activation in the log whose module is lost. It waits a little for the others too, as whoever lacks the
//! module stands still at the entry until it has fetched it. Whether the module takes over is decided at the entry, alike on every replica.
//!
//! The order names the module that must be active until then. So an order that is repeated after a lost answer is carried out once, and its repeat is
//! told from where on the module runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_machine::{ActivationRefusal, Command, ModuleSpan, Outcome};
use replicator_types::{Digest, DiskId, LogIndex, ModuleHash};

use super::spreading::{at_replica, description_of};
use crate::{
    config::Mode,
    node::{Node, NodeError, Running},
    replication::Role,
    transport::{Envelope, Prepared, PreparedNode, Readiness},
};

/// How often replicas are asked whether they are ready.
const POLL: Duration = Duration::from_millis(50);
/// How long those are waited for without which the module may be activated too.
const OTHERS_MAX: Duration = Duration::from_secs(2);
/// How long the primary may take at once; then it is asked again.
const PREPARE_MAX: Duration = Duration::from_secs(5);
/// How long replicas may take to find a module among themselves.
const UNKNOWN_MAX: Duration = Duration::from_millis(700);
const RETRY: Duration = Duration::from_millis(100);

/// An activation that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// The module that runs.
    pub module: ModuleHash,
    /// Its own description.
    pub description: String,
    /// From which index on it runs.
    pub since: LogIndex,
    /// The module that ran before; None: it has run from the beginning.
    pub previous: Option<ModuleHash>,
    /// Whether it was active already, so that the call did nothing.
    pub already: bool,
    /// For how long the switch held up this node's machine, and the running digest after it; None: it happened earlier.
    pub switched: Option<(Duration, Digest)>,
    /// Replicas that didn't have it yet.
    pub lacking: Vec<String>,
}

/// Why a module was not activated.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ActivateError {
    /// This node can't tell, or can't serve.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It isn't ready where it must be.
    #[error("{0}")]
    NotReady(String),
    /// No replica that answers has it.
    #[error("no replica that answers has the module {0}: upload it first. Nothing was done")]
    Unknown(ModuleHash),
    /// Another module is active than the order expects.
    #[error(
        "module {active} has been active since log index {since}, and not {expected} as was expected: nothing was done. See what runs now (`replicator \
         module list`), and decide again"
    )]
    NotExpected {
        /// The active one.
        active: ModuleHash,
        /// Since when.
        since: LogIndex,
        /// The expected one.
        expected: ModuleHash,
    },
    /// It doesn't take over; the active one goes on.
    #[error("the module was not activated: {reason}. The active module goes on as if nothing had been")]
    Refused {
        /// Where that was decided.
        index: LogIndex,
        /// Why.
        reason: String,
    },
    /// There is none to go back to.
    #[error("no module ran before the active one, {0}: there is nothing to roll back to")]
    NoPrevious(ModuleHash),
}

impl Node {
    /// Makes the application go on with another module. `expected`: the one that must be active until then; None: whichever is now.
    ///
    /// # Errors
    /// [`NodeError::OutcomeUnknown`]: ask again with the same `expected`. After any other error nothing has changed.
    pub async fn activate_module(
        self: &Arc<Self>,
        module: ModuleHash,
        expected: Option<ModuleHash>,
        deadline: Instant,
    ) -> Result<Activation, ActivateError> {
        let history = self.modules_now(deadline).await?;
        let active = active(&history)?;
        if active.module == module {
            return Ok(self.active_already(&history));
        }
        let expected = expected.unwrap_or(active.module);
        if expected != active.module {
            return Err(not_expected(active, expected));
        }
        let prepared = self.prepared_module(module, deadline).await?;
        let done = self.submit(Command::Activate { module, expected }, deadline).await?;
        let index = done.position.index;
        match done.outcome {
            Outcome::Activated { .. } => {}
            Outcome::ActivationRefused(refusal) => return self.refused(index, refusal),
            Outcome::Refused(refusal) => return Err(NodeError::from(refusal).into()),
            other => unreachable!("an activation became {other:?}"),
        }
        let paused = self.applier.state.borrow().last_switch.filter(|(at, _)| *at == index).map(|(_, paused)| paused);
        Ok(Activation {
            module,
            description: description_of(&prepared.nodes),
            since: index,
            previous: Some(expected),
            already: false,
            switched: Some((paused.unwrap_or_default(), done.digest)),
            lacking: prepared.nodes.iter().filter(|node| !is_ready(node)).map(|node| node.node.clone()).collect(),
        })
    }

    /// Activates the module that ran before the active one. `expected`: the one that is given up; None: whichever is active now.
    ///
    /// # Errors
    /// As [`Self::activate_module`]; [`ActivateError::NoPrevious`] if only one module has ever run.
    pub async fn rollback_module(
        self: &Arc<Self>,
        expected: Option<ModuleHash>,
        deadline: Instant,
    ) -> Result<Activation, ActivateError> {
        let history = self.modules_now(deadline).await?;
        let active = active(&history)?;
        let previous = history.len().checked_sub(2).map(|before| history[before].module);
        let previous = previous.ok_or(ActivateError::NoPrevious(active.module))?;
        match expected {
            Some(expected) if expected != active.module => {
                // The last activation gave up what this call is to give up: its own, or another's with the same wish.
                if expected == previous {
                    Ok(self.active_already(&history))
                } else {
                    Err(not_expected(active, expected))
                }
            }
            _ => self.activate_module(previous, Some(active.module), deadline).await,
        }
    }

    /// Which modules ran, as of all that was acknowledged before the call.
    pub(super) async fn modules_now(&self, deadline: Instant) -> Result<Arc<[ModuleSpan]>, NodeError> {
        self.running()?;
        self.check_halted()?;
        self.wait_applied(self.read_index(deadline).await?, deadline).await?;
        Ok(self.applier.state.borrow().modules.clone())
    }

    fn active_already(&self, history: &[ModuleSpan]) -> Activation {
        let [.., active] = history else { unreachable!("the caller has found the active module") };
        Activation {
            module: active.module,
            description: self.applier.state.borrow().module.clone(),
            since: active.from.index,
            previous: history.len().checked_sub(2).map(|before| history[before].module),
            already: true,
            switched: None,
            lacking: Vec::new(),
        }
    }

    /// What an entry that did nothing means: another one may have been there before it, perhaps of the same order.
    fn refused(&self, index: LogIndex, refusal: ActivationRefusal) -> Result<Activation, ActivateError> {
        let history = self.applier.state.borrow().modules.clone();
        match refusal {
            ActivationRefusal::AlreadyActive { module } if active(&history)?.module == module => {
                Ok(self.active_already(&history))
            }
            ActivationRefusal::Unexpected { expected, .. } => Err(not_expected(active(&history)?, expected)),
            refusal => Err(ActivateError::Refused { index, reason: refusal.to_string() }),
        }
    }

    /// Has the primary see to it that the module is ready.
    async fn prepared_module(
        self: &Arc<Self>,
        module: ModuleHash,
        deadline: Instant,
    ) -> Result<Prepared, ActivateError> {
        // Something is left for the activation itself.
        let until = deadline - deadline.saturating_duration_since(Instant::now()) / 3;
        let mut known = None;
        loop {
            let wait = until.saturating_duration_since(Instant::now()).min(PREPARE_MAX);
            if let Some(prepared) = self.ask_primary(module, wait).await {
                if prepared.ready {
                    return Ok(prepared);
                }
                if refusal(&prepared.nodes).is_some() || nobody_has(&prepared.nodes) {
                    return Err(not_ready(module, &prepared.nodes));
                }
                known = Some(prepared);
            }
            if Instant::now() + RETRY >= until {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        match known {
            Some(prepared) => Err(not_ready(module, &prepared.nodes)),
            None => Err(NodeError::NotReady(self.why_no_primary()).into()),
        }
    }

    /// None: no primary answers.
    async fn ask_primary(self: &Arc<Self>, module: ModuleHash, wait: Duration) -> Option<Prepared> {
        let running = self.running().ok()?;
        let view = running.strategy.view().borrow().clone();
        let primary = view.primary()?;
        if primary.disk == self.disk {
            return self.prepare_module(&running, module, Instant::now() + wait).await;
        }
        let channel = self.peers.channel(&primary.peer_address).ok()?;
        let envelope = Envelope { to: primary.disk, ..running.envelope };
        channel.prepare_module(envelope, module, wait).await.ok()?
    }

    /// [`Self::prepare_module`] where files and peers may be waited for.
    pub(crate) async fn prepare_for_peer(
        self: &Arc<Self>,
        running: Arc<Running>,
        module: ModuleHash,
        until: Instant,
    ) -> Option<Prepared> {
        let node = self.clone();
        let prepared = self.shelf.runtime.spawn(async move { node.prepare_module(&running, module, until).await });
        prepared.await.ok()?
    }

    /// Makes the replicas get and check a module, and waits until it is ready where it must be, and a little for the others. None: this node isn't
    /// the primary.
    async fn prepare_module(
        self: &Arc<Self>,
        running: &Running,
        module: ModuleHash,
        until: Instant,
    ) -> Option<Prepared> {
        let began = Instant::now();
        loop {
            let view = running.strategy.view().borrow().clone();
            if view.role != Role::Primary {
                return None;
            }
            let voters: Vec<DiskId> = match running.strategy.chain() {
                Some(chain) => chain.members.into_iter().map(|(disk, _)| disk).collect(),
                None => view.members.iter().filter(|member| member.voter).map(|member| member.disk).collect(),
            };
            let holders = self.ask_replicas(running, &[module], false).await;
            let nodes = holders
                .iter()
                .map(|(member, held)| at_replica(module, member, held.as_deref(), voters.contains(&member.disk)));
            let nodes: Vec<PreparedNode> = nodes.collect();
            let ready = nodes.iter().filter(|node| node.required && is_ready(node)).count();
            let ready = match self.config.mode {
                Mode::Chain => !voters.is_empty() && ready == voters.len(),
                Mode::Majority => ready > voters.len() / 2,
            };
            let refused = refusal(&nodes).is_some();
            let others_come = nodes.iter().any(|node| node.held.is_some() && !is_ready(node));
            let unknown = nobody_has(&nodes) && began.elapsed() > UNKNOWN_MAX;
            let waits = !ready || (others_come && began.elapsed() < OTHERS_MAX);
            if refused || unknown || !waits || Instant::now() + POLL >= until {
                return Some(Prepared { ready: ready && !refused, nodes });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn active(history: &[ModuleSpan]) -> Result<ModuleSpan, NodeError> {
    history
        .last()
        .copied()
        .ok_or_else(|| NodeError::NotReady("the cluster has not begun: it runs no module yet".into()))
}

fn not_expected(active: ModuleSpan, expected: ModuleHash) -> ActivateError {
    ActivateError::NotExpected { active: active.module, since: active.from.index, expected }
}

fn is_ready(node: &PreparedNode) -> bool {
    node.held.as_ref().is_some_and(|held| matches!(held.readiness, Readiness::Ready { .. }))
}

/// Who can't run it, and why.
fn refusal(nodes: &[PreparedNode]) -> Option<(&str, &str)> {
    nodes.iter().find_map(|node| match node.held.as_ref().map(|held| &held.readiness) {
        Some(Readiness::Refused(why)) => Some((node.node.as_str(), why.as_str())),
        _ => None,
    })
}

fn nobody_has(nodes: &[PreparedNode]) -> bool {
    let mut held = nodes.iter().map(|node| node.held.as_ref().map(|held| &held.readiness));
    held.all(|readiness| matches!(readiness, None | Some(Readiness::Missing(_))))
}

fn not_ready(module: ModuleHash, nodes: &[PreparedNode]) -> ActivateError {
    if let Some((node, why)) = refusal(nodes) {
        return ActivateError::NotReady(format!("{node} can't run the module {module}: {why}. Nothing was done"));
    }
    if nobody_has(nodes) {
        return ActivateError::Unknown(module);
    }
    let lacking = nodes.iter().filter(|node| node.required && !is_ready(node));
    let lacking: Vec<String> = lacking.map(|node| format!("{} {}", node.node, state_of(node))).collect();
    ActivateError::NotReady(format!(
        "the module {module} isn't ready at enough replicas: {}. Nothing was done; `replicator module list` shows how it gets on",
        lacking.join(", ")
    ))
}

fn state_of(node: &PreparedNode) -> String {
    match node.held.as_ref().map(|held| &held.readiness) {
        None => "doesn't answer".into(),
        Some(Readiness::Missing(why)) if why.is_empty() => "lacks it".into(),
        Some(Readiness::Missing(why)) => format!("lacks it ({why})"),
        Some(Readiness::Checking) => "is checking it".into(),
        Some(Readiness::Refused(why)) => format!("refuses it ({why})"),
        Some(Readiness::Ready { .. }) => "is ready".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::HeldModule;

    const MODULE: ModuleHash = ModuleHash([7; 32]);

    fn node(name: &str, readiness: Option<Readiness>) -> PreparedNode {
        let held = readiness.map(|readiness| HeldModule { hash: MODULE, bytes: 1, readiness });
        PreparedNode { node: name.into(), held, required: true }
    }

    fn ready() -> Option<Readiness> {
        Some(Readiness::Ready { description: "app=a".into() })
    }

    #[test]
    fn reasons_name_who_lacks_what() {
        let words = |nodes: &[PreparedNode]| not_ready(MODULE, nodes).to_string();
        let missing = || Some(Readiness::Missing(String::new()));
        assert!(words(&[node("n1", missing()), node("n2", None)]).contains("upload it first"));
        let told = words(&[node("n1", ready()), node("n2", None), node("n3", Some(Readiness::Checking))]);
        assert!(told.contains("n2 doesn't answer, n3 is checking it") && !told.contains("n1"), "{told}");
        let told = words(&[node("n1", ready()), node("n2", Some(Readiness::Refused("too long".into())))]);
        assert!(told.contains("n2 can't run") && told.contains("too long"), "{told}");
    }
}
