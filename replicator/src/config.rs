//! A node's configuration: flags over environment over file.
//!
//! Nothing in here can change a result; what can is in the genesis entry, equal on all nodes (safety rule 16).

use std::{collections::BTreeSet, fmt, fs, num::NonZeroU64, path::PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::replication::majority::Timing;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has a bad key or value. The message names line and column, and shows the place.
    #[error("{}: {source}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Something is given nowhere.
    #[error("{key} is not set; give --{flag}, set {env}, or write `{key} = …` into the file that --config names")]
    Missing {
        /// As in the file.
        key: &'static str,
        /// As a flag.
        flag: &'static str,
        /// As an environment variable.
        env: &'static str,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// The most nodes of a chain, witnesses counted.
pub const NODES_MAX: usize = 9;

/// A node's name: 1 to 64 letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct NodeName(String);

impl TryFrom<String> for NodeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(format!("{name:?} is no node name: use 1 to 64 letters, digits, '-', '_' or '.'"));
        }
        Ok(Self(name))
    }
}

/// An address to listen on or connect to: `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPort(String);

impl TryFrom<String> for HostPort {
    type Error = String;

    fn try_from(address: String) -> Result<Self, String> {
        let good = address.rsplit_once(':').is_some_and(|(host, port)| {
            let host_good = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
            host_good && port.parse::<u16>().is_ok() && (!host.contains(':') || host.starts_with('['))
        });
        if !good {
            return Err(format!(
                "{address:?} is no address: write host:port, for example 127.0.0.1:7101 or [::1]:7101"
            ));
        }
        Ok(Self(address))
    }
}

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.to_owned().try_into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text!(NodeName);
text!(HostPort);

/// How a cluster replicates. Chosen when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Raft: committed when a majority of 1, 3 or 5 nodes has it.
    #[default]
    Majority,
    /// Chain: committed when all nodes of the current chain have it; witnesses help to decide who those are.
    Chain,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Majority => f.write_str("majority"),
            Self::Chain => f.write_str("chain"),
        }
    }
}

/// When a chain's primary writes its own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PersistOrder {
    /// After the backups have acknowledged.
    #[default]
    BackupsFirst,
    /// At once, while the backups write theirs. It answers last all the same.
    Parallel,
}

impl From<PersistOrder> for replicator_chain::PersistOrder {
    fn from(order: PersistOrder) -> Self {
        match order {
            PersistOrder::BackupsFirst => Self::BackupsFirst,
            PersistOrder::Parallel => Self::Parallel,
        }
    }
}

/// What can be chosen about a chain. Equal on all nodes of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// When the primary writes its own log.
    pub persist_order: PersistOrder,
    /// A shorter chain takes no writes; from 1, which takes any. Decided for good when the chain is founded.
    pub least_length: u32,
}

impl Default for ChainConfig {
    fn default() -> Self {
        Self { persist_order: PersistOrder::default(), least_length: 1 }
    }
}

/// What can be chosen about images. Each node for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// An image is taken after so many bytes of log, from 64 KiB. The log keeps what follows the image before the last, so it has at most about
    /// twice as much.
    pub log_bytes: LogBytes,
    /// How fast images are given to one peer, in bytes per second: a node that catches up shouldn't slow the others. Default: 200,000,000.
    pub transfer_bytes_per_sec: Option<NonZeroU64>,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self { log_bytes: LogBytes(256 << 20), transfer_bytes_per_sec: NonZeroU64::new(200_000_000) }
    }
}

/// Bytes of log between two images: at least 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct LogBytes(pub u64);

impl TryFrom<u64> for LogBytes {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        if bytes < 64 << 10 { Err(format!("{bytes}: must be at least 65536")) } else { Ok(Self(bytes)) }
    }
}

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: NodeName,
    /// Where it listens for peers.
    pub peer_address: HostPort,
}

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is no peer: write NAME=HOST:PORT"))?;
        Ok(Self { name: name.parse()?, peer_address: address.parse()? })
    }
}

/// Timeouts, checked against each other.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTiming {
    heartbeat_ms: u64,
    election_min_ms: u64,
    election_max_ms: u64,
}

impl Default for RawTiming {
    fn default() -> Self {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms } = Timing::default();
        Self { heartbeat_ms, election_min_ms, election_max_ms }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "RawTiming")]
struct CheckedTiming(Timing);

impl TryFrom<RawTiming> for CheckedTiming {
    type Error = String;

