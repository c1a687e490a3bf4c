//! Getting an image from a peer: in pieces, from where it broke off.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use replicator_storage::{SnapshotManifest, SnapshotPiece, SnapshotReceiver, StorageError};
use replicator_types::{ClusterId, Lineage, Position, codec};
use tokio::sync::mpsc;

use super::{CatchUp, NodeImages};
use crate::{
    replication::{Image, Images as _},
    transport::{ImagePart, ImageParts, TransportError},
};

/// A peer that may have an image.
struct Source {
    node: String,
    address: String,
    /// Whether another one is wanted first if it is the primary.
    not_of_primary: bool,
}

impl Source {
    /// The same, to be asked again, as no other one gives an image.
    fn whatever_it_is(self) -> Self {
        Self { not_of_primary: false, ..self }
    }
}

/// Why a peer gave no image.
enum Unfetched {
    /// It is the primary, and others are wanted first.
    IsPrimary,
    Failed(String),
}

impl From<String> for Unfetched {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<&str> for Unfetched {
    fn from(why: &str) -> Self {
        Self::Failed(why.to_owned())
    }
}

/// Pieces that may wait to be written.
const PIECES_AHEAD: usize = 4;

/// How long the others may take to confirm an image.
const CONFIRM_MAX: Duration = Duration::from_secs(1);
pub(super) const RETRY: Duration = Duration::from_millis(300);

impl NodeImages {
    /// An image of `at_least`: what is here, or one of a peer's. The primary, which has enough to do, is asked last.
    pub(super) async fn fetch(self: &Arc<Self>, at_least: Position) -> Result<Image, String> {
        let _alone = self.fetching.lock().await;
        if let Some(image) = self.newest().filter(|image| image.position >= at_least) {
            return Ok(image);
        }
        let fetched = self.fetch_from_any(at_least).await;
        if let Err(why) = &fetched {
            let lacking = Some((at_least, why.clone()));
            if self.lacking.send_replace(lacking.clone()) != lacking {
                tracing::warn!(%at_least, why, "this node needs an image, and gets none yet; it goes on asking");
            }
        }
        fetched
    }

    async fn fetch_from_any(self: &Arc<Self>, at_least: Position) -> Result<Image, String> {
        let (_, manifest) = self.fetch_first(at_least).await?;
        self.set_newest(&manifest);
        self.newest().ok_or_else(|| "it was removed".to_owned())
    }

    /// The image of the first peer that has one, and its name. The primary is asked last.
    pub(super) async fn fetch_first(
        self: &Arc<Self>,
        at_least: Position,
    ) -> Result<(String, SnapshotManifest), String> {
        let mut why = "no peer is known".to_owned();
        let mut sources = self.others();
        while let Some(peer) = sources.pop_front() {
            match self.fetch_from(&peer, at_least).await {
                Ok(manifest) => return Ok((peer.node, manifest)),
                Err(Unfetched::IsPrimary) => sources.push_back(peer.whatever_it_is()),
                Err(Unfetched::Failed(error)) => why = format!("{}: {error}", peer.node),
            }
        }
        Err(why)
    }

    /// Asks the other replicas whether they had the same digest there: nobody may differ (safety rule 20). Where none of them remembers, the
    /// comparisons that follow tell.
    async fn confirm(
        &self,
        manifest: &SnapshotManifest,
        from: &Source,
        cluster: (ClusterId, Lineage),
    ) -> Result<(), String> {
        let SnapshotManifest { info, .. } = manifest;
        let index = info.position.index;
        let asked = self.others().into_iter().filter(|peer| peer.node != from.node).map(|peer| async move {
            let channel = self.peers.channel(&peer.address).ok()?;
            let answer = channel.digests(cluster, &[index], &[], CONFIRM_MAX).await.ok()?;
            let at = answer.digests.into_iter().find(|at| at.index == index && !answer.quarantined)?;
            Some((peer.node, u128::from(at.digest.0) == info.digest))
        });
        let answers: Vec<(String, bool)> = join_all(asked).await.into_iter().flatten().collect();
        if let Some((node, _)) = answers.iter().find(|(_, same)| !same) {
            return Err(format!("its image of {} isn't what {node} had there; it is not taken", info.position));
        }
        let by: Vec<&str> = answers.iter().map(|(node, _)| node.as_str()).collect();
        tracing::info!(position = %info.position, from = from.node, confirmed_by = by.join(", "), "this image is to be taken");
        Ok(())
    }

    /// For a machine that has nothing to go on from.
    pub(super) async fn fetch_from_anyone(self: &Arc<Self>, at_least: Position) -> Option<SnapshotManifest> {
        let mut sources = self.others();
        while let Some(peer) = sources.pop_front() {
            match self.fetch_from(&peer, at_least).await {
                Ok(manifest) => match self.machine_enters(manifest.position()).await {
                    Ok(()) => return Some(manifest),
                    Err(error) => tracing::warn!(peer = peer.node, %error, "its image can't be used"),
                },
                Err(Unfetched::IsPrimary) => sources.push_back(peer.whatever_it_is()),
                Err(Unfetched::Failed(error)) => tracing::warn!(peer = peer.node, error, "no image from this peer"),
            }
        }
        None
    }

