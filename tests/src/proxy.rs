//! A way to a node whose connections break after so many bytes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::free_ports;

/// How much is carried at once, in bytes.
const CARRIED_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
struct Shared {
    /// How many bytes of each of the next connections come through from the node. When there are none left, all of them.
    limits: Mutex<VecDeque<u64>>,
    carried: AtomicU64,
    cuts: AtomicU64,
}

/// Listens on a port of its own, and carries what comes there to a node, and its answers back.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Listens, for the node at `target` (`host:port`).
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(target: &str) -> Result<Self> {
        let port = free_ports(1)?[0];
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let shared = Arc::new(Shared::default());
        let (target, carrying) = (target.to_owned(), shared.clone());
        let listening = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let Ok(node) = TcpStream::connect(&target).await else { continue };
                tokio::spawn(carry(caller, node, carrying.clone()));
            }
        });
        Ok(Self { port, shared, listening })
    }

    /// Each of the next connections is cut after so many bytes from the node.
    pub fn cut_after(&self, limits: impl IntoIterator<Item = u64>) {
        self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner).extend(limits);
    }

    /// Connections that were cut so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Acquire)
    }

    /// Bytes that came through from the node so far.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn carry(caller: TcpStream, node: TcpStream, shared: Arc<Shared>) {
    let _ = (caller.set_nodelay(true), node.set_nodelay(true));
    let limit = shared.limits.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(u64::MAX);
    let (from_caller, to_caller) = caller.into_split();
    let (from_node, to_node) = node.into_split();
    // Whichever ends first ends the connection as a whole.
    tokio::select! {
        _ = copy(from_caller, to_node, u64::MAX, None) => {}
        whole = copy(from_node, to_caller, limit, Some(&shared.carried)) => {
            shared.cuts.fetch_add(u64::from(!whole), Ordering::AcqRel);
        }
    }
}

/// False: the limit has ended it.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    limit: u64,
    count: Option<&AtomicU64>,
) -> bool {
    let (mut rest, mut buffer) = (limit, vec![0; CARRIED_BYTES]);
    while rest > 0 {
        let room = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let Ok(read @ 1..) = from.read(&mut buffer[..room]).await else { return true };
        if to.write_all(&buffer[..read]).await.is_err() {
            return true;
        }
        rest -= read as u64;
        if let Some(count) = count {
            count.fetch_add(read as u64, Ordering::AcqRel);
        }
    }
    false
}
