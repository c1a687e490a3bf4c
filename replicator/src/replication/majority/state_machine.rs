//! openraft's view of the machine: committed entries go to the apply thread, which answers when they are applied; images are the node's,
//! and openraft only learns of them.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StoredMembership,
    alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine},
};
use replicator_types::{
    Position,
    codec::{self, CodecError},
};

use super::types::{LogId, TypeConfig, WireMembership, encoded_command, log_id, position};
use crate::replication::{ApplySink, Committed, Image, Images};

/// How many entries go to the apply thread at once.
const BATCH_ENTRIES_MAX: usize = 1_024;

type Members = StoredMembershipOf<TypeConfig>;

/// The memberships that were applied, and where: an image is of some position, and names the members as of there.
#[derive(Clone, Default)]
pub(super) struct Memberships(Arc<Mutex<Vec<Members>>>);

impl Memberships {
    fn push(&self, membership: Members) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(membership);
    }

    fn last(&self) -> Members {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last().cloned().unwrap_or_default()
    }

    /// The one that held at `at`, as an image keeps it. Forgets those before.
    pub(super) fn at(&self, at: Position) -> Vec<u8> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let later = all.partition_point(|membership| membership.log_id().as_ref().map(position) <= Some(at));
        all.drain(..later.saturating_sub(1));
        let held = all.first().filter(|_| later > 0).cloned().unwrap_or_default();
        codec::encode(&WireMembership(held))
    }
}

/// What openraft wants to know of an image.
pub(super) fn snapshot_meta(image: &Image) -> Result<SnapshotMetaOf<TypeConfig>, CodecError> {
    let WireMembership(last_membership) = codec::decode(&image.group)?;
    Ok(SnapshotMeta { last_log_id: Some(log_id(image.position)), last_membership })
}

/// Hands entries on.
pub(super) struct StateMachine {
    sink: Arc<dyn ApplySink>,
    images: Option<Arc<dyn Images>>,
    applied: Option<LogId>,
    memberships: Memberships,
}

impl StateMachine {
    /// Goes on from the newest image, which the machine behind `sink` has already. Without `images`, the log is never purged.
    pub(super) fn new(sink: Arc<dyn ApplySink>, images: Option<Arc<dyn Images>>) -> Result<Self, CodecError> {
        let memberships = Memberships::default();
        let mut applied = None;
        if let Some(image) = images.as_ref().and_then(|images| images.newest()) {
            let meta = snapshot_meta(&image)?;
            applied = meta.last_log_id;
            memberships.push(meta.last_membership);
        }
        Ok(Self { sink, images, applied, memberships })
    }

    pub(super) fn memberships(&self) -> Memberships {
        self.memberships.clone()
    }

    fn newest(&self) -> Newest {
        Newest(self.images.clone())
    }
}

fn invalid(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = Newest;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Members), io::Error> {
        Ok((self.applied, self.memberships.last()))
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
                        self.memberships.push(StoredMembership::new(Some(entry.log_id), membership));
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

    async fn get_snapshot_builder(&mut self) -> Newest {
        self.newest()
    }

    /// None, where there is no image and one isn't indispensable: building one that isn't there would end the process.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Newest> {
        let newest = self.newest();
        (force || newest.snapshot().is_ok_and(|snapshot| snapshot.is_some())).then_some(newest)
    }

    /// The image is in the folder already; the machine takes it now.
    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, (): ()) -> Result<(), io::Error> {
        let images = self.images.as_ref().ok_or_else(no_images)?;
        let at = meta.last_log_id.as_ref().map(position).ok_or_else(no_images)?;
        images.enter(at).await.map_err(io::Error::other)?;
        self.applied = meta.last_log_id;
        self.memberships.push(meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        self.newest().snapshot().map_err(invalid)
    }
}

fn no_images() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this group keeps its whole log, and has no images")
}

/// Gives openraft the newest image there is: they are made when the node wants, not when openraft does.
pub(super) struct Newest(Option<Arc<dyn Images>>);

impl Newest {
    fn snapshot(&self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, CodecError> {
        let newest = self.0.as_ref().and_then(|images| images.newest());
        newest.map(|image| Ok(SnapshotOf::<TypeConfig, ()> { meta: snapshot_meta(&image)?, snapshot: () })).transpose()
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Newest {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        self.snapshot().map_err(invalid)?.ok_or_else(no_images)
    }
}
