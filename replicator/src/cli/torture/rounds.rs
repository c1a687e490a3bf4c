//! Rounds: each does one thing to the cluster, heals it, and waits until all writers have got on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use replicator_proto::replicator::v1::TransferPrimaryRequest;
use rustix::process::Signal;

use super::{chance::Chance, faults::Fault, world::World, writers::Way};
use crate::cli::cluster::{Cluster, PATIENCE};

/// Acknowledgements that every writer must get between two rounds.
const ADVANCE: u64 = 10;
const POLL: Duration = Duration::from_millis(10);
/// How long after a death or a hand-over an outage may begin, and how finely it is measured.
const OUTAGE_WATCHED: Duration = Duration::from_millis(1_500);
const OUTAGE_POLL: Duration = Duration::from_millis(1);
/// A pause that is no outage.
const OUTAGE_MIN: Duration = Duration::from_millis(50);

/// What a time without acknowledgements came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A replica was killed.
    Death,
    /// The primary's part was handed over.
    Transfer,
}

/// A time in which nothing was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) cause: Cause,
    pub(super) length: Duration,
}

/// The cluster while something is done to it.
pub(super) struct Arena<'a> {
    cluster: &'a mut Cluster,
    world: &'a World,
    stopped: BTreeSet<usize>,
    /// What was done, for people.
    deeds: Vec<String>,
    outage: Option<Outage>,
}

