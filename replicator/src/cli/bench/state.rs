//! A state as large as is asked for, in the blocks module, and a load on it.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;

use super::{
    DEADLINE, Progress,
    load::{self, Load, Measured, Work},
    random_name,
};
use crate::cli::cluster::{Cluster, PATIENCE};

/// The module.
pub(super) const MODULE: &str = "blocks";
/// Blocks of 4 KiB in a MiB.
const BLOCKS_PER_MIB: u64 = 256;
/// That one request adds.
const MIB_PER_REQUEST: u64 = 4;
/// No image is taken but by command: as much log as a node may be told.
pub(super) const NO_IMAGES: u64 = 9_000_000_000_000_000_000;
/// Connections that the clients of a load share.
const CONNECTIONS: usize = 4;
const POLL: Duration = Duration::from_millis(20);

/// A cluster with a state.
pub(super) struct Filled {
    /// How many blocks there are.
    pub(super) blocks: u64,
    /// Which node leads.
    pub(super) primary: usize,
    /// Its client address.
    address: String,
    /// The nodes' processes.
    servers: Vec<u32>,
}

impl Filled {
    /// Fills the state up to so many MiB of bytes that can't be compressed.
    pub(super) async fn new(cluster: &Cluster, mib: u32) -> anyhow::Result<Self> {
        let primary = cluster.wait_primary().await?;
        let client = Client::builder().endpoints([cluster.endpoint(primary)]).deadline(PATIENCE).build()?;
        let session = client.open_session(None).await?;
        let progress = Progress::of("filling the state", u64::from(mib), "MiB");
        let mut left = u64::from(mib);
        let mut blocks = 0;
        while left > 0 {
            let mib = left.min(MIB_PER_REQUEST);
            let answer = session.execute(format!("fill {}", mib * BLOCKS_PER_MIB)).await?.response;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            blocks = answer.parse().map_err(|_| anyhow!("the module answered {answer:?}"))?;
            progress.advance(mib);
            left -= mib;
        }
        drop(session.close().await);
        let mut filled = Self { blocks, primary, address: String::new(), servers: Vec::new() };
        filled.refresh(cluster).await?;
        Ok(filled)
    }

    /// After nodes were started anew.
    pub(super) async fn refresh(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.primary = cluster.wait_primary().await?;
        self.address = cluster.endpoint(self.primary).to_owned();
        self.servers = cluster.pids().map(|(_, pid)| pid).collect();
        Ok(())
    }

    /// Writes of so many bytes, of so many clients, for so many seconds.
    pub(super) async fn load(&self, clients: u32, bytes: usize, seconds: u32) -> anyhow::Result<Measured> {
        self.load_counted(clients, bytes, seconds, Arc::default()).await
    }

    /// The same; `done` counts the answers as they come.
    pub(super) async fn load_counted(
        &self,
        clients: u32,
        bytes: usize,
        seconds: u32,
        done: Arc<AtomicU64>,
    ) -> anyhow::Result<Measured> {
        self.run(clients, Work::Blocks { len: bytes, blocks: self.blocks }, seconds, done).await
    }

    /// Requests that trap.
    pub(super) async fn traps(&self, clients: u32, seconds: u32) -> anyhow::Result<Measured> {
        self.run(clients, Work::Traps { blocks: self.blocks }, seconds, Arc::default()).await
    }

    async fn run(&self, clients: u32, work: Work, seconds: u32, done: Arc<AtomicU64>) -> anyhow::Result<Measured> {
        let clients = clients as usize;
        let connections = connections(&self.address, clients)?;
        let load = Load {
            name: random_name()?,
            clients,
            seconds: f64::from(seconds),
            requests: None,
            work,
            query: None,
            servers: self.servers.clone(),
        };
        let measured = load::run(&load, &connections, done).await?;
        if measured.latency_us.is_empty() {
            let why = measured.first_error.as_deref().unwrap_or("none ended in time");
            bail!("no request of {clients} clients succeeded: {why}");
        }
        Ok(measured)
    }
}

/// Connections to one node.
pub(super) fn connections(address: &str, clients: usize) -> anyhow::Result<Vec<Client>> {
    let one = |_| Client::builder().endpoints([address]).deadline(DEADLINE).streams(true).build();
    Ok((0..CONNECTIONS.min(clients)).map(one).collect::<Result<_, _>>()?)
}

/// Has a node take an image now.
pub(super) async fn take_image(endpoint: &str) -> anyhow::Result<pb::TakeSnapshotResponse> {
    let client = Client::builder().endpoints([endpoint]).build()?;
    let taken = client.admin(endpoint).await?.take_snapshot(pb::TakeSnapshotRequest {}).await;
    Ok(taken.map_err(|status| anyhow!("{endpoint}: {}", status.message()))?.into_inner())
}

/// Waits until a node's status is as it should be.
pub(super) async fn wait_status(
    cluster: &Cluster,
    index: usize,
    what: &str,
    patience: Duration,
    reached: impl Fn(&pb::StatusResponse) -> bool,
) -> anyhow::Result<pb::StatusResponse> {
    let began = Instant::now();
    loop {
        let answer = cluster.client().status(cluster.endpoint(index), false).await;
        match answer {
            Ok(status) if reached(&status) => return Ok(status),
            answer if began.elapsed() > patience => {
                let last = answer.map_or_else(|error| error.to_string(), |s| format!("{:?} {}", s.state(), s.detail));
                bail!("{} did not {what} within {} s: {last}", cluster.name(index), patience.as_secs());
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// Waits until a node has applied what the primary has committed now.
pub(super) async fn wait_caught_up(cluster: &Cluster, index: usize, patience: Duration) -> anyhow::Result<()> {
    let primary = cluster.wait_primary().await?;
    let goal = cluster.client().status(cluster.endpoint(primary), false).await.context("the primary doesn't answer")?;
    wait_status(cluster, index, "catch up", patience, |s| s.applied_log_index >= goal.committed_log_index).await?;
    Ok(())
}
