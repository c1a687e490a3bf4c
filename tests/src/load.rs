//! A client that writes on and on, and notices when an answer isn't the one that exactly-once demands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::Executed;
use tokio::task::JoinHandle;

use crate::{Cluster, until};

/// Between two requests of one load, so that the logs stay short.
const PACE: Duration = Duration::from_millis(1);

/// Adds 1 to a counter of its own, again and again. The answers must be 1, 2, 3, …: a lost write would repeat a number, and
/// a doubled one leave one out. An answer that fails, after all the client's retries, ends it.
#[derive(Debug)]
pub struct Load {
    name: String,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Load {
    /// Begins, with up to `window` requests in flight; 1: one after the other, without a stream.
    ///
    /// # Errors
    /// If no session can be opened.
    pub async fn start(cluster: &Cluster, name: &str, window: usize) -> Result<Self> {
        let client = cluster.client()?;
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            session: client.open_session(None).await?,
            request: format!("add {name} 1"),
            acknowledged: acknowledged.clone(),
            stop: stop.clone(),
        };
        let task = if window > 1 { tokio::spawn(writer.pipelined(window)) } else { tokio::spawn(writer.one_by_one()) };
        Ok(Self { name: name.to_owned(), acknowledged, stop, task })
    }

    /// Several at once: `loads` pipelined ones and one that isn't.
    ///
    /// # Errors
    /// If no session can be opened.
    pub async fn several(cluster: &Cluster, loads: usize) -> Result<Vec<Self>> {
        let mut all = vec![Self::start(cluster, "unary", 1).await?];
        for number in 0..loads {
            all.push(Self::start(cluster, &format!("pipelined{number}"), 32).await?);
        }
        Ok(all)
    }

    /// The name of its counter.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many writes are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits for `count` more acknowledgements.
    ///
    /// # Errors
    /// If they don't come.
    pub async fn advance(&self, count: u64) -> Result<()> {
        let goal = self.acknowledged() + count;
        until(&format!("{} acknowledgements of {}", goal, self.name), async || {
            let acknowledged = self.acknowledged();
            ensure!(
                acknowledged >= goal,
                "{acknowledged} have come, and the load has ended: {}",
                self.task.is_finished()
            );
            Ok(())
        })
        .await
    }

    /// Stops, checks that no answer was wrong, and that every replica has exactly what was acknowledged.
    ///
    /// # Errors
    /// If not.
    pub async fn settle(self, cluster: &Cluster) -> Result<u64> {
        let name = self.name.clone();
        let acknowledged = self.stop().await?;
        cluster.expect_counter(&name, acknowledged).await?;
        Ok(acknowledged)
    }

    /// Stops, and checks that no answer was wrong. Returns how many writes were acknowledged.
    ///
    /// # Errors
    /// If one was.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.task.await?.with_context(|| format!("the load {}", self.name))
    }
}

struct Writer {
    session: replicator_client::Session,
    request: String,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn check(&self, executed: &Executed, number: u64) -> Result<()> {
        let told = String::from_utf8_lossy(&executed.response);
        ensure!(
            told == number.to_string(),
            "request {number} of `{}` was answered {told:?} at log index {} by {}",
            self.request,
            executed.log_index,
            executed.node_id
        );
        self.acknowledged.store(number, Ordering::Release);
        Ok(())
    }

    async fn one_by_one(self) -> Result<u64> {
        let mut number = 0;
        while !self.stopped() {
            let executed = self.session.execute(self.request.clone()).await?;
            number += 1;
            self.check(&executed, number)?;
            tokio::time::sleep(PACE).await;
        }
        self.session.close().await?;
        Ok(number)
    }

    async fn pipelined(self, window: usize) -> Result<u64> {
        let pipeline = self.session.pipeline(window).await?;
        let (outcomes, mut waiting) = tokio::sync::mpsc::channel(window);
        let submitting = async {
            while !self.stopped() && !outcomes.is_closed() {
                let outcome = pipeline.submit(self.request.clone()).await?;
                if outcomes.send(outcome).await.is_err() {
                    break;
                }
                tokio::time::sleep(PACE).await;
            }
            drop(outcomes);
            anyhow::Ok(())
        };
        let checking = async {
            let mut number = 0;
            while let Some(outcome) = waiting.recv().await {
                number += 1;
                self.check(&outcome.await?, number)?;
            }
            anyhow::Ok(number)
        };
        let ((), number) = tokio::try_join!(submitting, checking)?;
        pipeline.close().await?;
        self.session.close().await?;
        Ok(number)
    }
}

/// Waits until each of the loads has `count` more acknowledgements.
///
/// # Errors
/// If they don't come.
pub async fn advance(loads: &[Load], count: u64) -> Result<()> {
    for load in loads {
        load.advance(count).await?;
    }
    Ok(())
}

/// Stops the loads, and checks that each replica has what was acknowledged and is equal to the others.
///
/// # Errors
/// If one hasn't, or isn't, or nothing was acknowledged to a load.
pub async fn settle(cluster: &Cluster, loads: Vec<Load>) -> Result<()> {
    for load in loads {
        let name = format!("{load:?}");
        ensure!(load.settle(cluster).await? > 0, "nothing was acknowledged: {name}");
    }
    cluster.verify().await?;
    Ok(())
}
