//! Clients that stay with one node, whatever becomes of it: the ones that a node which is cut off could tell something wrong.
//!
//! Each replica has a writer, which adds 1 to a counter of its own, and a reader of all of these counters. Every answer is compared with what is
//! known of that counter: the writer's must be 1, 2, 3, …, and a linearizable read must show everything that was acknowledged, or read
//! anywhere, before it began, and nothing that nobody had asked for when it ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use replicator_client::{
    Consistency, ErrorReason,
    proto::{ExecuteRequest, QueryRequest, replicator_service_client::ReplicatorServiceClient},
};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

use crate::{Cluster, PATIENCE, Requests as _, reason, within};

/// Between two requests of one resident, so that the logs stay short.
const PACE: Duration = Duration::from_millis(2);
/// Between two tries, so that refusals don't become the load.
const AGAIN: Duration = Duration::from_millis(10);
/// How long a node may take for one try.
const TRY: Duration = Duration::from_secs(1);

/// Each time, the counters are new ones.
static STARTS: AtomicU64 = AtomicU64::new(0);

/// What is known of one writer's counter.
#[derive(Debug, Default)]
struct Known {
    name: String,
    /// That of its node.
    index: usize,
    /// The last number for which the node was asked.
    begun: AtomicU64,
    acknowledged: AtomicU64,
    /// The greatest number that a read has shown.
    read: AtomicU64,
    /// When each number was acknowledged.
    times: Mutex<Vec<Instant>>,
    /// How many reads the node has answered, and how many tries of any kind it has refused or left unanswered.
    reads: AtomicU64,
    failures: AtomicU64,
    /// How many of these because the primary's disk is full.
    disk_full: AtomicU64,
    last_refusal: Mutex<String>,
}

impl Known {
    /// Writes acknowledged, and reads answered.
    fn progress(&self) -> (u64, u64) {
        (self.acknowledged.load(Ordering::Acquire), self.reads.load(Ordering::Acquire))
    }
}

/// The residents of a cluster's replicas.
#[derive(Debug)]
pub struct Residents {
    known: Arc<[Known]>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<()>>,
}

