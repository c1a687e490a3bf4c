//! The transfer of an image, cut at every byte (`CUT_EVERY=1`; else every seventh one): by the real service and the real client of it, over connections in memory that break where they are told to.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use replicator_storage::{DiskLogOptions, MemberMemory, SnapshotInfo};
use replicator_types::{ClusterId, DiskId, Lineage, ModuleHash};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    config::{HostPort, Mode, NodeConfig},
    node::{Node, Waiters, modules::Modules, quarantine::Quarantine, startup::LOG},
    replication::majority::Timing,
    seams::{Connection, Group, Incoming, Network, Seams, Threads},
    service,
};

/// The image: 64 KiB that no compression makes smaller.
const IMAGE_BYTES: usize = 64 << 10;
/// What is checked at once: of what an interrupted transfer has left, whole chunks are kept.
const CHUNK_BYTES: usize = 4 << 10;
/// What a connection carries beside pieces, at most: the head, the manifest, and HTTP/2's frames.
const OVERHEAD_BYTES: u64 = 4 << 10;
/// At which cuts the receiver starts anew, with its folder, before it goes on: each that this divides.
const RESTART_AT: u64 = 509;
const CLUSTER: (ClusterId, Lineage) = (ClusterId([7; 16]), Lineage(3));

fn position() -> Position {
    Position::new(2, 50)
}

