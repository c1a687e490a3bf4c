//! The nodes that the client knows, their connections, and in which order a call tries them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    backoff::Spread,
    error::{Error, Result},
    link::Link,
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

/// A connection that is being made.
type Connecting = BoxFuture<'static, Result<Arc<Link>, Status>>;

struct Node {
    address: String,
    endpoint: Endpoint,
    link: Option<Arc<Link>>,
    /// Alive while somebody waits for it. All calls wait for the same one.
    connecting: Option<WeakShared<Connecting>>,
}

struct Nodes {
    list: Vec<Node>,
    spread: Spread,
}

/// Stands for no node.
const NOBODY: usize = usize::MAX;

/// All nodes known. Shared by every clone of a client.
pub(crate) struct Pool {
    nodes: Arc<Mutex<Nodes>>,
    /// The node that answered last, or [`NOBODY`].
    preferred: AtomicUsize,
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
        let nodes = Arc::new(Mutex::new(Nodes { list, spread: Spread::new() }));
        Ok(Self { nodes, preferred: AtomicUsize::new(NOBODY), configured, connect_timeout, connector })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    /// The configured addresses, as host:port.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes().list[..self.configured].iter().map(|node| node.address.clone()).collect()
    }

    /// Whether `address` is of the form of an address.
    pub(crate) fn takes(address: &str) -> bool {
        Node::new(address, Duration::ZERO).is_ok()
    }

    /// The configured nodes.
    pub(crate) fn configured(&self) -> impl Iterator<Item = NodeRef> + use<> {
        (0..self.configured).map(NodeRef)
    }

    /// A pool of the same kind, of the nodes at `addresses`.
    pub(crate) fn another(&self, addresses: &[String]) -> Result<Self> {
        Self::new(addresses, self.connect_timeout, Arc::clone(&self.connector))
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

    /// The connection to `node`, if there is one that can be used.
    pub(crate) fn linked(&self, node: NodeRef) -> Option<Arc<Link>> {
        self.nodes().list[node.0].link.as_ref().filter(|link| link.is_usable()).cloned()
    }

    /// A new connection to `node`. Calls that ask for one at the same time get the same one.
    pub(crate) fn connect(&self, node: NodeRef) -> Shared<Connecting> {
        let mut nodes = self.nodes();
        let entry = &mut nodes.list[node.0];
        if let Some(connecting) = entry.connecting.as_ref().and_then(WeakShared::upgrade) {
            return connecting;
        }
        let made = (self.connector)(entry.endpoint.clone());
        let (shared, address) = (Arc::clone(&self.nodes), entry.address.clone());
        let connecting = async move {
            let made = made.await;
            let entry = &mut lock(&shared).list[node.0];
            entry.connecting = None;
            let link = Arc::new(Link::new(made.map_err(|error| connect_status(&address, &error))?));
            entry.link = Some(Arc::clone(&link));
            Ok(link)
        };
        let connecting = connecting.boxed().shared();
        entry.connecting = connecting.downgrade();
        connecting
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
        if self.preferred.load(Ordering::Relaxed) != node.0 {
            self.preferred.store(node.0, Ordering::Relaxed);
        }
    }

    /// `node` failed: calls no longer begin with it. `broken`: its connection that isn't used again either.
    pub(crate) fn failed(&self, node: NodeRef, broken: Option<&Arc<Link>>) {
        // Another node may be preferred by now, and then stays so.
        let _ = self.preferred.compare_exchange(node.0, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
        if let Some(broken) = broken {
            let link = &mut self.nodes().list[node.0].link;
            // Others may have met the same failure before, and have connected again.
            if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
                *link = None;
            }
        }
    }

    /// The node that answered last.
    fn preferred(&self) -> Option<NodeRef> {
        Some(self.preferred.load(Ordering::Relaxed)).filter(|&node| node != NOBODY).map(NodeRef)
    }

    pub(crate) fn address(&self, node: NodeRef) -> String {
        self.nodes().list[node.0].address.clone()
    }

    /// The order of a round, its first node last: the preferred node first, the others shuffled.
    fn round(&self) -> Vec<NodeRef> {
        let preferred = self.preferred();
        let mut nodes = self.nodes();
        let mut order: Vec<NodeRef> = (0..nodes.list.len()).map(NodeRef).collect();
        nodes.spread.shuffle(&mut order);
        order.sort_by_key(|&node| Some(node) == preferred);
        order
    }
}

fn lock(nodes: &Mutex<Nodes>) -> MutexGuard<'_, Nodes> {
    nodes.lock().expect("no code panics while it holds the pool")
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
        Ok(Self { address: host_port.to_owned(), endpoint, link: None, connecting: None })
    }
}

/// The nodes in the order in which one call tries them: round after round, hints first. Most calls need the first only,
/// so the rest is put in order when it is needed.
#[derive(Debug)]
pub(crate) struct Route {
    /// The only node to try, if there is but one.
    only: Option<NodeRef>,
    /// Where to begin.
    first: Option<NodeRef>,
    /// The rest of the round, its next node last. `None`: the first node's round isn't in order yet.
    rest: Option<Vec<NodeRef>>,
    /// The node that the round began with.
    begun: Option<NodeRef>,
}

impl Route {
    pub(crate) fn new(pool: &Pool) -> Self {
        Self { only: None, first: pool.preferred(), rest: None, begun: None }
    }

    /// Always `node`.
    pub(crate) fn only(node: NodeRef) -> Self {
        Self { only: Some(node), first: None, rest: None, begun: None }
    }

    /// Whether there is one node only, and which.
    pub(crate) fn fixed(&self) -> Option<NodeRef> {
        self.only
    }

    /// The node to try now.
    pub(crate) fn next(&mut self, pool: &Pool) -> NodeRef {
        if let Some(only) = self.only {
            return only;
        }
        if let Some(first) = self.first.take() {
            self.begun = Some(first);
            return first;
        }
        loop {
            match self.rest(pool).pop() {
                Some(node) => return node,
                None => self.rest = Some(pool.round()),
            }
        }
    }

    /// The rest of this round.
    fn rest(&mut self, pool: &Pool) -> &mut Vec<NodeRef> {
        let begun = self.begun;
        self.rest.get_or_insert_with(|| {
            let mut round = pool.round();
            round.retain(|&node| Some(node) != begun);
            round
        })
    }

    /// `failed` says that the primary is at `address`: go there next, unless it was there that it failed.
    pub(crate) fn hint(&mut self, pool: &Pool, failed: NodeRef, address: &str) {
        if self.only.is_none()
            && let Ok(Some(primary)) = pool.learn(address)
            && primary != failed
        {
            let rest = self.rest(pool);
            rest.retain(|&node| node != primary);
            rest.push(primary);
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

    #[tokio::test]
    async fn a_failure_of_an_old_connection_leaves_the_new_one() {
        let connector: Connector = Arc::new(|endpoint| Box::pin(async move { Ok(endpoint.connect_lazy()) }));
        let pool = Pool::new(&["a:1".to_owned()], Duration::from_secs(1), connector).unwrap();
        let old = pool.connect(NodeRef(0)).await.unwrap();
        pool.failed(NodeRef(0), Some(&old));
        assert!(pool.linked(NodeRef(0)).is_none());
        let new = pool.connect(NodeRef(0)).await.unwrap();
        pool.failed(NodeRef(0), Some(&old));
        assert!(pool.linked(NodeRef(0)).is_some_and(|link| Arc::ptr_eq(&link, &new)));
    }
}
