//! A cluster of node processes.

use std::{
    ops::{Index, IndexMut},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use forgetful::Disk;
use replicator_client::{
    Client, Consistency,
    proto::{NodeState, StatusResponse, WholeState, replicator_service_client::ReplicatorServiceClient},
};
use serde_json::Value;
use tonic::transport::Channel;

use crate::{Links, NodeProcess, Ran, free_ports, programs, run, until};

/// Nodes, by index from 0; their names count from `n1`.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<NodeProcess>,
    dir: PathBuf,
    client: Client,
    /// The nodes' disks, if they have disks of their own: after the nodes, which use them.
    pub(crate) disks: Vec<Disk>,
}

impl Index<usize> for Cluster {
    type Output = NodeProcess;

    fn index(&self, index: usize) -> &NodeProcess {
        &self.nodes[index]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, index: usize) -> &mut NodeProcess {
        &mut self.nodes[index]
    }
}

impl Cluster {
    /// Chooses ports and writes configurations, each with `settings` as its last lines. Witnesses are called `w1`, …, and come last.
    pub(crate) fn prepare(dir: PathBuf, replicas: usize, witnesses: usize, settings: &str) -> Result<Self> {
        let names: Vec<(String, bool)> = (1..=replicas)
            .map(|number| (format!("n{number}"), false))
            .chain((1..=witnesses).map(|number| (format!("w{number}"), true)))
            .collect();
        // Ascending, as a chain begins with the lowest.
        let mut ports = free_ports(2 * names.len())?;
        ports.sort_unstable();
        let nodes: Vec<NodeProcess> = names
            .iter()
            .zip(ports.chunks_exact(2))
            .map(|((name, witness), ports)| {
                let mut node = NodeProcess::new(&dir, name, ports[0], ports[1]);
                node.witness = *witness;
                node
            })
            .collect();
        for node in &nodes {
            node.configure(nodes.iter().filter(|peer| peer.name != node.name), settings)?;
        }
        let addresses = nodes.iter().map(|node| node.client_address.clone());
        let client = Client::builder().endpoints(addresses).deadline(Duration::from_secs(2)).build()?;
        Ok(Self { nodes, dir, client, disks: Vec::new() })
    }