    fn try_from(raw: RawTiming) -> Result<Self, String> {
        let RawTiming { heartbeat_ms, election_min_ms, election_max_ms } = raw;
        if !(5..=10_000).contains(&heartbeat_ms) {
            return Err(format!("heartbeat_ms = {heartbeat_ms}: must be 5 to 10000"));
        }
        if election_min_ms < 3 * heartbeat_ms {
            return Err(format!(
                "election_min_ms = {election_min_ms}: must be at least 3 heartbeats, {}",
                3 * heartbeat_ms
            ));
        }
        if election_max_ms <= election_min_ms || election_max_ms > 60_000 {
            return Err(format!("election_max_ms = {election_max_ms}: must be above election_min_ms, at most 60000"));
        }
        Ok(Self(Timing { heartbeat_ms, election_min_ms, election_max_ms }))
    }
}

/// The file, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<NodeName>,
    data_dir: Option<PathBuf>,
    client_address: Option<HostPort>,
    peer_address: Option<HostPort>,
    mode: Option<Mode>,
    log: Option<String>,
    peers: Vec<Peer>,
    timing: Option<CheckedTiming>,
    chain: ChainConfig,
    images: ImageConfig,
}

/// The flags of `replicator node`, each of which overrides the file.
#[derive(Debug, Default, Args)]
pub struct NodeFlags {
    /// The configuration file, TOML
    #[arg(long, env = "REPLICATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name, unique in its cluster
    #[arg(long, env = "REPLICATOR_NAME")]
    pub name: Option<NodeName>,
    /// The folder that holds this node's log, identity and modules; made if it isn't there
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where clients and tools reach this node
    #[arg(long, env = "REPLICATOR_CLIENT_ADDRESS", value_name = "HOST:PORT")]
    pub client_address: Option<HostPort>,
    /// Where the other nodes reach this node
    #[arg(long, env = "REPLICATOR_PEER_ADDRESS", value_name = "HOST:PORT")]
    pub peer_address: Option<HostPort>,
    /// Another node of the cluster; give one for each
    #[arg(long = "peer", env = "REPLICATOR_PEERS", value_name = "NAME=HOST:PORT", value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// How the cluster replicates
    #[arg(long, env = "REPLICATOR_MODE", value_enum)]
    pub mode: Option<Mode>,
    /// Chain mode: when the primary writes its own log
    #[arg(long, env = "REPLICATOR_PERSIST_ORDER", value_enum)]
    pub persist_order: Option<PersistOrder>,
    /// What to log: error, warn, info, debug, trace, or per module as in `info,replicator=debug`
    #[arg(long, env = "REPLICATOR_LOG")]
    pub log: Option<String>,
    /// Set the data folder's content aside (nothing is deleted) and join the cluster anew, as a new disk. For a folder that is
    /// damaged, or an old copy
    #[arg(long)]
    pub rejoin: bool,
}

/// A node's settings, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name.
    pub name: NodeName,
    /// Its folder.
    pub data_dir: PathBuf,
    /// Where clients reach it.
    pub client_address: HostPort,
    /// Where peers reach it.
    pub peer_address: HostPort,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// How the cluster replicates.
    pub mode: Mode,
    /// What to log.
    pub log: String,
    /// Timeouts.
    pub timing: Timing,
    /// Chain mode's settings.
    pub chain: ChainConfig,
    /// When images are taken.
    pub images: ImageConfig,
    /// Whether this node is a witness.
    pub witness: bool,
}

impl NodeConfig {
    /// What a folder's cluster is to this node: its mode, and whether it is a witness there.
    #[must_use]
    pub fn part(&self) -> String {
        if self.witness { format!("{} (witness)", self.mode) } else { self.mode.to_string() }
    }

