//! The load: a closed loop, each client one request in flight.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{
    future::join_all,
    stream::{self, StreamExt as _, TryStreamExt as _},
};
use hdrhistogram::Histogram;
use replicator_client::{Client, Consistency, Error, Session};

use super::machine::cpu_seconds;
use crate::cli::journal;

/// What runs before the measurement and isn't counted: connections, caches, the first growth of buffers.
pub(super) const WARM_UP: Duration = Duration::from_secs(1);
/// Between two attempts of a client whose request failed, so that errors don't become the load.
const AFTER_ERROR: Duration = Duration::from_millis(5);
/// Sessions that are opened or closed at the same time.
const OPENING: usize = 256;

/// What each client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Requests of this length that mean nothing.
    Bytes(usize),
    /// Appends to the journal, of this length.
    Journal(usize),
    /// Writes of this length to a random one of so many blocks.
    Blocks { len: usize, blocks: u64 },
    /// Requests that write to a random one of so many blocks, and trap.
    Traps { blocks: u64 },
}

/// One load.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Differs from that of every other load of the cluster: a journal's numbers begin again in each.
    pub(super) name: String,
    pub(super) clients: usize,
    pub(super) seconds: f64,
    /// Ends it sooner: when so many requests were answered, the warm-up's too.
    pub(super) requests: Option<u64>,
    pub(super) work: Work,
    /// Queries of this consistency, instead of writes.
    pub(super) query: Option<Consistency>,
    /// The nodes' processes, if they are ours.
    pub(super) servers: Vec<u32>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) clients: usize,
    pub(super) latency_us: Histogram<u64>,
    pub(super) seconds: f64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) server_cpu_seconds: Option<f64>,
    pub(super) client_cpu_seconds: Option<f64>,
}

impl Measured {
    pub(super) fn requests_per_sec(&self) -> f64 {
        self.latency_us.len() as f64 / self.seconds
    }
}

/// Runs the load over `connections`, which its clients share. `done` counts the answers, for a progress bar.
pub(super) async fn run(load: &Load, connections: &[Client], done: Arc<AtomicU64>) -> anyhow::Result<Measured> {
    let sessions: Vec<Session> = stream::iter(0..load.clients)
        .map(|client| connections[client % connections.len()].open_session(None))
        .buffered(OPENING)
        .try_collect()
        .await
        .with_context(|| format!("can't open {} sessions", load.clients))?;
    let warm = Instant::now() + WARM_UP;
    let end = warm + Duration::from_secs_f64(load.seconds);
    // One for each connection: one for each client would evict all else from the caches.
    let latencies: Vec<_> = connections.iter().map(|_| Arc::new(Mutex::new(histogram()))).collect();
    let clients = sessions.into_iter().enumerate().map(|(number, session)| {
        let requests = Requests::new(load.work, &load.name, number as u64);
        let count = Count::new(warm, Arc::clone(&latencies[number % latencies.len()]));
        let (done, done_max) = (Arc::clone(&done), load.requests.unwrap_or(u64::MAX));
        let client = LoadClient { session, requests, query: load.query, count, done, done_max };
        tokio::spawn(client.run(end))
    });
    let mut ended = join_all(clients.collect::<Vec<_>>());
    tokio::time::sleep_until(warm.into()).await;
    let own = [std::process::id()];
    let before = (cpu_seconds(&load.servers), cpu_seconds(&own));
    let all = tokio::select! {
        all = &mut ended, if load.requests.is_some() => Some(all),
        () = tokio::time::sleep_until(end.into()) => None,
    };
    let seconds = if all.is_some() { warm.elapsed().as_secs_f64() } else { load.seconds };
    let after = (cpu_seconds(&load.servers), cpu_seconds(&own));
    let used = |before: Option<f64>, after: Option<f64>| Some(after? - before?);

    let mut measured = Measured {
        clients: load.clients,
        latency_us: histogram(),
        seconds,
        errors: 0,
        first_error: None,
        server_cpu_seconds: used(before.0, after.0).filter(|_| !load.servers.is_empty()),
        client_cpu_seconds: used(before.1, after.1),
    };
    let mut sessions = Vec::new();
    let all = match all {
        Some(all) => all,
        None => ended.await,
    };
    for client in all {
        let (session, count) = client.context("a client of the load panicked")?;
        measured.errors += count.errors;
        measured.first_error = measured.first_error.or(count.first_error);
        sessions.push(session);
    }
    for latency_us in &latencies {
        measured.latency_us.add(&*latency_us.lock().expect(NO_PANIC))?;
    }
    // One that can't be closed expires by itself.
    stream::iter(&sessions).for_each_concurrent(OPENING, |session| async { drop(session.close().await) }).await;
    Ok(measured)
}

/// Three digits at every scale, from 1 µs on, as far as it needs to.
fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

struct LoadClient {
    session: Session,
    requests: Requests,
    query: Option<Consistency>,
    count: Count,
    done: Arc<AtomicU64>,
    done_max: u64,
}