impl Arena<'_> {
    pub(super) fn nodes(&self) -> usize {
        self.cluster.len()
    }

    /// The nodes that hold the application's state.
    pub(super) fn replicas(&self) -> Vec<usize> {
        (0..self.nodes()).filter(|&index| !self.cluster.is_witness(index)).collect()
    }

    /// Watches for a while, and takes the longest time in which nothing at all is acknowledged.
    async fn outage(&self) -> Duration {
        let began = Instant::now();
        let (mut count, mut at, mut longest) = (self.acknowledged(), began, Duration::ZERO);
        // What was on its way may come at once; the outage follows.
        while began.elapsed() < OUTAGE_WATCHED || (at.elapsed() > OUTAGE_MIN && began.elapsed() < PATIENCE) {
            tokio::time::sleep(OUTAGE_POLL).await;
            let now = self.acknowledged();
            if now > count {
                (count, at) = (now, Instant::now());
            }
            longest = longest.max(at.elapsed());
        }
        longest
    }

    /// Measures the outage that a death leaves behind.
    pub(super) async fn measure_outage(&mut self) {
        self.outage = Some(Outage { cause: Cause::Death, length: self.outage().await });
    }

    /// Hands the primary's part to another replica, and measures meanwhile. `choice` says which one of those that aren't the primary.
    pub(super) async fn transfer(&mut self, choice: usize) -> anyhow::Result<()> {
        let primary = self.primary().await?;
        let others: Vec<usize> = self.replicas().into_iter().filter(|&index| index != primary).collect();
        let target = others[choice % others.len()];
        let (from, to) = (self.cluster.name(primary), self.cluster.name(target));
        let deed = format!("transfer {from} to {to}");
        let handed_over = async {
            let mut admin = self.cluster.client().admin(&self.world.endpoints[primary]).await?;
            let asked = Instant::now();
            let request = TransferPrimaryRequest { node_id: to.to_owned() };
            admin.transfer_primary(request).await.with_context(|| format!("{from} did not hand over to {to}"))?;
            anyhow::Ok(asked.elapsed())
        };
        let (answered, length) = tokio::join!(handed_over, self.outage());
        self.deeds.push(format!("{deed} (answered after {} ms)", answered?.as_millis()));
        self.outage = Some(Outage { cause: Cause::Transfer, length });
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.world.account().progress().iter().sum()
    }

    /// The node that leads.
    pub(super) async fn primary(&self) -> anyhow::Result<usize> {
        self.cluster.wait_primary().await
    }

    /// kill -9.
    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.deeds.push(format!("kill {}", self.cluster.name(index)));
        self.stopped.remove(&index);
        self.cluster.kill(index).await.map(drop)
    }

    /// Starts a dead node, without waiting for it.
    pub(super) fn start(&mut self, index: usize) -> anyhow::Result<()> {
        self.deeds.push(format!("start {}", self.cluster.name(index)));
        self.cluster.spawn(index)
    }

    /// SIGSTOP.
    pub(super) fn stop(&mut self, index: usize) -> anyhow::Result<()> {
        self.deeds.push(format!("stop {}", self.cluster.name(index)));
        self.cluster.signal(index, Signal::STOP)?;
        self.stopped.insert(index);
        Ok(())
    }

    /// Waits, if `wanted`, until something is acknowledged while nodes are away: those that are left must be enough.
    pub(super) async fn goes_on(&self, wanted: bool) -> anyhow::Result<()> {
        if !wanted {
            return Ok(());
        }
        let before = self.acknowledged();
        let began = Instant::now();
        while self.acknowledged() <= before + ADVANCE {
            if began.elapsed() > PATIENCE {
                bail!("no progress: the nodes that are left acknowledged nothing for {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Lets all nodes run and serve again.
    async fn heal(&mut self) -> anyhow::Result<()> {
        for index in std::mem::take(&mut self.stopped) {
            self.cluster.signal(index, Signal::CONT)?;
        }
        for index in 0..self.nodes() {
            if !self.cluster.is_running(index) {
                self.cluster.spawn(index)?;
            }
        }
        for index in 0..self.nodes() {
            self.cluster.wait_serving(index).await.context("no progress after healing")?;
        }
        Ok(())
    }
}

/// What a round did.
pub(super) struct Played {
    /// In words.
    pub(super) deeds: String,
    /// For how long nothing was acknowledged, if that was measured.
    pub(super) outage: Option<Outage>,
}

/// Plays one round. Says what it did.
pub(super) async fn play(
    cluster: &mut Cluster,
    world: &World,
    faults: &[Fault],
    mut chance: Chance,
) -> anyhow::Result<Played> {
    let fault = Fault::choose(faults, &mut chance);
    let mut arena = Arena { cluster, world, stopped: BTreeSet::new(), deeds: Vec::new(), outage: None };
    let done = async {
        fault.strike(&mut arena, &mut chance).await?;
        arena.heal().await
    };
    let done = done.await;
    let (deeds, outage) = (arena.deeds.join(", "), arena.outage);
    done.with_context(|| format!("after {deeds}"))?;
    advance(world).await.with_context(|| format!("after {deeds}"))?;
    Ok(Played { deeds, outage })
}

/// Waits until every writer has got on, and every reader has been answered.
pub(super) async fn advance(world: &World) -> anyhow::Result<()> {
    writers_advance(world).await?;
    readers_advance(world).await
}

/// Readers give up after a moment: unless each is answered between two rounds, reads without an answer would pass for good ones.
async fn readers_advance(world: &World) -> anyhow::Result<()> {
    let before = world.account().answered_reads();
    let began = Instant::now();
    loop {
        let now = world.account().answered_reads();
        let silent = before.iter().find(|(reader, count)| now.get(*reader) <= Some(*count));
        match silent {
            None => return Ok(()),
            Some((reader, _)) if began.elapsed() > PATIENCE => {
                bail!("no progress: within {} s of health, no read at {reader} was answered there", PATIENCE.as_secs())
            }
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

async fn writers_advance(world: &World) -> anyhow::Result<()> {
    let before = world.account().progress();
    let began = Instant::now();
    loop {
        let now = world.account().progress();
        let stuck = before.iter().zip(&now).position(|(before, now)| now - before < ADVANCE);
        match stuck {
            None => return Ok(()),
            Some(writer) if began.elapsed() > PATIENCE => bail!(
                "no progress: within {} s of health, writer {writer} ({:?}) got {} acknowledgements, of {ADVANCE} that it had to",
                PATIENCE.as_secs(),
                Way::of(writer),
                now[writer] - before[writer]
            ),
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}