    /// Puts flags, environment (which clap has read into the flags) and file together.
    ///
    /// # Errors
    /// If the file can't be read or has a bad key or value, something is missing, or settings contradict each other.
    pub fn load(flags: &NodeFlags, witness: bool) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            None => File::default(),
            Some(path) => {
                let text =
                    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                toml::from_str(&text)
                    .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?
            }
        };
        let missing = |key, flag, env| ConfigError::Missing { key, flag, env };
        let config = Self {
            name: flags.name.clone().or(file.name).ok_or_else(|| missing("name", "name", "REPLICATOR_NAME"))?,
            data_dir: flags
                .data_dir
                .clone()
                .or(file.data_dir)
                .ok_or_else(|| missing("data_dir", "data-dir", "REPLICATOR_DATA_DIR"))?,
            client_address: flags
                .client_address
                .clone()
                .or(file.client_address)
                .ok_or_else(|| missing("client_address", "client-address", "REPLICATOR_CLIENT_ADDRESS"))?,
            peer_address: flags
                .peer_address
                .clone()
                .or(file.peer_address)
                .ok_or_else(|| missing("peer_address", "peer-address", "REPLICATOR_PEER_ADDRESS"))?,
            peers: if flags.peers.is_empty() { file.peers } else { flags.peers.clone() },
            // Only a chain has witnesses.
            mode: flags.mode.or(file.mode).unwrap_or(if witness { Mode::Chain } else { Mode::default() }),
            log: flags.log.clone().or(file.log).unwrap_or_else(|| "info".to_owned()),
            timing: file.timing.map_or_else(Timing::default, |checked| checked.0),
            chain: ChainConfig { persist_order: flags.persist_order.unwrap_or(file.chain.persist_order), ..file.chain },
            images: file.images,
            witness,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::from([&self.name]);
        let mut addresses = BTreeSet::from([&self.peer_address]);
        if self.client_address == self.peer_address {
            let both = &self.client_address;
            return Err(ConfigError::Contradiction(format!(
                "client_address and peer_address are both {both}; use two"
            )));
        }
        for peer in &self.peers {
            if !names.insert(&peer.name) {
                let hint = "peers lists the other nodes, each once, without this one";
                return Err(ConfigError::Contradiction(format!("two nodes are called {}; {hint}", peer.name)));
            }
            if !addresses.insert(&peer.peer_address) {
                return Err(ConfigError::Contradiction(format!(
                    "two nodes have the peer address {}",
                    peer.peer_address
                )));
            }
        }
        match (self.mode, names.len()) {
            (Mode::Majority, _) if self.witness => {
                Err(ConfigError::Contradiction("only a chain has witnesses; set mode = \"chain\"".to_owned()))
            }
            (Mode::Majority, 1 | 3 | 5) | (Mode::Chain, 1..=NODES_MAX) => Ok(()),
            (Mode::Chain, n) => Err(ConfigError::Contradiction(format!(
                "{n} nodes: a chain has at most {NODES_MAX}, witnesses among them"
            ))),
            (Mode::Majority, n) => Err(ConfigError::Contradiction(format!(
                "{n} nodes: a majority cluster has 1, 3 or 5, this one among them; list the other ones as [[peers]]"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const GOOD: &str = r#"
name = "n1"
data_dir = "data/n1"
client_address = "127.0.0.1:7101"
peer_address = "127.0.0.1:7201"
peers = [
    { name = "n2", peer_address = "127.0.0.1:7202" },
    { name = "n3", peer_address = "127.0.0.1:7203" },
]

[timing]
heartbeat_ms = 20
election_min_ms = 100
election_max_ms = 200
"#;

    fn load(text: &str, flags: NodeFlags) -> Result<NodeConfig, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let flags = NodeFlags { config: Some(file.path().to_owned()), ..flags };
        NodeConfig::load(&flags, false).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_taken_and_flags_override_it() {
        let flags = NodeFlags { name: Some("n9".parse().unwrap()), ..NodeFlags::default() };
        let config = load(GOOD, flags).unwrap();
        assert_eq!(config.name.as_str(), "n9");
        assert_eq!(config.timing.heartbeat_ms, 20);
        assert_eq!(config.peers.len(), 2);
    }

    #[test]
    fn a_bad_key_or_value_is_named_with_its_line() {
        let bad = [
            ("name = \"n1\"", "nmae = \"n1\"", "line 2", "nmae"),
            ("127.0.0.1:7101", "127.0.0.1", "line 4", "host:port"),
            ("\"n2\"", "\"n 2\"", "line 7", "no node name"),
            ("heartbeat_ms = 20", "heartbeat_ms = \"fast\"", "line 12", "u64"),
            ("election_min_ms = 100", "election_min_ms = 10", "line 11", "at least 3 heartbeats"),
        ];
        for (good, wrong, line, what) in bad {
            let error = load(&GOOD.replace(good, wrong), NodeFlags::default()).unwrap_err();
            assert!(error.contains(line) && error.contains(what), "{wrong}: {error}");
        }
    }

    #[test]
    fn contradictions_and_gaps_say_what_to_do() {
        let error = load(&GOOD.replace("\"n3\"", "\"n2\""), NodeFlags::default()).unwrap_err();
        assert!(error.contains("two nodes are called n2"), "{error}");
        let error = load(&GOOD.replace("7201", "7101"), NodeFlags::default()).unwrap_err();
        assert!(error.contains("use two"), "{error}");
        let error = load(&GOOD.replace("name = \"n1\"", ""), NodeFlags::default()).unwrap_err();
        assert!(error.contains("--name") && error.contains("REPLICATOR_NAME"), "{error}");
        let two = GOOD.replace("    { name = \"n3\", peer_address = \"127.0.0.1:7203\" },\n", "");
        let error = load(&two, NodeFlags::default()).unwrap_err();
        assert!(error.contains("1, 3 or 5"), "{error}");
    }
}
