//! Writes whose places in the log are known.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use crate::{Cluster, until};

/// Requests under way at once.
const WINDOW: usize = 32;

/// Adds 1 to the counter `written` of the counter module, again and again, and notes the log index of each. One at a time in a cluster.
#[derive(Debug)]
pub struct Writes {
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Vec<u64>>>,
}

impl Writes {
    /// Begins, after `before` writes of this kind that were acknowledged.
    ///
    /// # Errors
    /// If no session can be opened.
    pub async fn start(cluster: &Cluster, before: usize) -> Result<Self> {
        let session = cluster.client()?.open_session(None).await?;
        let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (acknowledged.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let pipeline = session.pipeline(WINDOW).await?;
            let (sent, mut outcomes) = tokio::sync::mpsc::channel(WINDOW);
            let sending = async {
                while !stopped.load(Ordering::Acquire) && !sent.is_closed() {
                    let _ = sent.send(pipeline.submit("add written 1").await?).await;
                }
                drop(sent);
                anyhow::Ok(())
            };
            let noting = async {
                let mut indexes = Vec::new();
                while let Some(outcome) = outcomes.recv().await {
                    let executed = outcome.await?;
                    indexes.push(executed.log_index.0);
                    let number = (before + indexes.len()).to_string();
                    ensure!(executed.response == number, "{executed:?} is the answer to write {number}");
                    counted.store(indexes.len(), Ordering::Release);
                }
                anyhow::Ok(indexes)
            };
            let ((), indexes) = tokio::try_join!(sending, noting)?;
            pipeline.close().await?;
            session.close().await?;
            Ok(indexes)
        });
        Ok(Self { acknowledged, stop, task })
    }

    /// How many are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits for `count` more.
    ///
    /// # Errors
    /// If they don't come.
    pub async fn advance(&self, count: usize) -> Result<()> {
        let goal = self.acknowledged() + count;
        until(&format!("{goal} writes"), async || {
            let acknowledged = self.acknowledged();
            ensure!(acknowledged >= goal, "{acknowledged} have come; the end: {}", self.task.is_finished());
            Ok(())
        })
        .await
    }

    /// Stops. Returns the log index of each write, in their order.
    ///
    /// # Errors
    /// If an answer was wrong, or didn't come.
    pub async fn stop(self) -> Result<Vec<u64>> {
        self.stop.store(true, Ordering::Release);
        let indexes = self.task.await??;
        ensure!(indexes.is_sorted_by(|a, b| a < b), "the places of one session's writes are out of order");
        Ok(indexes)
    }
}
