//! What a restore writes, decided before it writes anything, and the steps in which it does.

use bytes::Bytes;
use replicator_storage::{
    NodeDir, SavedSnapshot, SnapshotInfo, SnapshotManifest, SnapshotOptions, SnapshotStore, StorageError,
};
use replicator_types::{ClusterId, DiskId, Epoch, Incarnation, Lineage};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        images::IMAGES,
        recovery::plan::{self as recovery, Beginning, Plan},
    },
    Restored,
};
use crate::{
    config::{Mode, NodeConfig},
    replication::{Member, majority::offline},
    seams::Seams,
};

/// Bytes of the image that are copied at once.
const PIECE_BYTES: usize = 1 << 20;

/// One of the steps, in their order. The folder is made before the first, with the plan in its `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The modules into the store.
    Modules,
    /// The image.
    Image,
    /// The logs, and then what makes the folder a node's.
    Recovery(recovery::Step),
}

impl Step {
    pub(super) const ALL: [Self; 6] = [
        Self::Modules,
        Self::Image,
        Self::Recovery(recovery::Step::Log),
        Self::Recovery(recovery::Step::ClearGroup),
        Self::Recovery(recovery::Step::Group),
        Self::Recovery(recovery::Step::Finish),
    ];
}

/// What an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    name: String,
    client_address: String,
    peer_address: String,
    /// Name, peer address, and whether it is a witness.
    peers: Vec<(String, String, bool)>,
    mode: String,
    least_chain: u32,
}

impl Asked {
    pub(super) fn of(config: &NodeConfig, witnesses: &[String]) -> Self {
        let peers = config.peers.iter().map(|peer| {
            let is_witness = witnesses.iter().any(|name| *name == peer.name.as_str());
            (peer.name.to_string(), peer.peer_address.to_string(), is_witness)
        });
        Self {
            name: config.name.to_string(),
            client_address: config.client_address.to_string(),
            peer_address: config.peer_address.to_string(),
            peers: peers.collect(),
            mode: config.part(),
            least_chain: config.chain.least_length,
        }
    }
}

/// Every byte that will be written but those that are in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::node) struct RestorePlan {
    /// Of the file.
    pub(super) seal: [u8; 32],
    pub(super) asked: Asked,
    pub(super) cluster: ClusterId,
    /// The image's in the new cluster.
    pub(super) manifest: SnapshotManifest,
    pub(super) plan: Plan,
}

impl RestorePlan {
    pub(super) fn make(
        saved: &SavedSnapshot,
        lineages: &[Lineage],
        asked: Asked,
        old_disk: DiskId,
        seams: &Seams,
    ) -> Self {
        let old = &saved.head().manifest;
        let base = old.position();
        let cluster = ClusterId(seams.random());
        let disk = || DiskId(u64::from_le_bytes(seams.random()));
        let own = Member {
            node: asked.name.clone(),
            disk: old_disk,
            client_address: asked.client_address.clone(),
            peer_address: asked.peer_address.clone(),
            voter: true,
            witness: false,
        };
        // Their disks don't exist yet: these ids hold the places, until each joins with its own.
        let place = |(node, peer_address, witness): &(String, String, bool)| Member {
            node: node.clone(),
            disk: disk(),
            client_address: String::new(),
            peer_address: peer_address.clone(),
            voter: false,
            witness: *witness,
        };
        let places: Vec<Member> = asked.peers.iter().map(place).collect();
        let chain = asked.mode == Mode::Chain.to_string();
        let known: Vec<Lineage> = lineages.iter().copied().chain([old.info.lineage]).collect();
        let beginning = Beginning {
            founds: Some((cluster, asked.mode.clone())),
            old_disk,
            incarnation: Incarnation(1),
            own: &own,
            places: &places,
            known: &known,
            replaces: *lineages.last().expect("a machine's history has a lineage"),
            base,
            term: Epoch(0),
            chain: chain.then_some((Epoch(0), asked.least_chain)),
        };
        let plan = Plan::begin(beginning, seams);
        let own = Member { disk: plan.disk, ..own };
        let extra = if chain { Vec::new() } else { offline::image_members(&own, &places, base) };
        let info = SnapshotInfo { cluster, lineage: plan.lineage, extra, ..old.info.clone() };
        let manifest = SnapshotManifest { info, ..old.clone() };
        Self { seal: saved.seal(), asked, cluster, manifest, plan }
    }

    pub(super) fn outcome(&self, node: &str, carried_on: bool) -> Restored {
        let recovered = self.plan.outcome(node);
        Restored {
            node: recovered.node,
            disk: recovered.disk,
            cluster: self.cluster,
            lineage: recovered.lineage,
            others: recovered.others,
            least_chain: recovered.least_chain,
            carried_on,
        }
    }

    /// Takes one step; durable on return.
    pub(super) fn take(
        &self,
        step: Step,
        dir: &NodeDir,
        saved: &SavedSnapshot,
        modules: &[Bytes],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StorageError> {
        match step {
            Step::Modules => {
                let store = dir.modules()?;
                modules.iter().try_for_each(|module| store.put(module).map(drop))
            }
            Step::Image => {
                let store = dir.snapshots(IMAGES, SnapshotOptions::default())?;
                self.copy_image(&store, saved, progress)
            }
            Step::Recovery(step) => self.plan.take(step, dir),
        }
    }

    /// As much as is missing: what an earlier try has copied, it has.
    fn copy_image(
        &self,
        store: &SnapshotStore,
        saved: &SavedSnapshot,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StorageError> {
        let total = self.manifest.data_bytes;
        let there = store.latest().ok().flatten().is_some_and(|found| found == self.manifest);
        if there && store.verify(self.manifest.position()).is_ok() {
            progress(total, total);
            return Ok(());
        }
        let data = saved.data_file()?;
        let mut receiver = store.receive(self.manifest.clone())?;
        while receiver.resume_at() < total {
            receiver.take(&data.read_at(receiver.resume_at(), PIECE_BYTES)?)?;
            progress(receiver.resume_at(), total);
        }
        receiver.finish().map(drop)
    }
}
