//! The cluster while something is done to it: what a fault can do, and how it is healed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use replicator_proto::replicator::v1::{StatusResponse, TransferPrimaryRequest};
use rustix::process::Signal;

use super::{catch_ups::CatchUps, disks::Disks, members, rounds::ADVANCE, world::World};
use crate::cli::cluster::{Cluster, PATIENCE};

pub(super) const POLL: Duration = Duration::from_millis(10);
/// How long after a death or a hand-over an outage may begin, and how finely it is measured.
const OUTAGE_WATCHED: Duration = Duration::from_millis(1_500);
const OUTAGE_POLL: Duration = Duration::from_millis(1);
/// A pause that is no outage.
const OUTAGE_MIN: Duration = Duration::from_millis(50);
/// How often nodes are asked whether they know that their disks are full.
const NOTICE_POLL: Duration = Duration::from_millis(50);

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

/// What is counted over all rounds.
#[derive(Debug, Clone, Default)]
pub(super) struct Deeds {
    /// For how long nothing was acknowledged, where that was measured.
    pub(super) outages: Vec<Outage>,
    /// Hand-overs that were refused, to be asked for again.
    pub(super) refused_transfers: u64,
    pub(super) catch_ups: CatchUps,
    /// Nodes whose folders were deleted.
    pub(super) wiped: u64,
    /// Disks that were filled.
    pub(super) filled: u64,
    /// Those of them that their nodes said to be full.
    pub(super) noticed: u64,
}

/// The cluster during a round.
pub(super) struct Arena<'a> {
    cluster: &'a mut Cluster,
    disks: Option<&'a Disks>,
    world: &'a World,
    deeds: &'a mut Deeds,
    /// What was done, for people.
    told: Vec<String>,
    /// Nodes that stand still.
    stopped: BTreeSet<usize>,
    /// Nodes that were started in this round.
    started: BTreeSet<usize>,
    /// The node that was wiped and isn't known to be a full member again.
    wiped: Option<usize>,
    /// Nodes whose disks are full.
    full: BTreeSet<usize>,
}

