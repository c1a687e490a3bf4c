//! The nodes that the client knows, their connections, and in which order a call tries them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::future::BoxFuture;
use tonic::transport::{Channel, Endpoint};

use crate::{
    backoff::Spread,
    error::{Error, Result},
};

/// How many addresses beyond the configured ones are learned from nodes.
const LEARNED_MAX: usize = 16;
/// How often an HTTP/2 ping is sent on an open connection. A stopped process keeps its TCP connections; only this and
/// the limits of each attempt find it out.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// How a connection is made. Tests and simulations bring their own.
pub(crate) type Connector =
    Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>;

/// A node, by its place in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeRef(usize);

struct Node {
    address: String,
    endpoint: Endpoint,
    channel: Option<Channel>,
}

struct Nodes {
    list: Vec<Node>,
    /// The node that answered last.
    preferred: Option<usize>,
    spread: Spread,
}

/// All nodes known. Shared by every clone of a client.
pub(crate) struct Pool {
    nodes: Mutex<Nodes>,
    configured: usize,
    connect_timeout: Duration,
    connector: Connector,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn new(addresses: &[String], connect_timeout: Duration, connector: Connector) -> Result<Self> {
        let mut list: Vec<Node> = Vec::new();
        for address in addresses {
            let node = Node::new(address, connect_timeout)?;
            if list.iter().all(|known| known.address != node.address) {
                list.push(node);
            }
        }
        if list.is_empty() {
            return Err(Error::NoEndpoints);
        }
        let configured = list.len();
        let nodes = Mutex::new(Nodes { list, preferred: None, spread: Spread::new() });
        Ok(Self { nodes, configured, connect_timeout, connector })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no code panics while it holds the pool")
    }

    /// The configured addresses, as host:port.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes().list[..self.configured].iter().map(|node| node.address.clone()).collect()
    }

    /// The node at `address`, which is added if it isn't known and there is room.
    pub(crate) fn learn(&self, address: &str) -> Result<Option<NodeRef>> {
        let node = Node::new(address, self.connect_timeout)?;
        let mut nodes = self.nodes();
        if let Some(known) = nodes.list.iter().position(|known| known.address == node.address) {
            return Ok(Some(NodeRef(known)));
        }
        if nodes.list.len() >= self.configured + LEARNED_MAX {
            return Ok(None);
        }
        nodes.list.push(node);
        Ok(Some(NodeRef(nodes.list.len() - 1)))
    }

    /// A connection to `node`, made now if there is none.
    pub(crate) async fn channel(&self, node: NodeRef) -> Result<Channel, tonic::transport::Error> {
        let endpoint = {
            let nodes = self.nodes();
            let entry = &nodes.list[node.0];
            if let Some(channel) = &entry.channel {
                return Ok(channel.clone());
            }
            entry.endpoint.clone()
        };
        let channel = (self.connector)(endpoint).await?;
        self.nodes().list[node.0].channel = Some(channel.clone());
        Ok(channel)
    }

    /// A connection of one's own to `address`, outside the pool's order.
    pub(crate) async fn channel_to(&self, address: &str) -> Result<Channel> {
        let endpoint = Node::new(address, self.connect_timeout)?.endpoint;
        (self.connector)(endpoint).await.map_err(|error| {
            let cause = Box::new(connect_status(address, &error));
            Error::Unavailable { waited: Duration::ZERO, attempts: 1, endpoints: address.to_owned(), cause }
        })
    }

    /// `node` answered: calls begin with it from now on.
    pub(crate) fn answered(&self, node: NodeRef) {
        self.nodes().preferred = Some(node.0);
    }

    /// `node` failed: calls no longer begin with it. `disconnect`: its connection isn't used again either.
    pub(crate) fn failed(&self, node: NodeRef, disconnect: bool) {
        let mut nodes = self.nodes();
        if nodes.preferred == Some(node.0) {
            nodes.preferred = None;
        }
        if disconnect {
            nodes.list[node.0].channel = None;
        }
    }

    pub(crate) fn address(&self, node: NodeRef) -> String {
        self.nodes().list[node.0].address.clone()
    }

    /// The order of a round: the preferred node first, the others shuffled.
    fn round(&self) -> Vec<NodeRef> {
        let mut nodes = self.nodes();
        let mut order: Vec<usize> = (0..nodes.list.len()).collect();
        nodes.spread.shuffle(&mut order);
        if let Some(preferred) = nodes.preferred {
            order.sort_by_key(|&node| node != preferred);
        }
        order.into_iter().rev().map(NodeRef).collect()
    }
}

