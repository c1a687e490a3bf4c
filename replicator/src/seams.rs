//! The narrow places where a node touches the world: clock, entropy, network, threads.
//!
//! A node reaches them only through [`Seams`], so that the same code can run inside a deterministic simulation, where one
//! thread runs everything, time is virtual and every random byte comes from a seed. The disk is the seam
//! [`replicator_storage::Log`].

use std::{
    fmt, io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use rand::Rng as _;
use rustix::{
    process::setpriority_process,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    runtime::Handle,
    sync::oneshot,
};
use tonic::transport::{Channel, Endpoint, server::Connected};

use crate::transport::TcpNetwork;

/// Wall time. It decides nothing but the `time` that requests carry; timeouts are the runtime's.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970.
    fn now_us(&self) -> i64;

    /// Ends after `duration`, to some ten microseconds: the runtime's own timers count whole milliseconds.
    fn pause(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Random bytes, fit for secrets.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Connections, out and in.
pub trait Network: Send + Sync + 'static {
    /// A channel that connects when it is used.
    fn channel(&self, endpoint: Endpoint) -> Channel;

    /// Listens on `address` (`host:port`), and says on which address that came to be.
    ///
    /// # Errors
    /// If the address can't be bound.
    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<(String, Incoming)>>;
}

/// Threads and runtimes.
pub trait Threads: Send + Sync + 'static {
    /// Starts the runtime that replication has for itself: what peers send is read, handled and answered on one thread.
    ///
    /// # Errors
    /// If the thread can't be started.
    fn start_group(&self, name: &str) -> io::Result<Group>;

    /// Runs the apply loop where it can't hold up anything else, on a stack that outgrows the guest's.
    ///
    /// # Errors
    /// If the thread can't be started.
    fn start_apply(&self, name: &str, body: BoxFuture<'static, ()>) -> io::Result<()>;

    /// Runs `body` on a thread of its own that stands back where others want the core: for work that takes seconds and that nobody waits for.
    ///
    /// # Errors
    /// If the thread can't be started.
    fn start_behind(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// A runtime for replication. Its tasks end when it is dropped.
pub struct Group {
    /// Where to spawn.
    pub handle: Handle,
    /// Dropped with it: ends the thread, if it has one.
    pub held: Box<dyn Send + Sync>,
}

/// All of a node's ways into the world.
#[derive(Clone)]
pub struct Seams {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes.
    pub entropy: Arc<dyn Entropy>,
    /// Connections.
    pub network: Arc<dyn Network>,
    /// Threads.
    pub threads: Arc<dyn Threads>,
}

impl Seams {
    /// The real world: the system's clock and generator, TCP, one thread for each group and for apply.
    #[must_use]
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            network: Arc::new(TcpNetwork::default()),
            threads: Arc::new(OsThreads),
        }
    }

    /// `N` random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }
}

impl fmt::Debug for Seams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seams")
    }
}

/// A stream of accepted connections.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

/// What a connection can do.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// An accepted connection, and what must be held as long as it lasts.
pub struct Connection {
    io: Box<dyn Io>,
    _held: Box<dyn Send>,
}

impl Connection {
    /// Wraps `io`; `held` is dropped with it.
    #[must_use]
    pub fn new(io: impl Io, held: impl Send + 'static) -> Self {
        Self { io: Box::new(io), _held: Box::new(held) }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    fn pause(&self, duration: Duration) -> BoxFuture<'static, ()> {
        async move {
            if let Ok(timer) = timer(duration) {
                let _ = timer.readable().await;
            } else {
                tokio::time::sleep(duration).await; // Out of file descriptors: a little late is better than never.
            }
        }
        .boxed()
    }
}

/// A file descriptor that can be read after `duration`.
fn timer(duration: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let duration = duration.max(Duration::from_nanos(1)); // 0 would disarm it.
    let after =
        Timespec { tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec::default(), it_value: after };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe to call, for types whose descriptor may change: an OwnedFd's doesn't"
    )]
    AsyncFd::new(timer)
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // A cryptographic generator, seeded by the operating system: a call of that for every entry costs more than the entry.
        rand::rng().fill_bytes(bytes);
    }
}

struct OsThreads;

impl Threads for OsThreads {
    fn start_group(&self, name: &str) -> io::Result<Group> {
        let (held, dropped) = oneshot::channel::<()>();
        let handle = start(name, None, async { drop(dropped.await) }.boxed())?;
        Ok(Group { handle, held: Box::new(held) })
    }

    fn start_apply(&self, name: &str, body: BoxFuture<'static, ()>) -> io::Result<()> {
        start(name, Some(replicator_machine::APPLY_STACK_BYTES_MIN + (1 << 20)), body).map(drop)
    }

    fn start_behind(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let lowered = move || {
            // Of this thread alone, and of those that it starts. A system that refuses has a slower log meanwhile, and nothing worse.
            if let Err(error) = setpriority_process(None, BEHIND_NICE) {
                tracing::warn!(%error, "a thread for work in the background has the priority of all others");
            }
            body();
        };
        thread::Builder::new().name(name.to_owned()).spawn(lowered).map(drop)
    }
}

/// The nice value of threads that stand back: a tenth of what others get, if all of them want a core. With much less, an image would take longer on a
/// busy machine than its log takes to grow.
const BEHIND_NICE: i32 = 10;

fn start(name: &str, stack_bytes: Option<usize>, body: BoxFuture<'static, ()>) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let mut thread = thread::Builder::new().name(name.to_owned());
    if let Some(bytes) = stack_bytes {
        thread = thread.stack_size(bytes);
    }
    thread.spawn(move || runtime.block_on(body))?;
    Ok(handle)
}
