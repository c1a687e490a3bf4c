//! `--swap`: in each round the journal's second version takes over, and then the first one again, while the round does its worst.
//!
//! Whoever asks for an activation has to find out what came of it, whatever node died meanwhile: it asks again, with the same two hashes, until a node says where the
//! module took over. At the end the history of modules must have exactly one span more for each.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use replicator_client::{Client, ErrorReason};
use replicator_proto::replicator::v1 as pb;
use tonic::{Request, Status};

use super::{
    chance::Chance,
    copies::{is, is_passing},
    world::World,
};
use crate::cli::{
    cluster::{PATIENCE, bundled_module},
    init,
    module::upload,
};

/// The second version of the journal.
const SECOND: &str = "journal-v2";
/// How long a node may take to answer before another one is asked.
const ATTEMPT: Duration = Duration::from_secs(8);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);
/// Anywhere in a round.
const BEFORE_MS: std::ops::RangeInclusive<u64> = 0..=400;
/// How long a switch is asked for: longer than a round may take in all, so that only a cluster that hangs gets there.
const SWITCH_MAX: Duration = Duration::from_secs(120);

/// What is counted over all rounds.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Activations and rollbacks that happened.
    pub(super) switches: u64,
    /// Those whose answer was lost, and that were found again.
    pub(super) found_again: u64,
    /// Attempts that were refused, as not all who must have it had the module: to be asked for again.
    pub(super) refused: u64,
    /// For how long each held up the machine of the node that answered.
    pub(super) pauses: Vec<Duration>,
}

/// The two versions, and who swaps them.
pub(super) struct Swaps {
    client: Client,
    /// The one that runs, and the other one.
    running: Bytes,
    other: Bytes,
    pub(super) tally: Tally,
}

impl Swaps {
    /// Uploads the second version.
    pub(super) async fn prepare(world: &World) -> anyhow::Result<Self> {
        let second: Bytes = init::read(&bundled_module(SECOND)?)?.into();
        let client = world.client().build()?;
        let endpoint = world.endpoints.first().context("no node")?;
        let running = client.status(endpoint, false).await?.module_sha256;
        let mut admin = client.admin(endpoint).await?;
        let uploaded = upload::send(&mut admin, second, &ProgressBar::hidden()).await;
        let other = uploaded.map_err(|status| anyhow!("{}", status.message()))?.sha256;
        Ok(Self { client, running, other, tally: Tally::default() })
    }

    /// There and back.
    pub(super) async fn there_and_back(&mut self, world: &World, chance: &mut Chance) -> anyhow::Result<()> {
        for back in [false, true] {
            // Time that passes under load and whatever else the round does: no condition to wait for.
            tokio::time::sleep(chance.millis(BEFORE_MS)).await;
            let first = chance.below(world.endpoints.len());
            let what = if back { "the rollback" } else { "the activation" };
            self.switch(world, first, back).await.with_context(|| format!("{what} in this round"))?;
        }
        Ok(())
    }

    async fn switch(&mut self, world: &World, first: usize, back: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut lost = false;
        for turn in first.. {
            let endpoint = &world.endpoints[turn % world.endpoints.len()];
            match self.ask(endpoint, back).await {
                Ok(done) if done.sha256 != self.other => bail!("another module runs than the one that was asked for"),
                Ok(done) => {
                    self.tally.switches += 1;
                    if done.already {
                        if !lost {
                            bail!("it was active already, though nobody had asked for it");
                        }
                        self.tally.found_again += 1;
                    } else {
                        self.tally.pauses.push(Duration::from_micros(done.paused_us));
                    }
                    std::mem::swap(&mut self.running, &mut self.other);
                    return Ok(());
                }
                Err(status) if began.elapsed() > SWITCH_MAX => {
                    bail!("not done within {} s: {}", SWITCH_MAX.as_secs(), status.message())
                }
                Err(status) if is(&status, ErrorReason::ModuleNotReady) => self.tally.refused += 1,
                Err(status) if is_passing(&status) => lost = true,
                Err(status) => bail!("{:?}: {}", status.code(), status.message()),
            }
            tokio::time::sleep(AGAIN).await;
        }
        unreachable!("there is always another turn")
    }

    async fn ask(&self, endpoint: &str, back: bool) -> Result<pb::ActivateModuleResponse, Status> {
        let admin = self.client.admin(endpoint).await;
        let mut admin = admin.map_err(|error| Status::unavailable(error.to_string()))?;
        let (sha256, expected_sha256) = (self.other.clone(), self.running.clone());
        let answered = async {
            if back {
                admin.rollback_module(within(pb::RollbackModuleRequest { expected_sha256 })).await
            } else {
                admin.activate_module(within(pb::ActivateModuleRequest { sha256, expected_sha256 })).await
            }
        };
        let answered = tokio::time::timeout(ATTEMPT, answered).await;
        let answered = answered.map_err(|_| Status::deadline_exceeded("the node did not answer"))?;
        Ok(answered?.into_inner())
    }

    /// Checks that the history has one span for each switch, and the first one. Returns what is wrong.
    pub(super) async fn check(&self, world: &World) -> anyhow::Result<Option<String>> {
        let began = Instant::now();
        let modules = loop {
            let endpoint = &world.endpoints[0];
            let listed = async {
                let mut admin = self.client.admin(endpoint).await?;
                anyhow::Ok(admin.list_modules(pb::ListModulesRequest {}).await?)
            };
            match listed.await {
                Ok(listed) => break listed.into_inner().modules,
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
        let spans: usize = modules.iter().map(|module| module.since_log_indexes.len()).sum();
        let active = modules.iter().find(|module| module.active).map(|module| module.sha256.clone());
        let expected = 1 + self.tally.switches;
        Ok(if active.as_ref() != Some(&self.running) {
            Some("another module runs at the end than was activated last".to_owned())
        } else if spans as u64 != expected && expected <= SPANS_KEPT {
            Some(format!("the history of modules has {spans} spans, not {expected}: an activation was lost or doubled"))
        } else {
            None
        })
    }
}

/// So many spans a history keeps.
const SPANS_KEPT: u64 = 1_024;

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ATTEMPT);
    request
}