/// Connections in memory. How many bytes the next one carries each way is set beforehand.
#[derive(Default)]
struct Wires {
    listening: Mutex<HashMap<String, mpsc::Sender<io::Result<Connection>>>>,
    /// To the listener, and from it.
    limits: Mutex<(u64, u64)>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Wires {
    /// From the next connection on. Returns what the last ones carried, to the listener and from it.
    fn limit(&self, to: u64, from: u64) -> (u64, u64) {
        *self.limits.lock().expect("no panic") = (to, from);
        (self.sent.swap(0, Ordering::Relaxed), self.received.swap(0, Ordering::Relaxed))
    }
}

/// The caller's end of a connection that breaks.
struct Wire {
    io: DuplexStream,
    wires: Arc<Wires>,
    to: u64,
    from: u64,
    /// Whether it breaks as when the peer's process ends, and not as when it is reset.
    politely: bool,
    /// Who waits for bytes.
    reader: Option<Waker>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from == 0 || self.to == 0 {
            let broken = if self.politely { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) };
            return Poll::Ready(broken);
        }
        let mut own = [0; 4096];
        let room = buf.remaining().min(own.len()).min(usize::try_from(self.from).unwrap_or(usize::MAX));
        let mut part = ReadBuf::new(&mut own[..room]);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut part);
        if read.is_pending() {
            self.reader = Some(cx.waker().clone());
        }
        let count = part.filled().len() as u64;
        buf.put_slice(part.filled());
        self.from -= count;
        self.wires.received.fetch_add(count, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.from == 0 || self.to == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = bytes.len().min(usize::try_from(self.to).unwrap_or(usize::MAX));
        let written = Pin::new(&mut self.io).poll_write(cx, &bytes[..room]);
        if let Poll::Ready(Ok(count)) = written {
            self.to -= count as u64;
            self.wires.sent.fetch_add(count as u64, Ordering::Relaxed);
            if self.to == 0
                && let Some(reader) = self.reader.take()
            {
                reader.wake(); // Nothing else would tell it.
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Connects to a listener of [`Wires`].
struct Connector(Arc<Wires>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let wires = self.0.clone();
        async move {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            let listener = wires.listening.lock().expect("no panic").get(&address).cloned();
            let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (near, far) = tokio::io::duplex(64 << 10);
            listener.send(Ok(Connection::new(far, ()))).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            let (to, from) = *wires.limits.lock().expect("no panic");
            Ok(TokioIo::new(Wire { io: near, wires, to, from, politely: from % 2 == 0, reader: None }))
        }
        .boxed()
    }
}

struct InMemory(Arc<Wires>);

impl Network for InMemory {
    fn channel(&self, endpoint: Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(Connector(self.0.clone()))
    }

    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<(String, Incoming)>> {
        let (accepted, incoming) = mpsc::channel(1);
        self.0.listening.lock().expect("no panic").insert(address.clone(), accepted);
        async move { Ok((address, ReceiverStream::new(incoming).boxed())) }.boxed()
    }
}

/// Everything on the test's thread.
struct OneThread;

impl Threads for OneThread {
    fn start_group(&self, _: &str) -> io::Result<Group> {
        Ok(Group { handle: Handle::current(), held: Box::new(()) })
    }

    fn start_apply(&self, _: &str, body: BoxFuture<'static, ()>) -> io::Result<()> {
        drop(tokio::spawn(body));
        Ok(())
    }

    /// But what waits for pieces.
    fn start_behind(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
    }
}

/// A folder in memory, where there is one: what is tested here fsyncs a million times.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn address(text: &str) -> HostPort {
    text.parse().expect("an address")
}

fn peer(name: &str, at: &str) -> Peer {
    Peer { name: name.parse().expect("a name"), peer_address: address(at) }
}

const SERVER: &str = "127.0.0.1:1";

/// A node that has an image, and gives it to who asks.
async fn server(dir: &TempDir, seams: Seams) -> SnapshotManifest {
    let config = NodeConfig {
        name: "a".parse().expect("a name"),
        data_dir: dir.path().join("a"),
        client_address: address("127.0.0.1:2"),
        peer_address: address(SERVER),
        peers: [11, 12].map(|disk| peer(&format!("other-{disk}"), &format!("127.0.0.1:{disk}"))).into(),
        mode: Mode::default(),
        log: String::new(),
        timing: Timing::default(),
        chain: Default::default(),
        images: Default::default(),
        witness: false,
    };
    let manifest = {
        let dir = NodeDir::open(&config.data_dir, "a").expect("a folder");
        let options = SnapshotOptions { chunk_bytes: CHUNK_BYTES, ..SnapshotOptions::default() };
        let store = dir.snapshots(IMAGES, options).expect("a folder of images");
        let info = SnapshotInfo {
            position: position(),
            lineage: CLUSTER.1,
            cluster: CLUSTER.0,
            module: ModuleHash([1; 32]),
            engine: "none".into(),
            digest: 4,
            extra: vec![5; 100],
            created_us: 6,
        };
        let mut writer = store.begin(info, IMAGE_BYTES as u64).expect("room");
        let mut seed = 1_u64;
        for _ in 0..IMAGE_BYTES / 8 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            writer.write_all(&(seed ^ (seed >> 29)).to_le_bytes()).expect("room");
        }
        // It has been a voter among others that don't answer: so it waits for them, and gives its images meanwhile.
        let other = |disk| MemberMemory {
            node: format!("other-{disk}"),
            disk: DiskId(disk),
            peer_address: format!("127.0.0.1:{disk}"),
            voter: true,
        };
        dir.update(|meta| {
            meta.cluster = Some(CLUSTER);
            meta.mode = Some(config.part());
            meta.vote = Some(Vec::new());
            meta.members = vec![other(11), other(12)];
        })
        .expect("room");
        writer.finish().expect("room")
    };
    let node = Node::start(config, seams).await.expect("it starts");
    service::serve(node.clone()).await.expect("it listens");
    while node.status().cluster.is_none() {
        tokio::task::yield_now().await; // It begins to ask the others about its disk.
    }
    manifest
}

