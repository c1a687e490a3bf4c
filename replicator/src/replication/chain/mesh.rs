//! Messages to the other disks, fire and forget: one stream to each, opened again when it ends, and nothing kept meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use replicator_types::DiskId;
use tokio::{
    sync::mpsc::{self, UnboundedSender},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use super::Input;
use crate::{
    replication::Member,
    transport::{Envelope, Peers, TransportError},
};

/// Messages that wait for a connection to take them. What is beyond that is lost, and asked for again.
const QUEUE_MESSAGES_MAX: usize = 1_024;
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Streams to all members but this one.
pub(super) struct Mesh {
    peers: Peers,
    /// With this disk as sender; the receiver is filled in.
    envelope: Envelope,
    inputs: UnboundedSender<Input>,
    /// Between two tries to connect.
    retry: Duration,
    links: BTreeMap<DiskId, Outgoing>,
}

/// A way to one disk. Its task ends when it is dropped.
struct Outgoing {
    address: String,
    /// Where messages go while there is a connection.
    open: Arc<Mutex<Option<mpsc::Sender<Bytes>>>>,
    keeper: JoinHandle<()>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Mesh {
    pub(super) fn new(peers: Peers, envelope: Envelope, inputs: UnboundedSender<Input>, retry: Duration) -> Self {
        Self { peers, envelope, inputs, retry, links: BTreeMap::new() }
    }

    /// Keeps a stream to each of these members, and to nobody else.
    pub(super) fn reach(&mut self, members: &[Member]) {
        let own = self.envelope.from;
        self.links.retain(|disk, link| {
            members.iter().any(|member| member.disk == *disk && member.peer_address == link.address)
        });
        for member in members.iter().filter(|member| member.disk != own) {
            if self.links.contains_key(&member.disk) {
                continue;
            }
            let open = Arc::new(Mutex::new(None));
            let keeper = Keeper {
                node: member.node.clone(),
                address: member.peer_address.clone(),
                peers: self.peers.clone(),
                envelope: Envelope { to: member.disk, ..self.envelope },
                inputs: self.inputs.clone(),
                retry: self.retry,
                open: open.clone(),
            };
            let keeper = tokio::spawn(keeper.keep());
            self.links.insert(member.disk, Outgoing { address: member.peer_address.clone(), open, keeper });
        }
    }

    /// Whether there is a connection to the disk.
    pub(super) fn is_open(&self, disk: DiskId) -> bool {
        let open = |link: &Outgoing| link.open.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        self.links.get(&disk).is_some_and(open)
    }

    /// Sends a message, or loses it: nobody is connected, or the connection doesn't keep up.
    pub(super) fn send(&self, to: DiskId, message: Bytes) {
        let Some(link) = self.links.get(&to) else { return };
        let open = link.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*open
            && let Err(mpsc::error::TrySendError::Full(_)) = stream.try_send(message)
        {
            tracing::debug!(%to, "a message was lost: the connection doesn't keep up");
        }
    }
}

/// Keeps one stream open.
struct Keeper {
    node: String,
    address: String,
    peers: Peers,
    envelope: Envelope,
    inputs: UnboundedSender<Input>,
    retry: Duration,
    open: Arc<Mutex<Option<mpsc::Sender<Bytes>>>>,
}

impl Keeper {
    async fn keep(self) {
        let mut reached = true; // So that a peer that is away at the start is told of.
        loop {
            let error = self.connect(&mut reached).await;
            if std::mem::take(&mut reached) {
                tracing::warn!(node = self.node, %error, "doesn't answer");
            }
            tokio::time::sleep(self.retry).await;
        }
    }

    /// Opens the stream and holds it until it ends. Returns why it did, or why there is none.
    async fn connect(&self, reached: &mut bool) -> TransportError {
        let (stream, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let channel = match self.peers.channel(&self.address) {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let ended = match channel.messages(self.envelope, ReceiverStream::new(messages), CONNECT_MAX).await {
            Ok(ended) => ended,
            Err(error) => return error,
        };
        if !std::mem::replace(reached, true) {
            tracing::info!(node = self.node, "answers again");
        }
        self.hold(Some(stream));
        let _ = self.inputs.send(Input::Connected(self.envelope.to));
        let why = ended.await;
        self.hold(None);
        why
    }

    fn hold(&self, stream: Option<mpsc::Sender<Bytes>>) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }
}
