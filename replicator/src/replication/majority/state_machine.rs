//! openraft's view of the machine: committed entries go to the apply thread, which answers when they are applied.

use std::{io, sync::Arc};

use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership,
    alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine},
};

use super::types::{LogId, TypeConfig, encoded_command, position};
use crate::replication::{ApplySink, Committed};

/// How many entries go to the apply thread at once.
const BATCH_ENTRIES_MAX: usize = 1_024;

/// Hands entries on. Holds no state of its own but where it is.
///
/// *Invariant:* the log is never purged, so a replica always gets entries and never a snapshot. openraft asks for
/// snapshots only after a purge or when its policy says so, which is `Never`.
pub(super) struct StateMachine {
    sink: Arc<dyn ApplySink>,
    applied: Option<LogId>,
    membership: StoredMembershipOf<TypeConfig>,
}

impl StateMachine {
    pub(super) fn new(sink: Arc<dyn ApplySink>) -> Self {
        Self { sink, applied: None, membership: StoredMembership::default() }
    }
}

fn no_snapshots() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this version keeps the whole log, and has no snapshots to send or take")
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembershipOf<TypeConfig>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            let mut committed: Vec<Committed> = Vec::with_capacity(batch.len());
            let mut responders = Vec::new();
            for item in batch {
                let (entry, responder) = item?;
                let at = position(&entry.log_id);
                committed.push(match entry.payload {
                    EntryPayload::Normal(command) => (at, Some(encoded_command(&command))),
                    EntryPayload::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                        (at, None)
                    }
                    EntryPayload::Blank => (at, None),
                });
                responders.extend(responder);
                self.applied = Some(entry.log_id);
            }
            self.sink.apply(committed).await;
            responders.into_iter().for_each(|responder| responder.send(()));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<TypeConfig>, (): ()) -> Result<(), io::Error> {
        Err(no_snapshots())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(None)
    }
}

/// Never asked, since the log is never purged.
pub(super) struct NoSnapshots;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshots {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        Err(no_snapshots())
    }
}