/// A node's images, without the node.
fn receiver(dir: &TempDir, seams: &Seams) -> Arc<NodeImages> {
    let dir = NodeDir::open(dir.path().join("b"), "b").expect("a folder");
    dir.update(|meta| meta.cluster = Some(CLUSTER)).expect("room");
    let (log, _) = DiskLog::open(&dir, LOG, DiskLogOptions::default()).expect("a log");
    let modules: Arc<dyn ModuleSource> = Arc::new(Modules(dir.modules().expect("a folder of modules")));
    let fetch_module: FetchModule = Arc::new(|_| futures::future::pending().boxed());
    let machine = Machine::new(modules.clone());
    let (ephemeral, answers) = (mpsc::channel(1).0, mpsc::unbounded_channel().0);
    let waiters = Arc::new(Waiters::new(1, 1));
    let quarantine = Arc::new(Quarantine::open(dir.clone()).expect("a folder"));
    let (applier, _) = Applier::new(machine, waiters, quarantine.clone(), fetch_module.clone(), ephemeral, answers);
    NodeImages::open(Parts {
        repairs: Repairs::new(dir.clone()),
        quarantine,
        threads: seams.threads.clone(),
        dir,
        log: Arc::new(log),
        modules,
        fetch_module,
        applier,
        peers: Peers::new(seams.network.clone()),
        clock: seams.clock.clone(),
        config: ImageConfig::default(),
        configured: vec![peer("a", SERVER)],
    })
    .expect("a folder of images")
}

/// A receiver, and what its transfers must come to.
struct Transfer {
    dir: TempDir,
    seams: Seams,
    wires: Arc<Wires>,
    /// None only while it starts again.
    images: Option<Arc<NodeImages>>,
    manifest: SnapshotManifest,
    /// The image's file, as the server has it.
    file: Vec<u8>,
}

impl Transfer {
    async fn prepare() -> Self {
        let (dir, wires) = (folder(), Arc::new(Wires::default()));
        wires.limit(u64::MAX, u64::MAX);
        let seams = Seams { network: Arc::new(InMemory(wires.clone())), threads: Arc::new(OneThread), ..Seams::real() };
        let manifest = server(&dir, seams.clone()).await;
        let images = Some(receiver(&dir, &seams));
        let path = files(&dir.path().join("a").join(IMAGES)).into_iter().find(|path| path.ends_with(".image"));
        let file = fs::read(path.expect("the server's image")).expect("it can be read");
        Self { dir, seams, wires, images, manifest, file }
    }

    fn images(&self) -> &Arc<NodeImages> {
        self.images.as_ref().expect("it runs")
    }

    fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("b").join(IMAGES)
    }

    /// What an interrupted transfer has left of the file.
    fn kept(&self) -> u64 {
        fs::metadata(self.folder().join("receiving.image")).map_or(0, |file| file.len())
    }

    fn installed(&self) -> Vec<SnapshotManifest> {
        let found = self.images().store.list().expect("the folder can be read");
        found.into_iter().map(|entry| entry.manifest.expect("no half manifest")).collect()
    }

    /// Cuts a transfer after so many bytes to the server and from it. False: they were enough for all of it.
    async fn cut(&mut self, to: u64, from: u64) -> bool {
        self.wires.limit(to, from);
        let fresh = Peers::new(self.seams.network.clone());
        self.images.as_mut().and_then(Arc::get_mut).expect("nobody else fetches").peers = fresh;
        let fetched = self.images().fetch(position()).await;
        match &fetched {
            Ok(_) => assert_eq!(self.installed(), std::slice::from_ref(&self.manifest), "cut at {to}, {from}"),
            Err(why) => {
                assert_eq!(self.installed(), [], "cut at {to}, {from}: {why}");
                assert!(self.images().newest().is_none(), "cut at {to}, {from}: {why}");
                for file in files(&self.folder()) {
                    assert!(file.contains("receiving."), "cut at {to}, {from} left {file}");
                }
            }
        }
        fetched.is_err()
    }

    /// The process ends, and starts again with what is on its disk.
    fn restart(&mut self) {
        // First the old one lets go of its folder.
        drop(self.images.take().and_then(Arc::into_inner).expect("nobody else fetches"));
        self.images = Some(receiver(&self.dir, &self.seams));
    }

    /// Goes on without a cut, and checks that all of it comes. Returns how many bytes that took.
    async fn complete(&mut self, what: &str) -> u64 {
        self.wires.limit(u64::MAX, u64::MAX);
        let mut fetched = self.images().fetch(position()).await;
        if fetched.is_err() {
            // The first to use the broken connection may be who hears of it.
            fetched = self.images().fetch(position()).await;
        }
        fetched.unwrap_or_else(|why| panic!("{what}: {why}"));
        self.check(what);
        self.wires.limit(u64::MAX, u64::MAX).1
    }

    fn check(&self, what: &str) {
        assert_eq!(self.installed(), std::slice::from_ref(&self.manifest), "{what}");
        let left = files(&self.folder());
        let (images, others): (Vec<_>, Vec<_>) = left.iter().partition(|file| file.ends_with(".image"));
        assert!(images.len() == 1 && others.len() == 1, "{what} left {left:?}");
        assert!(fs::read(images[0]).expect("it can be read") == self.file, "{what}: other bytes came");
    }

    /// Before the next transfer.
    fn forget(&self) {
        self.images().store.remove(position()).expect("it can be removed");
        self.images().newest.write().expect("no panic").take();
    }
}

