//! Making a machine anew whose state is wrong: from an image of a peer's that another node vouches for, or of this node's from before; or, where the
//! log reaches back to its beginning, from nothing. Then this node's own log is applied again: it is as good as everybody's.

use std::sync::Arc;

use replicator_storage::Log as _;
use tokio::sync::oneshot;

use super::super::{
    Node, Running,
    applier::{Renewal, Work},
};

/// Bytes of entries that are read at once.
const READ_BYTES_MAX: usize = 4 << 20;

impl Node {
    /// Puts another machine in the place of the one that is wrong. Says from what it was made.
    pub(super) async fn rebuild(self: Arc<Self>, running: Arc<Running>) -> Result<String, String> {
        let purged = self.log.ends().purged;
        let (machine, from) = self.images.machine_anew(purged).await?;
        let (log, strategy) = (self.log.clone(), running.strategy.clone());
        let read = Box::new(move |from, to| {
            let records = log.read(from, to, READ_BYTES_MAX).map_err(|error| error.to_string())?;
            if records.first().is_none_or(|first| first.position.index != from) {
                return Err(format!("the log no longer has entry {from}"));
            }
            records.into_iter().map(|record| strategy.committed(record)).collect()
        });
        let (done, renewed) = oneshot::channel();
        let renewal = Renewal { machine: Box::new(machine), read, done };
        if !self.applier.give(Work::Renew(renewal)).await {
            return Err("the machine stands still".into());
        }
        renewed.await.map_err(|_| "the machine stands still")??;
        Ok(from)
    }
}