impl Node {
    fn new(address: &str, connect_timeout: Duration) -> Result<Self> {
        let invalid = || Error::InvalidEndpoint { endpoint: address.to_owned() };
        let host_port = address.trim().trim_start_matches("http://").trim_end_matches('/');
        let (host, port) = host_port.rsplit_once(':').ok_or_else(invalid)?;
        if host.is_empty() || port.parse::<u16>().is_err() || host_port.contains(['/', '@', '?', '#', ' ']) {
            return Err(invalid());
        }
        let endpoint = Endpoint::from_shared(format!("http://{host_port}"))
            .map_err(|_| invalid())?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self { address: host_port.to_owned(), endpoint, channel: None })
    }
}

/// The nodes in the order in which one call tries them: round after round, hints first.
#[derive(Debug)]
pub(crate) struct Route {
    /// The rest of the round, its next node last.
    rest: Vec<NodeRef>,
}

impl Route {
    pub(crate) fn new(pool: &Pool) -> Self {
        Self { rest: pool.round() }
    }

    /// The node to try now.
    pub(crate) fn next(&mut self, pool: &Pool) -> NodeRef {
        loop {
            match self.rest.pop() {
                Some(node) => return node,
                None => self.rest = pool.round(),
            }
        }
    }

    /// `failed` says that the primary is at `address`: go there next, unless it was there that it failed.
    pub(crate) fn hint(&mut self, pool: &Pool, failed: NodeRef, address: &str) {
        if let Ok(Some(primary)) = pool.learn(address)
            && primary != failed
        {
            self.rest.retain(|&node| node != primary);
            self.rest.push(primary);
        }
    }
}

/// What a failed connection attempt looks like as a status.
pub(crate) fn connect_status(address: &str, error: &tonic::transport::Error) -> tonic::Status {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    tonic::Status::unavailable(format!("cannot connect to {address}: {innermost}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Result<Pool> {
        let addresses: Vec<String> = addresses.iter().map(|&a| a.to_owned()).collect();
        let connector: Connector = Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await }));
        Pool::new(&addresses, Duration::from_secs(1), connector)
    }

    #[test]
    fn addresses_are_checked_and_made_alike() {
        let pool = pool(&["a:1", "http://a:1/", "b:2", "[::1]:3"]).unwrap();
        assert_eq!(pool.addresses(), ["a:1", "b:2", "[::1]:3"]);
        for bad in ["", "a", "a:b", ":1", "a:1/path", "u@a:1", "https://a:1", "a:70000"] {
            assert!(matches!(self::pool(&[bad]), Err(Error::InvalidEndpoint { .. })), "{bad:?} was taken");
        }
        assert!(matches!(self::pool(&[]), Err(Error::NoEndpoints)));
    }

    #[test]
    fn every_round_visits_every_node_the_preferred_first() {
        let pool = pool(&["a:1", "b:2", "c:3"]).unwrap();
        pool.answered(NodeRef(1));
        let mut route = Route::new(&pool);
        for _ in 0..3 {
            let mut round: Vec<usize> = (0..3).map(|_| route.next(&pool).0).collect();
            assert_eq!(round[0], 1);
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2]);
        }
    }

    #[test]
    fn a_hint_is_tried_next_and_only_once() {
        let pool = pool(&["a:1", "b:2", "c:3"]).unwrap();
        let mut route = Route::new(&pool);
        let first = route.next(&pool);
        let hinted = if first == NodeRef(2) { "b:2" } else { "c:3" };
        route.hint(&pool, first, hinted);
        let second = route.next(&pool);
        assert_eq!(pool.address(second), hinted);
        let third = route.next(&pool);
        assert!(third != first && third != second);
        route.hint(&pool, third, &pool.address(third));
        route.hint(&pool, third, "d:4");
        assert_eq!(pool.address(route.next(&pool)), "d:4");
        assert_eq!(pool.addresses(), ["a:1", "b:2", "c:3"]);
    }
}
