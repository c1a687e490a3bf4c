//! What a request costs the client: sessions in a closed loop, each with one request in flight, against a server in this
//! process that answers at once. Prints requests per second, and the CPU time of the client's own threads per request.
//!
//! `cargo bench -p replicator-client --bench streams -- [SECONDS]`
#![allow(clippy::unwrap_used, missing_docs, reason = "a program for measurements")]

use std::{
    fs,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::Stream;
use replicator_client::{
    Client, Consistency,
    proto::{self as pb, replicator_service_server as server},
};
use tokio::runtime::{Builder, Runtime};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

const PAYLOAD: [u8; 128] = [7; 128];

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct Echo {
    sessions: AtomicU64,
}

fn executed(request: pb::ExecuteRequest) -> pb::ExecuteResponse {
    let pb::ExecuteRequest { request: response, sequence: log_index, .. } = request;
    pb::ExecuteResponse { response, log_index, epoch: 1, node_id: "node-1".into(), state_digest: 7 }
}

fn answered(query: pb::QueryRequest) -> pb::QueryResponse {
    pb::QueryResponse { response: query.request, log_index: 1, node_id: "node-1".into() }
}

#[tonic::async_trait]
impl server::ReplicatorService for Echo {
    type ExecuteStreamStream = Outgoing<pb::ExecuteStreamResponse>;
    type QueryStreamStream = Outgoing<pb::QueryStreamResponse>;
    type SubscribeStream = Outgoing<pb::SubscribeResponse>;

    async fn open_session(
        &self,
        _: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionResponse>, Status> {
        let number = u128::from(self.sessions.fetch_add(1, Ordering::Relaxed));
        let session_id = number.to_le_bytes().to_vec().into();
        Ok(Response::new(pb::OpenSessionResponse { session_id, window: 16, lineage: 1, ..Default::default() }))
    }

    async fn close_session(
        &self,
        _: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        Ok(Response::new(pb::CloseSessionResponse::default()))
    }

    async fn keep_alive(&self, _: Request<pb::KeepAliveRequest>) -> Result<Response<pb::KeepAliveResponse>, Status> {
        Ok(Response::new(pb::KeepAliveResponse::default()))
    }

    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Result<Response<pb::ExecuteResponse>, Status> {
        Ok(Response::new(executed(request.into_inner())))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<pb::ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let results = request.into_inner().map(|message| {
            let results = message?.requests.into_iter().map(|request| pb::ExecuteResult {
                session_id: request.session_id.clone(),
                sequence: request.sequence,
                result: Some(pb::execute_result::Result::Response(executed(request))),
            });
            Ok(pb::ExecuteStreamResponse { results: results.collect() })
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        Ok(Response::new(answered(request.into_inner())))
    }

    async fn query_stream(
        &self,
        request: Request<Streaming<pb::QueryStreamRequest>>,
    ) -> Result<Response<Self::QueryStreamStream>, Status> {
        let results = request.into_inner().map(|message| {
            let results = message?.queries.into_iter().map(|query| pb::QueryResult {
                number: query.number,
                result: query.query.map(|query| pb::query_result::Result::Response(answered(query))),
            });
            Ok(pb::QueryStreamResponse { results: results.collect() })
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn subscribe(&self, _: Request<pb::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("nothing is pushed here"))
    }
}

fn runtime(name: &str, threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build().unwrap()
}

/// The CPU time that this process's threads of `name` have used.
fn cpu(name: &str) -> Duration {
    let mut total = 0;
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let thread = thread.unwrap().path();
        if fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let stat = fs::read_to_string(thread.join("schedstat")).unwrap();
            total += stat.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    Duration::from_nanos(total)
}

/// Runs `sessions` loops for `time`, and prints a line.
fn measure(address: &str, threads: usize, streams: bool, query: bool, sessions: usize, time: Duration) {
    let runtime = runtime("load", threads);
    let client = Client::builder().endpoints([address]).streams(streams).build().unwrap();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut loops = Vec::new();
    for _ in 0..sessions {
        let (client, stop, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&done));
        loops.push(runtime.spawn(async move {
            let session = client.open_session(None).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                if query {
                    client.query(&PAYLOAD[..], Consistency::Local, None).await.unwrap();
                } else {
                    session.execute(&PAYLOAD[..]).await.unwrap();
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    std::thread::sleep(time / 4);
    let (before, used, began) = (done.load(Ordering::Relaxed), cpu("load"), Instant::now());
    std::thread::sleep(time);
    let count = (done.load(Ordering::Relaxed) - before) as f64;
    let (took, used) = (began.elapsed(), cpu("load") - used);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for running in loops {
            running.await.unwrap();
        }
    });
    println!(
        "{:<7} {:<7} {threads} threads {sessions:>5} sessions {:>9.0}/s {:>7.2} µs CPU per request",
        if query { "query" } else { "execute" },
        if streams { "streams" } else { "unary" },
        count / took.as_secs_f64(),
        used.as_secs_f64() * 1e6 / count,
    );
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let serving = runtime("serve", 1);
    let listener = serving.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = server::ReplicatorServiceServer::new(Echo::default());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    serving.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    for threads in [1, 2] {
        for streams in [false, true] {
            for sessions in [1, 16, 256, 1024] {
                measure(&address, threads, streams, false, sessions, time);
            }
        }
        measure(&address, threads, true, true, 256, time);
    }
}
