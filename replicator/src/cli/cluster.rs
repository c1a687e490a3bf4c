//! Nodes as child processes: what `demo`, `bench` and `torture` run on.

use std::{
    fs, io,
    net::TcpListener,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use futures::future::select_all;
use replicator_client::Client;
use replicator_proto::replicator::v1::{self as pb, NodeState};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

use super::{
    init,
    shape::Shape,
    status::{self, Surveyed},
};
use crate::{config::NODES_MAX, node::FOUND_OUT};

/// How long a cluster may take for anything: a start, an election, catching up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Ports that the kernel doesn't give to outgoing connections, so that a dead node's port stays free for it.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

struct Node {
    name: String,
    witness: bool,
    client_address: String,
    peer_address: String,
    child: Option<Child>,
    /// Held, because a child that is waited for loses its own handle, and a node ends with its standard input.
    stdin: Option<ChildStdin>,
}

/// What a new cluster is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) shape: Shape,
    pub(super) place: Place<'a>,
}

/// Where the nodes' folders go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// Into this folder, to stay there.
    Kept(&'a Path),
    /// Into a new folder in this one (none: where temporary files go), named after the command, to be removed at the end.
    Temporary { within: Option<&'a Path>, command: &'a str },
}

/// How a cluster's nodes use their disks, where they don't do it as any node does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Storage {
    /// Bytes of log between two images, from 64 KiB; none: as the program has it.
    pub(super) image_log_bytes: Option<u64>,
    /// Bytes per second of an image that is given to a peer; none: as the program has it.
    pub(super) transfer_bytes_per_sec: Option<NonZeroU64>,
    /// A node's data lies in a folder of its own in the node's ([`Cluster::node_dir`]), which can then be a disk.
    pub(super) within_disks: bool,
}

/// A cluster of child processes, which die with this one.
pub(super) struct Cluster {
    nodes: Vec<Node>,
    dir: PathBuf,
    storage: Storage,
    temporary: bool,
    client: Client,
}

/// A node that ended without being told to.
pub(super) struct Died {
    pub(super) index: usize,
    pub(super) node: String,
    pub(super) how: ExitStatus,
}

impl Cluster {
    /// Chooses ports and writes the nodes' configurations.
    pub(super) fn prepare(setup: Setup<'_>) -> anyhow::Result<Self> {
        Self::prepare_with(setup, Storage::default())
    }