impl<'a> Arena<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        disks: Option<&'a Disks>,
        world: &'a World,
        deeds: &'a mut Deeds,
    ) -> Self {
        let (stopped, started, full) = Default::default();
        Self { cluster, disks, world, deeds, told: Vec::new(), stopped, started, wiped: None, full }
    }

    /// What was done, in words.
    pub(super) fn told(&self) -> String {
        self.told.join(", ")
    }

    pub(super) fn nodes(&self) -> usize {
        self.cluster.len()
    }

    /// How many nodes may go away now so that a majority stays, which goes on. None while a disk is full: whoever has it may have to lead.
    pub(super) fn minority(&self) -> usize {
        let minority = (self.nodes() - 1) / 2;
        if self.full.is_empty() { minority - usize::from(self.wiped.is_some()).min(minority) } else { 0 }
    }

    /// Whether something that was done before in this round lasts: then nobody promises to do what is asked, or how soon.
    fn is_troubled(&self) -> bool {
        self.wiped.is_some() || !self.full.is_empty()
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

    /// Measures the outage that a death leaves behind, unless something else lasts.
    pub(super) async fn measure_outage(&mut self) {
        if !self.is_troubled() {
            let length = self.outage().await;
            self.deeds.outages.push(Outage { cause: Cause::Death, length });
        }
    }

    /// Hands the primary's part to another replica, and measures meanwhile. `choice` says which one of those that aren't the primary, nor new.
    ///
    /// A refusal that says why is no defect: a chain makes no neighbours of two whose link was stuck a moment ago, as it may be on a busy
    /// machine. It is counted, and the wish is repeated, as an operator would; unless something lasts that may stand against it for longer.
    pub(super) async fn transfer(&mut self, choice: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let primary = self.primary().await?;
            let others = self.replicas().into_iter().filter(|&index| index != primary && Some(index) != self.wiped);
            let others: Vec<usize> = others.collect();
            if others.is_empty() {
                return Ok(());
            }
            let target = others[choice % others.len()];
            let deed = format!("transfer {} to {}", self.cluster.name(primary), self.cluster.name(target));
            let (answered, length) = if self.is_troubled() {
                (self.hand_over(primary, target).await, None)
            } else {
                let (answered, length) = tokio::join!(self.hand_over(primary, target), self.outage());
                (answered, Some(length))
            };
            let refused = match answered {
                Ok(took) => {
                    self.told.push(format!("{deed} (answered after {} ms)", took.as_millis()));
                    self.deeds.outages.extend(length.map(|length| Outage { cause: Cause::Transfer, length }));
                    return Ok(());
                }
                Err(refused) => refused.context(format!("{deed} failed")),
            };
            self.deeds.refused_transfers += 1;
            self.told.push(format!("{refused:#}"));
            if self.is_troubled() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(refused);
            }
        }
    }

    /// Asks for it once. Returns how long the answer took.
    async fn hand_over(&self, from: usize, to: usize) -> anyhow::Result<Duration> {
        let mut admin = self.cluster.client().admin(&self.world.endpoints[from]).await?;
        let asked = Instant::now();
        let request = TransferPrimaryRequest { node_id: self.cluster.name(to).to_owned() };
        let answer = tokio::time::timeout(PATIENCE, admin.transfer_primary(request)).await;
        answer.with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))??;
        Ok(asked.elapsed())
    }

    fn acknowledged(&self) -> u64 {
        self.world.account().progress().iter().sum()
    }

    /// The node that leads.
    pub(super) async fn primary(&self) -> anyhow::Result<usize> {
        self.cluster.wait_primary().await
    }

    /// kill -9. One that is dead stays so.
    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.stopped.remove(&index);
        self.started.remove(&index);
        if !self.cluster.is_running(index) {
            return Ok(());
        }
        self.told.push(format!("kill {}", self.cluster.name(index)));
        self.cluster.kill(index).await.map(drop)
    }

    /// Starts a dead node, without waiting for it.
    pub(super) fn start(&mut self, index: usize) -> anyhow::Result<()> {
        self.told.push(format!("start {}", self.cluster.name(index)));
        self.spawn(index)
    }

    fn spawn(&mut self, index: usize) -> anyhow::Result<()> {
        self.started.insert(index);
        self.cluster.spawn(index)
    }

    /// SIGSTOP.
    pub(super) fn stop(&mut self, index: usize) -> anyhow::Result<()> {
        self.told.push(format!("stop {}", self.cluster.name(index)));
        self.cluster.signal(index, Signal::STOP)?;
        self.stopped.insert(index);
        Ok(())
    }

    /// kill -9 a node, and delete its folder, once all are full members: else it might hold what nobody else does. [`Self::start`] follows.
    pub(super) async fn wipe(&mut self, index: usize) -> anyhow::Result<()> {
        self.whole().await.context("a node can't be wiped yet")?;
        self.kill(index).await?;
        self.told.push(format!("wipe {}", self.cluster.name(index)));
        self.wiped = Some(index);
        self.deeds.wiped += 1;
        self.cluster.wipe(index)
    }

    /// Fills the disks of these nodes, once: what they free afterwards is theirs, and what was kept for their promises too.
    pub(super) fn fill(&mut self, nodes: &[usize]) -> anyhow::Result<()> {
        let disks = self.disks.context("the nodes have no disks of their own")?;
        for &index in nodes {
            self.told.push(format!("fill {}", self.cluster.name(index)));
            self.full.insert(index);
            self.deeds.filled += 1;
            disks.fill(index)?;
        }
        Ok(())
    }

    /// Leaves full disks full for so long, and then, if `until_progress`, until something is acknowledged: the others must be enough. Reads
    /// must be answered meanwhile.
    pub(super) async fn stay_full(&mut self, time: Duration, until_progress: bool) -> anyhow::Result<()> {
        let reads = self.reads();
        let mut noticed = BTreeSet::new();
        let passed = async {
            tokio::time::sleep(time).await;
            self.goes_on(until_progress).await?;
            self.reads_go_on(reads).await
        };
        let passed = tokio::select! {
            passed = passed => passed,
            never = self.notice(&mut noticed) => never,
        };
        self.deeds.noticed += noticed.len() as u64;
        passed.context("with full disks")
    }

    /// Waits until more reads were answered than these: even an election, which full disks don't hinder, has an end.
    async fn reads_go_on(&self, before: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.reads() == before {
            if began.elapsed() > PATIENCE {
                bail!("no read was answered for {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Asks nodes with full disks whether they know, again and again.
    async fn notice(&self, noticed: &mut BTreeSet<usize>) -> anyhow::Result<()> {
        loop {
            for &index in &self.full {
                let endpoint = &self.cluster.all_endpoints()[index];
                let status = self.cluster.client().status(endpoint, false).await;
                if status.is_ok_and(|status| status.disk_full) {
                    noticed.insert(index);
                }
            }
            tokio::time::sleep(NOTICE_POLL).await;
        }
    }

    fn reads(&self) -> u64 {
        self.world.account().answered_reads().values().sum()
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

    /// Waits until this time has passed, or a wiped node is a full member again.
    pub(super) async fn while_catching_up(&self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time && self.missing().await.is_some() {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all nodes are full members.
    async fn whole(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Some(missing) = self.missing().await {
            if began.elapsed() > PATIENCE {
                bail!("not all nodes are full members after {} s: {missing}", PATIENCE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn missing(&self) -> Option<String> {
        let statuses: Result<Vec<StatusResponse>, String> =
            self.cluster.survey().await.into_iter().map(|node| node.status).collect();
        match statuses {
            Ok(nodes) => members::missing(&nodes, nodes.iter().any(|node| node.chain.is_some())),
            Err(silent) => Some(silent),
        }
    }

    /// Lets all nodes run and serve again, and notes how those that were started caught up.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        for index in std::mem::take(&mut self.full) {
            self.disks.context("the nodes have no disks of their own")?.free(index)?;
        }
        for index in std::mem::take(&mut self.stopped) {
            self.cluster.signal(index, Signal::CONT)?;
        }
        for index in 0..self.nodes() {
            if !self.cluster.is_running(index) {
                self.spawn(index)?;
            }
        }
        for index in 0..self.nodes() {
            self.cluster.wait_serving(index).await.context("no progress after healing")?;
        }
        if self.wiped.take().is_some() {
            self.whole().await.context("no progress after healing")?;
        }
        for index in std::mem::take(&mut self.started) {
            if !self.cluster.is_witness(index) {
                self.note_catch_up(index).await?;
            }
        }
        Ok(())
    }

    async fn note_catch_up(&mut self, index: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        let restart = loop {
            let restart = self.cluster.wait_serving(index).await?.restart;
            let caught_up = restart.as_ref().is_some_and(|restart| restart.caught_up);
            if caught_up || began.elapsed() > PATIENCE {
                break restart;
            }
            tokio::time::sleep(POLL).await;
        };
        let told = self.told();
        self.deeds.catch_ups.count(self.cluster.name(index), restart.as_ref(), &told);
        Ok(())
    }
}