    /// Puts the links between the nodes, none of which may run yet, into the caller's hand.
    ///
    /// # Errors
    /// If this isn't root, or nft is missing.
    pub fn links(&mut self) -> Result<Links> {
        let port = |node: &NodeProcess| node.peer_address.rsplit(':').next().and_then(|port| port.parse().ok());
        let ports: Option<Vec<u16>> = self.nodes.iter().map(port).collect();
        let links = Links::new(ports.context("a peer address has no port")?)?;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            ensure!(node.pid().is_none(), "{} runs already, in a group that no rule knows", node.name);
            node.group = Some(Links::group(index));
        }
        Ok(links)
    }

    /// The folder with the nodes' folders, configurations and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: a cluster has nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All client addresses, separated by commas.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.nodes.iter().map(|node| node.client_address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// All nodes but `index`.
    #[must_use]
    pub fn others(&self, index: usize) -> Vec<usize> {
        (0..self.len()).filter(|&other| other != index).collect()
    }

    /// A new client of all nodes, which is slow to give up and quick to ask another node.
    ///
    /// # Errors
    /// Never: the addresses are good.
    pub fn client(&self) -> Result<Client> {
        let addresses = self.nodes.iter().map(|node| node.client_address.clone());
        let client = Client::builder().endpoints(addresses).deadline(Duration::from_secs(30));
        Ok(client.attempt_timeout(Duration::from_millis(500)).build()?)
    }

    /// A new client of one node.
    ///
    /// # Errors
    /// Never: the address is good.
    pub fn client_of(&self, index: usize) -> Result<Client> {
        let address = self[index].client_address.clone();
        Ok(Client::builder().endpoints([address]).deadline(Duration::from_secs(10)).build()?)
    }

    /// The generated client of one node.
    ///
    /// # Errors
    /// If it doesn't listen.
    pub async fn node(&self, index: usize) -> Result<ReplicatorServiceClient<Channel>> {
        Ok(self.client.node(&self[index].client_address).await?)
    }

    /// A new connection to one node.
    ///
    /// # Errors
    /// If it doesn't listen.
    pub async fn channel(&self, index: usize) -> Result<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self[index].client_address))?;
        Ok(endpoint.connect().await?)
    }

    /// Starts all nodes, and waits until each answers.
    ///
    /// # Errors
    /// If one doesn't.
    pub async fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start(&[])?;
        }
        for index in 0..self.len() {
            self.wait_answers(index).await?;
        }
        Ok(())
    }

    /// Makes the cluster with the program `replicator init`, and waits until every node serves.
    ///
    /// # Errors
    /// If it fails.
    pub async fn init(&mut self, module: &Path, flags: &[&str]) -> Result<()> {
        self.try_init(module, flags).await?.exits(0)?;
        self.wait_all_serve().await
    }

    /// Runs `replicator init`.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn try_init(&self, module: &Path, flags: &[&str]) -> Result<Ran> {
        let module = module.display().to_string();
        let endpoints = self.endpoints();
        let args = ["init", "--endpoints", &endpoints, "--module", &module].into_iter().chain(flags.iter().copied());
        run(&programs::replicator(), args, &[]).await
    }

    /// Runs `replicator` with these arguments and the cluster's endpoints in the environment.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn replicator(&self, args: &[&str]) -> Result<Ran> {
        run(&programs::replicator(), args, &[("REPLICATOR_ENDPOINTS", &self.endpoints())]).await
    }

    /// Starts a node again, and waits until it serves.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn restart(&mut self, index: usize) -> Result<StatusResponse> {
        self.nodes[index].start(&[])?;
        self.wait_serves(index).await
    }

    /// kill -9 of several nodes at once.
    ///
    /// # Errors
    /// If one doesn't run.
    pub fn kill(&mut self, indexes: &[usize]) -> Result<()> {
        for &index in indexes {
            self.nodes[index].send_kill()?;
        }
        for &index in indexes {
            self.nodes[index].kill()?;
        }
        Ok(())
    }

    /// What a node tells of itself.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn status(&self, index: usize) -> Result<StatusResponse> {
        Ok(self.client.status(&self[index].client_address, false).await?)
    }

    /// Waits until a node answers at all.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn wait_answers(&self, index: usize) -> Result<StatusResponse> {
        self.wait_status(index, "answers", |_| true).await
    }

    /// Waits until a node's machine goes on from a peer's image.
    ///
    /// # Errors
    /// With its last status, if it doesn't.
    pub async fn wait_whole_state(&self, index: usize) -> Result<WholeState> {
        let entered = |status: &StatusResponse| status.restart.as_ref()?.whole_state.clone().filter(|w| w.entered);
        let goes_on = |status: &StatusResponse| entered(status).is_some();
        let status = self.wait_status(index, "goes on from the whole state", goes_on).await?;
        entered(&status).context("no whole state")
    }

    /// Waits until a node's status is as wanted.
    ///
    /// # Errors
    /// With its last status, if it isn't.
    pub async fn wait_status(
        &self,
        index: usize,
        what: &str,
        wanted: impl Fn(&StatusResponse) -> bool,
    ) -> Result<StatusResponse> {
        let what = format!("{} {what}", self[index].name);
        let reached = until(&what, async || {
            let status = self.status(index).await?;
            ensure!(wanted(&status), "{:?} {} {status:?}", status.state(), status.detail);
            Ok(status)
        });
        reached.await.with_context(|| {
            let log = self[index].told(0).unwrap_or_default();
            format!("{}'s log ends with: {}", self[index].name, log.lines().next_back().unwrap_or_default())
        })
    }

    /// Waits until a node takes part, is a voter, knows a primary and has applied all that it knows to be committed.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn wait_serves(&self, index: usize) -> Result<StatusResponse> {
        self.wait_status(index, "serves", |status| {
            matches!(status.state(), NodeState::Primary | NodeState::Follower)
                && !status.module_sha256.is_empty()
                && !status.primary_node_id.is_empty()
                && status.applied_log_index >= status.committed_log_index
        })
        .await
    }

    /// Waits until every node serves.
    ///
    /// # Errors
    /// If one doesn't.
    pub async fn wait_all_serve(&self) -> Result<()> {
        for index in self.replicas() {
            self.wait_serves(index).await?;
        }
        Ok(())
    }

    /// The nodes that are no witnesses.
    pub fn replicas(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|&index| !self[index].witness)
    }

    /// Waits for a primary among these nodes that confirms itself with a linearizable read.
    ///
    /// # Errors
    /// If there is none.
    pub async fn wait_primary_among(&self, indexes: &[usize]) -> Result<usize> {
        until("a primary is there", async || {
            for &index in indexes {
                let status = self.status(index).await;
                if status.is_ok_and(|status| status.state() == NodeState::Primary) {
                    let client = self.client_of(index)?.with_deadline(Duration::from_secs(2));
                    client.query("get nothing", Consistency::Linearizable, None).await?;
                    return Ok(index);
                }
            }
            anyhow::bail!("none of them says that it is")
        })
        .await
    }

    /// Waits for a primary.
    ///
    /// # Errors
    /// If there is none.
    pub async fn wait_primary(&self) -> Result<usize> {
        self.wait_primary_among(&(0..self.len()).collect::<Vec<_>>()).await
    }

    /// Compares the replicas with `replicator status --verify`, and checks that all of them were equal.
    ///
    /// # Errors
    /// If they were not, or one didn't answer.
    pub async fn verify(&self) -> Result<Value> {
        self.verify_some(self.replicas().count()).await
    }

    /// [`Cluster::verify`] of the `replicas` nodes that run.
    ///
    /// # Errors
    /// If they were not equal, or one didn't answer.
    pub async fn verify_some(&self, replicas: usize) -> Result<Value> {
        let told = self.replicator(&["status", "--verify", "-o", "json"]).await?.exits(0)?.json()?;
        let verified = &told["verified"];
        ensure!(verified["result"] == "equal" && verified["replicas"] == replicas, "not all are equal: {verified}");
        Ok(verified.clone())
    }

    /// Reads a counter of the counter module at one node, linearizably.
    ///
    /// # Errors
    /// If the node can't answer.
    pub async fn counter_at(&self, index: usize, name: &str) -> Result<u64> {
        let answer = self.client_of(index)?.query(format!("get {name}"), Consistency::Linearizable, None).await?;
        let text = String::from_utf8(answer.response.to_vec())?;
        text.parse().with_context(|| format!("the counter module answered {text:?}"))
    }

    /// Checks that every node has this value for a counter.
    ///
    /// # Errors
    /// If one has another.
    pub async fn expect_counter(&self, name: &str, value: u64) -> Result<()> {
        for index in self.replicas() {
            let found = self.counter_at(index, name).await?;
            ensure!(found == value, "{value} were acknowledged for {name}, and {} has {found}", self[index].name);
        }
        Ok(())
    }
}