fn files(folder: &std::path::Path) -> Vec<String> {
    let found = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    found.map(|path| path.display().to_string()).collect()
}

/// Bytes from one cut to the next, by `CUT_EVERY`: all of them take some minutes, and are for `make faults`.
fn step() -> usize {
    std::env::var("CUT_EVERY").map_or(7, |step| step.parse().expect("CUT_EVERY is a number from 1"))
}

/// What all cuts came to.
#[derive(Default)]
struct Sums {
    cuts: u64,
    /// Bytes that came after them.
    again: u64,
    restarts: u64,
}

/// Cuts a transfer after `to` and `from` bytes, checks what is there then, completes it, and checks what is there then.
async fn cut_and_complete(transfer: &mut Transfer, (to, from): (u64, u64), sums: &mut Sums) {
    let what = format!("cut after {to} bytes there and {from} back");
    if transfer.cut(to, from).await {
        let kept = transfer.kept();
        if (to ^ from).is_multiple_of(RESTART_AT) {
            transfer.restart();
            sums.restarts += 1;
        }
        let again = transfer.complete(&what).await;
        let missing = transfer.manifest.data_bytes - kept + CHUNK_BYTES as u64 + OVERHEAD_BYTES;
        assert!(again <= missing, "{what}: {kept} bytes were here, and {again} were sent again");
        sums.cuts += 1;
        sums.again += again;
    } else {
        transfer.check(&what);
    }
    transfer.forget();
}

#[test]
fn transfer_cut_at_any_byte_is_never_half_installed_and_goes_on_where_it_was() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut transfer = Transfer::prepare().await;
        assert!(!transfer.cut(u64::MAX, u64::MAX).await, "it fails without a cut");
        let (to, from) = transfer.wires.limit(u64::MAX, u64::MAX);
        transfer.forget();
        println!("a transfer is {to} bytes there and {from} back");
        assert!(from > IMAGE_BYTES as u64 && from < IMAGE_BYTES as u64 + OVERHEAD_BYTES, "{from} bytes");

        let mut back = Sums::default();
        // Past the end too: the last bytes may be such as nobody misses.
        for cut in (0..from + 64).step_by(step()) {
            cut_and_complete(&mut transfer, (u64::MAX, cut), &mut back).await;
        }
        let Sums { cuts, again, restarts } = back;
        println!("{cuts} cuts on the way back, {restarts} restarts: {} of {from} bytes came after a cut", again / cuts);
        assert!(cuts * step() as u64 > IMAGE_BYTES as u64, "only {cuts} cuts broke anything");
        assert!(again < cuts * from * 4 / 5, "transfers don't go on where they were: {again} bytes after {cuts} cuts");

        let mut there = Sums::default();
        for cut in 0..to {
            cut_and_complete(&mut transfer, (cut, u64::MAX), &mut there).await;
        }
        println!("{} cuts on the way there", there.cuts);
        assert!(there.cuts > 100, "only {} cuts of {to} bytes there broke anything", there.cuts);
    });
}