const NO_PANIC: &str = "no code panics while it holds this";

/// What a client counts: what began after the warm-up, be it answered or not.
#[derive(Debug)]
struct Count {
    warm: Instant,
    /// Shared with the other clients of the connection.
    latency_us: Arc<Mutex<Histogram<u64>>>,
    errors: u64,
    first_error: Option<String>,
}

impl Count {
    fn new(warm: Instant, latency_us: Arc<Mutex<Histogram<u64>>>) -> Self {
        Self { warm, latency_us, errors: 0, first_error: None }
    }

    fn answered(&self, began: Instant) {
        if began >= self.warm {
            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.latency_us.lock().expect(NO_PANIC).record(us).expect("it grows with what it is given");
        }
    }

    fn failed(&mut self, began: Instant, why: impl FnOnce() -> String) {
        if began >= self.warm {
            self.errors += 1;
            self.first_error.get_or_insert_with(why);
        }
    }
}

impl LoadClient {
    async fn run(mut self, end: Instant) -> (Session, Count) {
        loop {
            let request = self.requests.next(self.query.is_some());
            let began = Instant::now();
            if began >= end || self.done.load(Ordering::Relaxed) >= self.done_max {
                return (self.session, self.count);
            }
            let answered = match self.query {
                Some(consistency) => self.session.client().query(request, consistency, None).await.map(|a| a.response),
                None => self.session.execute(request).await.map(|done| done.response),
            };
            match answered {
                Ok(answer) if self.requests.is_refused(&answer) => {
                    self.count.failed(began, || String::from_utf8_lossy(&answer).into_owned());
                }
                Ok(_) if self.requests.traps() => {
                    self.count.failed(began, || "a request that should trap was answered".into());
                }
                Err(Error::ModuleTrapped { .. }) if self.requests.traps() => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    self.count.answered(began);
                }
                Ok(_) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    self.count.answered(began);
                }
                Err(error) => {
                    self.count.failed(began, || error.to_string());
                    if matches!(error, Error::SessionExpired { .. })
                        && let Ok(session) = self.session.client().open_session(None).await
                    {
                        self.session = session;
                    }
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }
}

/// The requests of one client.
#[derive(Debug)]
struct Requests {
    work: Work,
    writer: String,
    number: u64,
    state: u64,
}

impl Requests {
    fn new(work: Work, load: &str, client: u64) -> Self {
        let writer = format!("{load}-{client}");
        Self { work, writer, number: 0, state: client.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    /// Whether the module says that it did nothing. Of echo that can't be told, nor of modules that aren't known here.
    fn is_refused(&self, answer: &[u8]) -> bool {
        matches!(self.work, Work::Journal(_) | Work::Blocks { .. }) && answer.starts_with(b"error: ")
    }

    fn traps(&self) -> bool {
        matches!(self.work, Work::Traps { .. })
    }

    /// xorshift64: no two alike, nothing to compress.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn next(&mut self, query: bool) -> Bytes {
        match self.work {
            Work::Blocks { blocks, .. } if query => format!("read {}", self.random() % blocks).into(),
            Work::Blocks { len, blocks } => {
                let mut request = format!("write {} ", self.random() % blocks);
                while request.len() < len {
                    write!(request, "{:016x}", self.random()).expect("a String takes everything");
                }
                request.truncate(len);
                request.into()
            }
            Work::Traps { blocks } => format!("trap {}", self.random() % blocks).into(),
            Work::Journal(_) if query => format!("runs {}", self.writer).into(),
            Work::Journal(len) => {
                let number = self.number;
                self.number += 1;
                journal::append(&self.writer, number, len).into()
            }
            Work::Bytes(len) => {
                let mut request = vec![0; len];
                for chunk in request.chunks_mut(8) {
                    chunk.copy_from_slice(&self.random().to_le_bytes()[..chunk.len()]);
                }
                request.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_in_the_warm_up_is_not_counted() {
        let latency_us = Arc::new(Mutex::new(histogram()));
        let began = Instant::now();
        let warm = began + Duration::from_nanos(1);
        let mut count = Count::new(warm, Arc::clone(&latency_us));
        count.answered(began);
        count.failed(began, || "early".into());
        assert_eq!((count.errors, &count.first_error, latency_us.lock().unwrap().len()), (0, &None, 0));
        count.answered(warm);
        count.failed(warm, || "first".into());
        count.failed(warm, || "second".into());
        let first = Some("first".to_owned());
        assert_eq!((count.errors, &count.first_error, latency_us.lock().unwrap().len()), (2, &first, 1));
    }

    #[test]
    fn requests_have_the_length_asked_for_and_differ() {
        let mut requests = Requests::new(Work::Bytes(13), "a", 0);
        let (first, second) = (requests.next(false), requests.next(false));
        assert_eq!((first.len(), second.len()), (13, 13));
        assert_ne!(first, second);
        assert_ne!(first, Requests::new(Work::Bytes(13), "a", 1).next(false), "clients differ too");
    }
}
