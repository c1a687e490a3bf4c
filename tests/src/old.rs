//! What a client holds of a history that has been replaced since: by a recovery, or a restore.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use replicator_client::{
    ErrorReason,
    proto::{Consistency, Cursor, QueryRequest, SubscribeRequest},
};
use tonic::Status;

use crate::{Cluster, Requests as _, reason, request};

/// A session, an index and a place in the events.
#[derive(Debug, Clone)]
pub struct OldHistory {
    /// The session, in which one request was executed.
    pub session: Bytes,
    /// The history that it belongs to.
    pub lineage: u64,
    /// Where that request is in the log.
    pub index: u64,
}

impl OldHistory {
    /// Opens a session at a node, and executes a request of the counter module in it.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn take(cluster: &Cluster, index: usize) -> Result<Self> {
        let mut node = cluster.node(index).await?;
        let session = node.session(0).await?;
        let executed = node.execute(request(&session, 1, "add old 1")).await?.into_inner();
        Ok(Self { session, lineage: cluster.status(index).await?.lineage, index: executed.log_index })
    }

    /// Checks that the node takes none of it for something of its own.
    ///
    /// # Errors
    /// If it does.
    pub async fn is_refused(&self, cluster: &Cluster, index: usize) -> Result<()> {
        let mut node = cluster.node(index).await?;
        let session_id = self.session.clone();
        let query = QueryRequest { request: "get x".into(), ..QueryRequest::default() };
        let after = Some(Cursor { lineage: self.lineage, log_index: self.index, ordinal: 0 });
        let topics = vec!["any".to_owned()];
        let refused: [(&str, Option<Status>); 6] = [
            ("the next request", node.execute(request(&self.session, 2, "add old 1")).await.err()),
            ("a request that was executed", node.execute(request(&self.session, 1, "add old 1")).await.err()),
            (
                "a log index",
                node.query(QueryRequest {
                    lineage: self.lineage,
                    min_log_index: self.index,
                    consistency: Consistency::Session.into(),
                    ..query.clone()
                })
                .await
                .err(),
            ),
            ("a read in a session", node.query(QueryRequest { session_id: session_id.clone(), ..query }).await.err()),
            (
                "a subscription of a session",
                node.subscribe(SubscribeRequest { session_id, ..SubscribeRequest::default() }).await.err(),
            ),
            ("a cursor", node.subscribe(SubscribeRequest { topics, after, ..SubscribeRequest::default() }).await.err()),
        ];
        for (what, refused) in refused {
            let refused = refused.with_context(|| format!("{what} of the old lineage was taken"))?;
            ensure!(reason(&refused) == Some(ErrorReason::LineageMismatch), "{what}: {refused:?}");
        }
        Ok(())
    }
}
