//! Engine upgrades: a barrier in the log, after which programs of another engine go on (safety rule 19).
//!
//! What a module computes may depend on the engine, fuel above all. So all replicas change engines at one index: the old programs apply the barrier, take an
//! image there and stand still; the new ones go on from that image. An old program that is started again finds an image of an engine that isn't its own, and
//! says so.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_machine::{Command, Outcome};
use replicator_types::LogIndex;

use super::{Node, NodeError, Running, applier::Work};

const RETRY: Duration = Duration::from_millis(200);

/// Why no barrier was put up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpgradeError {
    /// This node can't tell, or can't serve.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The order makes no sense.
    #[error("{0}")]
    Bad(String),
    /// Another engine is in force.
    #[error("the engine in force is {0:?}, and not the one that was named: nothing was done")]
    Refused(String),
}

impl Node {
    /// Puts an engine barrier into the log. Returns its index: from there on no replica of this program's engine applies anything.
    ///
    /// # Errors
    /// [`NodeError::OutcomeUnknown`]: ask for `status`. After any other error nothing has changed.
    pub async fn upgrade_engine(&self, from: String, to: String, deadline: Instant) -> Result<LogIndex, UpgradeError> {
        if from == to || to.is_empty() {
            return Err(UpgradeError::Bad(format!(
                "the engine {to:?} is no other than {from:?}: nothing to upgrade to"
            )));
        }
        let done = self.submit(Command::Upgrade { from, to }, deadline).await?;
        match done.outcome {
            Outcome::Upgraded => Ok(done.position.index),
            Outcome::UpgradeRefused { engine } => Err(UpgradeError::Refused(engine)),
            Outcome::Refused(refusal) => Err(NodeError::from(refusal).into()),
            other => unreachable!("an upgrade became {other:?}"),
        }
    }

    /// At an engine barrier: takes an image, and stands still once it is durable.
    pub(super) async fn watch_barrier(self: Arc<Self>, running: Arc<Running>) {
        let mut state = self.applied();
        let awaited = state.wait_for(|state| state.awaited_engine.is_some()).await;
        let Some(engine) = awaited.ok().and_then(|state| state.awaited_engine.clone()) else { return };
        let mut told = String::new();
        let taken = loop {
            match self.images.take_only(&*running.strategy, &running).await {
                Ok((taken, _)) => break taken,
                Err(error) => {
                    if error.to_string() != told {
                        tracing::error!(%error, "no image was taken at the engine barrier yet");
                        told = error.to_string();
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let why = format!(
            "the cluster was upgraded to the engine {engine:?}, and everything up to the barrier at log index {} is in a durable image: stop this \
             program, and start the one with that engine on this folder",
            taken.position.index
        );
        self.applier.give(Work::Halt(why)).await;
    }
}