    /// The members that are known, and who is configured: a new disk knows no members yet.
    fn others(&self) -> VecDeque<Source> {
        let meta = self.dir.meta();
        let members = meta.members.iter().filter(|member| member.disk != meta.disk);
        let source = |node, address| Source { node, address, not_of_primary: true };
        let mut sources: VecDeque<Source> =
            members.map(|member| source(member.node.clone(), member.peer_address.clone())).collect();
        for peer in &self.configured {
            if sources.iter().all(|source| source.node != *peer.name.as_str()) {
                sources.push_back(source(peer.name.to_string(), peer.peer_address.to_string()));
            }
        }
        sources
    }

    async fn fetch_from(self: &Arc<Self>, peer: &Source, at_least: Position) -> Result<SnapshotManifest, Unfetched> {
        let began = Instant::now();
        let channel = self.peers.channel(&peer.address).map_err(|error| error.to_string())?;
        let mut receiver = self.receiver(None).await?;
        let known = receiver.as_ref().map(|receiver| codec::encode(receiver.manifest()).into());
        let offset = receiver.as_ref().map_or(0, SnapshotReceiver::resume_at);
        let cluster = self.dir.meta().cluster.ok_or("this node belongs to no cluster yet")?;
        let asked = channel.fetch_image(cluster, at_least, known, offset, peer.not_of_primary).await;
        let mut parts = asked.map_err(|error| match error {
            TransportError::Refused(_) if peer.not_of_primary => Unfetched::IsPrimary,
            error => Unfetched::Failed(error.to_string()),
        })?;
        match parts.next().await.map_err(|error| error.to_string())? {
            Some(ImagePart::Manifest(bytes)) => {
                let manifest: SnapshotManifest = codec::decode(&bytes).map_err(|error| error.to_string())?;
                if manifest.position() < at_least {
                    return Err(format!("its image is of {}, and {at_least} is needed", manifest.position()).into());
                }
                self.confirm(&manifest, peer, cluster).await?;
                if receiver.as_ref().is_none_or(|receiver| *receiver.manifest() != manifest) {
                    drop(receiver.take());
                    receiver = self.receiver(Some(manifest)).await?;
                }
            }
            Some(ImagePart::Piece(_)) => return Err("a piece came before its manifest".into()),
            None => {}
        }
        let receiver = receiver.ok_or("it sent nothing")?;
        tracing::info!(peer = peer.node, %at_least, resumed_at = receiver.resume_at(), "fetching an image");
        let taken = self.take_pieces(receiver, parts, began, &peer.node).await?;
        let finished = self.runtime.spawn_blocking(move || taken.finish()).await;
        let finished = finished.map_err(|error| error.to_string())?;
        let manifest = finished.map_err(|error| self.noted(error).to_string())?;
        self.catch_up.send_modify(|catch_up| {
            if let Some(catch_up) = catch_up {
                catch_up.took = began.elapsed();
            }
        });
        tracing::info!(
            peer = peer.node,
            position = %manifest.position(),
            bytes = manifest.data_bytes,
            took_ms = began.elapsed().as_millis(),
            "fetched an image"
        );
        Ok(manifest)
    }

    /// Takes all pieces, on a thread of its own, while the next ones come. However it ends, nobody receives any more when it does.
    async fn take_pieces(
        &self,
        mut receiver: SnapshotReceiver,
        mut parts: ImageParts,
        began: Instant,
        from: &str,
    ) -> Result<SnapshotReceiver, String> {
        let (pieces, mut coming) = mpsc::channel::<SnapshotPiece>(PIECES_AHEAD);
        let (progress, from) = (self.catch_up.clone(), from.to_owned());
        let taking = self.behind("image-receive", move || {
            while let Some(piece) = coming.blocking_recv() {
                receiver.take(&piece)?;
                progress.send_replace(Some(CatchUp {
                    from: from.clone(),
                    position: receiver.manifest().position(),
                    bytes: (receiver.resume_at(), receiver.manifest().data_bytes),
                    took: began.elapsed(),
                    entered: false,
                }));
            }
            Ok::<_, StorageError>(receiver)
        });
        let taking = taking.map_err(|error| format!("can't start a thread: {error}"))?;
        let broke_off = loop {
            match parts.next().await {
                Ok(None) => break None,
                Ok(Some(ImagePart::Manifest(_))) => break Some("a second manifest came".to_owned()),
                Ok(Some(ImagePart::Piece(piece))) => {
                    if pieces.send(piece).await.is_err() {
                        break None; // it failed, and says why
                    }
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        drop(pieces);
        let taken =
            taking.await.map_err(|_| "receiving it panicked")?.map_err(|error| self.noted(error).to_string())?;
        broke_off.map_or(Ok(taken), Err)
    }

    /// Receives `manifest`'s file, or goes on with what was being received.
    async fn receiver(
        self: &Arc<Self>,
        manifest: Option<SnapshotManifest>,
    ) -> Result<Option<SnapshotReceiver>, String> {
        let images = self.clone();
        let opened = self.runtime.spawn_blocking(move || {
            let manifest = manifest.or_else(|| images.store.receiving());
            manifest.map(|manifest| images.store.receive(manifest)).transpose()
        });
        let opened = opened.await.map_err(|error| error.to_string())?;
        opened.map_err(|error| self.noted(error).to_string())
    }
}
