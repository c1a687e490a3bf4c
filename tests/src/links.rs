//! Cutting nodes off from each other while clients go on reaching all of them: rules of the kernel's packet filter, which needs root.
//!
//! All nodes are at 127.0.0.1, and a node calls its peers from any port, so an address tells nobody apart. Each node therefore runs in a group of its own
//! (the process's group id), and the filter notes at each connection's first packet which group opened it. From then on both ports of a
//! packet say which node sent it and to whom: data and acknowledgements of a connection go opposite ways, whoever opened it.
//! What is cut is lost where it arrives. The sender's kernel sends again, ever more seldom, as it does when a cable is out.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// All of our tables' names begin so; the process's id and a number follow.
const TABLES: &str = "replicator_links_";
/// The group of the node with index 0. Rules look at it together with the cluster's ports, so it may belong to somebody else too.
const FIRST_GROUP: u32 = 61_000;
/// Tells the tables of one process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The links between the nodes of one cluster, by the nodes' indexes. All whole at first, and when this is dropped.
#[derive(Debug)]
pub struct Links {
    table: String,
    peer_ports: Vec<u16>,
}

impl Links {
    /// Prepares the filter for nodes that listen for peers at these ports, and that are started afterwards, each in its [`Links::group`].
    ///
    /// # Errors
    /// If this isn't root, or nft is missing, or the kernel refuses the rules.
    pub(crate) fn new(peer_ports: Vec<u16>) -> Result<Self> {
        remove_stale_tables()?;
        let table = format!("{TABLES}{}_{}", id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        nft(&rules(&table, &peer_ports))?;
        Ok(Self { table, peer_ports })
    }

    /// The group that a node must run in.
    pub(crate) fn group(index: usize) -> u32 {
        FIRST_GROUP + u32::try_from(index).expect("a cluster has few nodes")
    }

    /// Loses, from now on, what the first node of each pair sends to the second.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut(&self, pairs: &[(usize, usize)]) -> Result<()> {
        let Self { table, peer_ports } = self;
        let mut orders = String::new();
        for &(from, to) in pairs {
            // A mark is an index counted from 1: 0 is the mark of everything else.
            writeln!(orders, "add element inet {table} to_listener {{ {} . {} }}", from + 1, peer_ports[to])?;
            writeln!(orders, "add element inet {table} to_caller {{ {} . {} }}", peer_ports[from], to + 1)?;
        }
        nft(&orders)
    }

    /// Makes all links whole.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        let table = &self.table;
        nft(&format!("flush set inet {table} to_listener\nflush set inet {table} to_caller\n"))
    }

    /// How many packets were lost so far.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn packets_lost(&self) -> Result<u64> {
        let told = output(&["-j", "list", "counter", "inet", &self.table, "lost"])?;
        let told: Value = serde_json::from_str(&told).context("nft printed no JSON")?;
        let counters = told["nftables"].as_array().into_iter().flatten();
        let packets = counters.filter_map(|object| object["counter"]["packets"].as_u64()).next();
        packets.with_context(|| format!("no counter in {told}"))
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}\n", self.table)) {
            eprintln!("remove it by hand, with `nft delete table inet {}`: {error:#}", self.table);
        }
    }
}

fn rules(table: &str, peer_ports: &[u16]) -> String {
    let ports = peer_ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let first_packet = format!("    oifname lo tcp dport {{ {ports} }} tcp flags & (syn | ack) == syn");
    // An update leaves an element's value as it is, and ports are used again by others.
    let mut callers = format!("{first_packet} delete @callers {{ tcp sport . tcp dport : 0 }}\n");
    for index in 0..peer_ports.len() {
        let (group, mark) = (Links::group(index), index + 1);
        callers += &format!("{first_packet} meta skgid {group} update @callers {{ tcp sport . tcp dport : {mark} }}\n");
    }
    format!(
        "table inet {table} {{
  counter lost {{ }}
  map callers {{ type inet_service . inet_service : mark; flags dynamic; size 65535; }}
  set to_listener {{ type mark . inet_service; }}
  set to_caller {{ type inet_service . mark; }}
  chain sent {{
    type filter hook output priority filter; policy accept;
{callers}  }}
  chain received {{
    type filter hook input priority filter; policy accept;
    iifname lo tcp dport {{ {ports} }} meta mark set tcp sport . tcp dport map @callers meta mark . tcp dport @to_listener counter name lost drop
    iifname lo tcp sport {{ {ports} }} meta mark set tcp dport . tcp sport map @callers tcp sport . meta mark @to_caller counter name lost drop
  }}
}}
"
    )
}

/// Removes the tables of processes that were killed before they could.
fn remove_stale_tables() -> Result<()> {
    let told = output(&["-j", "list", "tables"])?;
    let told: Value = serde_json::from_str(&told).context("nft printed no JSON")?;
    let names = told["nftables"].as_array().into_iter().flatten().filter_map(|object| object["table"]["name"].as_str());
    for name in names {
        let owner = name.strip_prefix(TABLES).and_then(|rest| rest.split('_').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            nft(&format!("delete table inet {name}\n"))?;
        }
    }
    Ok(())
}

const MISSING: &str = "can't run nft, of the package nftables";

/// Carries out orders, all or none.
fn nft(orders: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context(MISSING)?;
    child.stdin.take().context("nft has no standard input")?.write_all(orders.as_bytes())?;
    let ended = child.wait_with_output()?;
    ensure!(ended.status.success(), "nft refused {orders:?}: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

fn output(args: &[&str]) -> Result<String> {
    let ended = Command::new("nft").args(args).output().context(MISSING)?;
    if !ended.status.success() {
        bail!("nft {}: {} (`make faults` must run as root)", args.join(" "), String::from_utf8_lossy(&ended.stderr));
    }
    Ok(String::from_utf8(ended.stdout)?)
}
