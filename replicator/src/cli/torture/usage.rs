//! What the nodes use of their disks during a run, looked at again and again.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use replicator_client::Client;

use super::{disks::used_bytes, world::Tasks};
use crate::cli::cluster::Cluster;

/// Between two looks at one node: shorter than it takes to write as much log as lies between two images.
const PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Seen {
    /// By node and log index: each image that was the newest of its node at one of the looks.
    images: BTreeSet<(usize, u64)>,
    folder_bytes_max: u64,
}

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage(Arc<Mutex<Seen>>);

impl Usage {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("no code panics while it holds this")
    }

    /// Images that nodes took, or got from others.
    pub(super) fn images(&self) -> usize {
        self.seen().images.len()
    }

    /// The most bytes that a node's data took on its disk.
    pub(super) fn folder_bytes_max(&self) -> u64 {
        self.seen().folder_bytes_max
    }

    /// Looks at every node of a cluster, until the tasks are stopped.
    pub(super) fn watch(&self, cluster: &Cluster, tasks: &mut Tasks) {
        for (node, endpoint) in cluster.all_endpoints().into_iter().enumerate() {
            let (usage, client) = (self.clone(), cluster.client().clone());
            tasks.spawn(usage.watch_node(node, client, endpoint, cluster.data_dir(node)));
        }
    }

    async fn watch_node(self, node: usize, client: Client, endpoint: String, data: PathBuf) -> anyhow::Result<()> {
        loop {
            let folder = data.clone();
            let bytes = tokio::task::spawn_blocking(move || used_bytes(&folder)).await?;
            // One that is away has no newer image.
            let newest = client.status(&endpoint, false).await.map_or(0, |status| status.snapshot_log_index);
            {
                let mut seen = self.seen();
                seen.folder_bytes_max = seen.folder_bytes_max.max(bytes);
                if newest > 0 {
                    seen.images.insert((node, newest));
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}