    /// The same, with nodes that use their disks otherwise.
    pub(super) fn prepare_with(setup: Setup<'_>, storage: Storage) -> anyhow::Result<Self> {
        let Setup { shape, place } = setup;
        let replicas = (1..=shape.replicas).map(|number| (format!("n{number}"), false));
        let witnesses = (1..=shape.witnesses).map(|number| (format!("w{number}"), true));
        let names: Vec<(String, bool)> = replicas.chain(witnesses).collect();
        let (dir, temporary) = match place {
            Place::Kept(dir) => (dir.to_owned(), false),
            Place::Temporary { within, command } => {
                let folder = format!("replicator-{command}-{}", std::process::id());
                (within.map_or_else(std::env::temp_dir, Path::to_owned).join(folder), true)
            }
        };
        fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let addresses: Vec<[String; 2]> = match used_addresses(&dir)? {
            used if used.is_empty() => {
                let addresses = free_ports(2 * names.len())?.into_iter().map(|port| format!("127.0.0.1:{port}"));
                addresses.collect::<Vec<_>>().chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect()
            }
            used if used.iter().map(|(name, _)| name).eq(names.iter().map(|(name, _)| name)) => {
                used.into_iter().map(|(_, addresses)| addresses).collect()
            }
            used => {
                let used: Vec<String> = used.into_iter().map(|(name, _)| name).collect();
                let nodes = used.iter().filter(|name| name.starts_with('n')).count();
                bail!("{} holds a cluster of {}; give --nodes {nodes}, and its mode", dir.display(), used.join(", "))
            }
        };
        let nodes: Vec<Node> = names
            .into_iter()
            .zip(addresses)
            .map(|((name, witness), [client_address, peer_address])| Node {
                name,
                witness,
                client_address,
                peer_address,
                child: None,
                stdin: None,
            })
            .collect();
        for node in &nodes {
            let path = dir.join(format!("{}.toml", node.name));
            let data = data_dir(&dir, &node.name, storage);
            fs::write(&path, config(node, &nodes, &data) + &shape.settings() + &storage.settings())
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        let client = Client::builder()
            .endpoints(nodes.iter().filter(|node| !node.witness).map(|node| node.client_address.clone()))
            .deadline(Duration::from_secs(2))
            .build()?;
        Ok(Self { nodes, dir, storage, temporary, client })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A node's folder, which holds nothing but its data, or the folder of that. Its log lies beside it.
    pub(super) fn node_dir(&self, index: usize) -> PathBuf {
        self.dir.join(self.name(index))
    }

    /// The folder that holds a node's data, as its configuration has it.
    pub(super) fn data_dir(&self, index: usize) -> PathBuf {
        data_dir(&self.dir, self.name(index), self.storage)
    }

    /// A node's client address.
    pub(super) fn endpoint(&self, index: usize) -> &str {
        &self.nodes[index].client_address
    }

    /// Ends one node, politely.
    pub(super) async fn stop_one(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().ok_or_else(|| anyhow!("{} doesn't run", node.name))?;
        drop(node.stdin.take());
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(ended) => drop(ended?),
            Err(_) => bail!("{} did not end within {} s", node.name, PATIENCE.as_secs()),
        }
        Ok(())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The replicas' client addresses.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| !node.witness).map(|node| node.client_address.clone()).collect()
    }

    /// The client addresses of all nodes, witnesses too.
    pub(super) fn all_endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_address.clone()).collect()
    }

    pub(super) fn is_witness(&self, index: usize) -> bool {
        self.nodes[index].witness
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.nodes[index].name
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn is_running(&self, index: usize) -> bool {
        self.nodes[index].child.is_some()
    }

    /// The nodes that run.
    pub(super) fn pids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.child.as_ref()?.id()?)))
    }

    /// Starts all nodes, and waits until each answers.
    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        for index in 0..self.nodes.len() {
            self.spawn(index)?;
        }
        for index in 0..self.nodes.len() {
            self.wait_until(index, "answer", |_| true).await?;
        }
        Ok(())
    }

    /// Founds the cluster, unless the folders hold one already.
    pub(super) async fn found(&self, module: &Path) -> anyhow::Result<()> {
        let first = self.client.status(&self.nodes[0].client_address, false).await?;
        if first.cluster_id.is_empty() && first.state() != NodeState::Checking {
            init::make_cluster(
                &self.all_endpoints(),
                init::read(module)?.into(),
                bytes::Bytes::new(),
                pb::Limits::default(),
            )
            .await?;
        }
        for index in 0..self.nodes.len() {
            self.wait_serving(index).await?;
        }
        Ok(())
    }

    /// Waits until a node takes part and has the module.
    pub(super) async fn wait_serving(&self, index: usize) -> anyhow::Result<pb::StatusResponse> {
        if self.nodes[index].witness {
            let knows = |status: &pb::StatusResponse| {
                status.state() == NodeState::Witness && !status.primary_node_id.is_empty()
            };
            return self.wait_until(index, "take part", knows).await;
        }
        let serving = |status: &pb::StatusResponse| {
            matches!(status.state(), NodeState::Primary | NodeState::Follower)
                && !status.module_sha256.is_empty()
                && !status.primary_node_id.is_empty()
                && status.detail.is_empty()
                && status.applied_log_index >= status.committed_log_index
        };
        self.wait_until(index, "serve", serving).await
    }

    /// Waits until a replica runs that module.
    pub(super) async fn wait_module(&self, index: usize, module: &[u8]) -> anyhow::Result<pb::StatusResponse> {
        self.wait_until(index, "run the module", |status| status.module_sha256 == module).await
    }

    async fn wait_until(
        &self,
        index: usize,
        what: &str,
        reached: impl Fn(&pb::StatusResponse) -> bool,
    ) -> anyhow::Result<pb::StatusResponse> {
        let node = &self.nodes[index];
        let began = Instant::now();
        loop {
            let answer = self.client.status(&node.client_address, false).await;
            match answer {
                Ok(status) if reached(&status) => return Ok(status),
                answer if began.elapsed() > PATIENCE => {
                    let last = answer.map_or_else(|e| e.to_string(), |s| format!("{:?} {}", s.state(), s.detail));
                    bail!("{} did not {what} within {} s: {last}", node.name, PATIENCE.as_secs());
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// The index of the node that leads, as a majority sees it.
    pub(super) async fn wait_primary(&self) -> anyhow::Result<usize> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let nodes = self.survey().await;
            let primary =
                nodes.iter().filter_map(|node| node.status.as_ref().ok()).find(|s| s.state() == NodeState::Primary);
            let index = primary.and_then(|primary| self.nodes.iter().position(|node| node.name == primary.node_id));
            if let Some(index) = index {
                return Ok(index);
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("no primary within {} s", PATIENCE.as_secs())
    }

    pub(super) async fn survey(&self) -> Vec<Surveyed> {
        status::survey(&self.client, &self.all_endpoints()).await
    }

    /// kill -9. Returns the pid it had.
    pub(super) async fn kill(&mut self, index: usize) -> anyhow::Result<u32> {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().ok_or_else(|| anyhow!("{} doesn't run", node.name))?;
        let pid = child.id().unwrap_or_default();
        child.kill().await.with_context(|| format!("can't kill {}", node.name))?;
        Ok(pid)
    }

    /// Deletes the data of a node that doesn't run: it will start as on a new disk.
    pub(super) fn wipe(&self, index: usize) -> anyhow::Result<()> {
        if self.is_running(index) {
            bail!("{} runs on the folder that shall be deleted", self.name(index));
        }
        let dir = self.data_dir(index);
        fs::remove_dir_all(&dir).with_context(|| format!("can't delete {}", dir.display()))
    }

    /// Stops a node where it stands, or lets it go on.
    pub(super) fn signal(&self, index: usize, signal: Signal) -> anyhow::Result<()> {
        let node = &self.nodes[index];
        let pid = node.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.with_context(|| format!("{} doesn't run", node.name))?;
        kill_process(pid, signal).with_context(|| format!("can't signal {}", node.name))
    }

    /// Starts a node, which may take its time to answer.
    pub(super) fn spawn(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let log = self.dir.join(format!("{}.log", node.name));
        let log = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        // The child ends when its standard input does, so it never outlives this process, however that dies.
        command
            .args([if node.witness { "witness" } else { "node" }, "--exit-with-stdin", "--config"])
            .arg(self.dir.join(format!("{}.toml", node.name)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("REPLICATOR_")) {
            command.env_remove(key);
        }
        let mut child = command.spawn().context("can't start a node")?;
        node.stdin = child.stdin.take();
        node.child = Some(child);
        Ok(())
    }

    /// Starts a node again, and waits until it answers. Returns its pid.
    pub(super) async fn restart(&mut self, index: usize) -> anyhow::Result<u32> {
        self.spawn(index)?;
        self.wait_until(index, "answer", |_| true).await?;
        Ok(self.nodes[index].child.as_ref().and_then(Child::id).unwrap_or_default())
    }

    /// Ends when a node has ended by itself.
    pub(super) async fn wait_for_death(&mut self) -> anyhow::Result<Died> {
        let running = self.nodes.iter_mut().enumerate().filter_map(|(index, node)| {
            let (name, child) = (node.name.clone(), node.child.as_mut()?);
            Some(Box::pin(async move { (index, name, child.wait().await) }))
        });
        let ((index, node, how), ..) = select_all(running).await;
        self.nodes[index].child = None;
        Ok(Died { index, node, how: how? })
    }

    /// The nodes that have ended by themselves, and how.
    pub(super) fn fallen(&mut self) -> Vec<String> {
        let fallen = self.nodes.iter_mut().filter_map(|node| {
            let how = node.child.as_mut()?.try_wait().ok()??;
            Some(format!("{} ended by itself ({how}), as its log tells", node.name))
        });
        fallen.collect()
    }

    /// The replicas that were found to differ from the others, as their logs tell; also those that were made anew since.
    pub(super) fn found_out(&self) -> Vec<String> {
        let found = self.nodes.iter().filter_map(|node| {
            let log = fs::read(self.dir.join(format!("{}.log", node.name))).ok()?;
            let log = String::from_utf8_lossy(&log);
            let line = log.lines().find(|line| line.contains(FOUND_OUT))?;
            Some(format!("{} was quarantined: {line}", node.name))
        });
        found.collect()
    }

    /// Ends all nodes, politely: their standard input ends.
    pub(super) async fn stop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                drop(node.stdin.take());
                if tokio::time::timeout(Duration::from_secs(3), child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
    }

    /// Removes the folder if it is ours.
    pub(super) fn remove_temporary(&self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A module that was built or installed beside this program, by its name.
pub(super) fn bundled_module(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("can't tell where this program is")?;
    let folder = here.parent().unwrap_or(Path::new("."));
    let places = [folder.join("modules"), folder.join("../modules"), folder.join("../share/replicator/modules")];
    let found = places.iter().map(|place| place.join(format!("{name}.wasm"))).find(|file| file.is_file());
    found.ok_or_else(|| {
        anyhow!(
            "{name}.wasm is not beside this program (looked in {}); run `make`, or give --module",
            places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
        )
    })
}

/// The nodes whose folders are there already, with their client and peer addresses: members know each other by them.
fn used_addresses(dir: &Path) -> anyhow::Result<Vec<(String, [String; 2])>> {
    let mut used = Vec::new();
    for name in ["n", "w"].into_iter().flat_map(|kind| (1..=NODES_MAX).map(move |number| format!("{kind}{number}"))) {
        let path = dir.join(format!("{name}.toml"));
        let config = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            config => config.with_context(|| format!("can't read {}", path.display()))?,
        };
        let config: toml::Table = config.parse().with_context(|| format!("{} is damaged", path.display()))?;
        let address = |key: &str| {
            let address = config.get(key).and_then(toml::Value::as_str);
            let address = address.with_context(|| format!("{} has no {key}", path.display()))?;
            match TcpListener::bind(address) {
                Ok(_) => Ok(address.to_owned()),
                Err(error) => Err(error).with_context(|| {
                    format!("the cluster in {} can't listen on {address}; does it run already?", dir.display())
                }),
            }
        };
        used.push((name, [address("client_address")?, address("peer_address")?]));
    }
    Ok(used)
}

impl Storage {
    /// The lines that every node's configuration ends with.
    fn settings(&self) -> String {
        let log_bytes = self.image_log_bytes.map(|bytes| format!("log_bytes = {bytes}\n"));
        let rate = self.transfer_bytes_per_sec.map(|rate| format!("transfer_bytes_per_sec = {rate}\n"));
        let lines: String = log_bytes.into_iter().chain(rate).collect();
        if lines.is_empty() { lines } else { format!("\n[images]\n{lines}") }
    }
}

fn data_dir(dir: &Path, node: &str, storage: Storage) -> PathBuf {
    let folder = dir.join(node);
    if storage.within_disks { folder.join("data") } else { folder }
}

fn config(node: &Node, nodes: &[Node], data: &Path) -> String {
    let peers = nodes.iter().filter(|peer| peer.name != node.name);
    let peers: String =
        peers.map(|p| format!("    {{ name = \"{}\", peer_address = \"{}\" }},\n", p.name, p.peer_address)).collect();
    let Node { name, client_address, peer_address, .. } = node;
    // A JSON string is a TOML one too, whatever the path holds.
    let data = serde_json::Value::from(data.display().to_string());
    format!(
        "name = \"{name}\"\ndata_dir = {data}\nclient_address = \"{client_address}\"\npeer_address = \"{peer_address}\"\n\
         peers = [\n{peers}]\n"
    )
}

/// Ports of 127.0.0.1 that nobody listens on now, from a random place on.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut seed = [0; 2];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no random bytes: {error}"))?;
    let span = usize::from(PORTS.end - PORTS.start);
    let start = usize::from(u16::from_le_bytes(seed));
    let mut held = Vec::new();
    for step in 0..span {
        let port = PORTS.start + u16::try_from((start + step) % span).unwrap_or(0);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => held.push((port, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("can't find free ports on 127.0.0.1"),
        }
        if held.len() == count {
            // Ascending: a chain begins with the lowest, which is then that of n1.
            let mut ports: Vec<u16> = held.into_iter().map(|(port, _)| port).collect();
            ports.sort_unstable();
            return Ok(ports);
        }
    }
    bail!("fewer than {count} ports are free on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NodeConfig, NodeFlags};

    #[test]
    fn nodes_read_the_settings_of_their_storage() {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup { shape: Shape::majority(3), place: Place::Kept(folder.path()) };
        let storage = Storage { image_log_bytes: Some(65_536), within_disks: true, ..Storage::default() };
        let cluster = Cluster::prepare_with(setup, storage).unwrap();
        let flags = NodeFlags { config: Some(cluster.dir().join("n2.toml")), ..NodeFlags::default() };
        let config = NodeConfig::load(&flags, false).unwrap();
        assert_eq!(config.images.log_bytes.0, 65_536);
        assert_eq!((config.data_dir.clone(), cluster.data_dir(1)), (cluster.node_dir(1).join("data"), config.data_dir));
    }

    #[test]
    fn a_used_folder_keeps_its_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let prepare = |nodes| {
            let shape = Shape::majority(nodes);
            Cluster::prepare(Setup { shape, place: Place::Kept(folder.path()) })
        };
        let first = prepare(3).unwrap().endpoints();
        assert_eq!(prepare(3).unwrap().endpoints(), first, "its members would not find each other");
        let error = prepare(5).err().unwrap().to_string();
        assert!(error.contains("holds a cluster of n1, n2, n3; give --nodes 3"), "{error}");
        let _taken = TcpListener::bind(&first[1]).unwrap();
        let error = prepare(3).err().unwrap().to_string();
        assert!(error.contains(&first[1]) && error.contains("does it run already?"), "{error}");
    }
}