impl Residents {
    /// Begins.
    ///
    /// # Errors
    /// If a session can't be opened.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        Self::start_at(cluster, &cluster.replicas().collect::<Vec<_>>(), Consistency::Linearizable).await
    }

    /// Begins, at some of the replicas only. All reads must be linearizable, whatever they ask for.
    ///
    /// # Errors
    /// If a session can't be opened.
    pub async fn start_at(cluster: &Cluster, replicas: &[usize], reads: Consistency) -> Result<Self> {
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let known = |&index: &usize| {
            let name = format!("resident-{start}-{}", cluster[index].name);
            Known { name, index, ..Known::default() }
        };
        let known: Arc<[Known]> = replicas.iter().map(known).collect();
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for (place, &index) in replicas.iter().enumerate() {
            let mut node = cluster.node(index).await?;
            let session = node.session(0).await?;
            let resident = Resident { known: known.clone(), place, stop: stop.clone(), node };
            tasks.spawn(resident.clone().write(session));
            tasks.spawn(resident.read(reads));
        }
        Ok(Self { known, stop, tasks })
    }

    /// What is known of these replicas' residents.
    fn of(&self, replicas: &[usize]) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|known| replicas.contains(&known.index))
    }

    /// Waits until the writer of each of these replicas has `writes` more acknowledgements, and its reader `reads` more answers.
    ///
    /// # Errors
    /// If they don't come, or an answer was wrong.
    pub async fn advance(&mut self, replicas: &[usize], writes: u64, reads: u64) -> Result<()> {
        let before: Vec<(u64, u64)> = self.of(replicas).map(Known::progress).collect();
        let began = Instant::now();
        loop {
            self.check()?;
            let mut all = self.of(replicas).zip(&before);
            let behind = all.find(|(known, before)| {
                let now = known.progress();
                now.0 < before.0 + writes || now.1 < before.1 + reads
            });
            match behind {
                None => return Ok(()),
                Some((known, _)) if began.elapsed() > PATIENCE => {
                    let refused = known.last_refusal.lock().unwrap_or_else(PoisonError::into_inner);
                    bail!("no progress: {}, whose node last said {refused:?}", known.name)
                }
                Some(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Passes on the first wrong answer.
    ///
    /// # Errors
    /// With it.
    pub fn check(&mut self) -> Result<()> {
        match self.tasks.try_join_next() {
            Some(ended) => ended.context("a resident panicked")?.and_then(|()| bail!("a resident has ended by itself")),
            None => Ok(()),
        }
    }

    /// The longest time between `from` and `to` in which none of these replicas' writers was acknowledged anything.
    #[must_use]
    pub fn longest_silence(&self, replicas: &[usize], from: Instant, to: Instant) -> Duration {
        let mut times: Vec<Instant> = vec![from, to];
        for known in self.of(replicas) {
            let all = known.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.extend(all.iter().rev().take_while(|at| **at >= from).filter(|at| **at <= to));
        }
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How many tries were refused or left unanswered so far, at all replicas.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.known.iter().map(|known| known.failures.load(Ordering::Acquire)).sum()
    }

    /// How many tries were refused because the primary's disk is full, at all replicas.
    #[must_use]
    pub fn refused_for_room(&self) -> u64 {
        self.known.iter().map(|known| known.disk_full.load(Ordering::Acquire)).sum()
    }

    /// Writes acknowledged so far, to all of them.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.known.iter().map(|known| known.progress().0).sum()
    }

    /// Stops. Each writer gets its last answer first. Checks that every replica has exactly what was acknowledged.
    ///
    /// # Errors
    /// If not, or an answer was wrong.
    pub async fn settle(self, cluster: &Cluster) -> Result<()> {
        self.settle_at(cluster, &cluster.replicas().collect::<Vec<_>>()).await
    }

    /// [`Residents::settle`] where only these replicas are left.
    ///
    /// # Errors
    /// If one has something else, or an answer was wrong.
    pub async fn settle_at(mut self, cluster: &Cluster, replicas: &[usize]) -> Result<()> {
        self.check()?;
        self.stop.store(true, Ordering::Release);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a resident panicked")??;
        }
        for known in &*self.known {
            let acknowledged = known.acknowledged.load(Ordering::Acquire);
            ensure!(acknowledged > 0, "nothing was acknowledged to {}", known.name);
            for &index in replicas {
                let (found, name) = (cluster.counter_at(index, &known.name).await?, &cluster[index].name);
                ensure!(
                    found == acknowledged,
                    "{}: {acknowledged} were acknowledged, and {name} has {found}",
                    known.name
                );
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Resident {
    known: Arc<[Known]>,
    place: usize,
    stop: Arc<AtomicBool>,
    node: ReplicatorServiceClient<Channel>,
}

impl Resident {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn own(&self) -> &Known {
        &self.known[self.place]
    }

    /// A try that came to nothing: allowed if the node says so, or says nothing.
    fn failed(&self, status: &Status) -> Result<()> {
        let full = status.code() == Code::ResourceExhausted && reason(status) == Some(ErrorReason::DiskFull);
        // The last is what our side makes of a connection that breaks under a request: no node says that.
        let excused = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
            || (status.code() == Code::Unknown && status.message() == "transport error");
        ensure!(excused || full, "{}: {status:?}", self.own().name);
        self.own().disk_full.fetch_add(u64::from(full), Ordering::AcqRel);
        self.own().failures.fetch_add(1, Ordering::AcqRel);
        status.message().clone_into(&mut self.own().last_refusal.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    async fn write(mut self, session_id: Bytes) -> Result<()> {
        let mut number = 0;
        while !self.stopped() {
            number += 1;
            self.own().begun.store(number, Ordering::Release);
            let request = format!("add {} 1", self.own().name).into();
            // Until it is answered, however often that takes: were it executed twice, the counter would leave a number out.
            let message =
                ExecuteRequest { session_id: session_id.clone(), sequence: number, acked_below: number, request };
            let began = Instant::now();
            let answer = loop {
                match self.node.execute(within(TRY, message.clone())).await {
                    Ok(answer) => break answer.into_inner(),
                    Err(status) => self.failed(&status)?,
                }
                let patient = began.elapsed() < 4 * PATIENCE;
                ensure!(patient, "{}: number {number} is not answered", self.own().name);
                tokio::time::sleep(AGAIN).await;
            };
            ensure!(
                answer.response == number.to_string(),
                "{}: number {number} was answered {:?} at log index {}",
                self.own().name,
                answer.response,
                answer.log_index
            );
            self.own().acknowledged.store(number, Ordering::Release);
            self.own().times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    async fn read(mut self, consistency: Consistency) -> Result<()> {
        let mut turn = self.place;
        while !self.stopped() {
            turn = (turn + 1) % self.known.len();
            let known = self.known.clone();
            let known = &known[turn];
            let least = known.acknowledged.load(Ordering::Acquire).max(known.read.load(Ordering::Acquire));
            let query = QueryRequest {
                request: format!("get {}", known.name).into(),
                consistency: consistency.into(),
                ..QueryRequest::default()
            };
            match self.node.query(within(TRY, query)).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let most = known.begun.load(Ordering::Acquire);
                    let told: u64 = String::from_utf8_lossy(&answer.response).parse().context("no number")?;
                    ensure!(
                        told >= least,
                        "a stale linearizable read at {}: {} is {told} at log index {}, and was {least} before the read began",
                        answer.node_id,
                        known.name,
                        answer.log_index
                    );
                    ensure!(
                        told <= most,
                        "{} read {told} of {}, for which nobody had asked: {most}",
                        answer.node_id,
                        known.name
                    );
                    known.read.fetch_max(told, Ordering::AcqRel);
                    self.own().reads.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(PACE).await;
                }
                Err(status) => {
                    self.failed(&status)?;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        Ok(())
    }
}
