//! Listening on TCP with a cap on connections and a deadline for the first bytes.
//!
//! tonic accepts any socket and keeps one that never speaks; thousands of those would exhaust the process. So a
//! connection counts against a cap from its accept to its end, and is handed over only after the whole HTTP/2 preface came.

use std::{io, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::seams::{Connection, Incoming, Network};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// TCP, with limits.
#[derive(Debug, Clone)]
pub struct TcpNetwork {
    /// Connections open at once, for each listener. More wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a new connection may take to send its preface.
    pub preface_timeout: Duration,
}

impl Default for TcpNetwork {
    fn default() -> Self {
        Self { connections_max: 4_096, preface_timeout: Duration::from_secs(5) }
    }
}

impl Network for TcpNetwork {
    fn channel(&self, endpoint: Endpoint) -> Channel {
        endpoint.tcp_nodelay(true).connect_lazy()
    }

    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<(String, Incoming)>> {
        let limits = self.clone();
        Box::pin(async move {
            let listener = TcpListener::bind(&address).await?;
            let bound = listener.local_addr()?.to_string();
            let (accepted, incoming) = mpsc::channel(64);
            tokio::spawn(accept(listener, limits, accepted));
            Ok((bound, ReceiverStream::new(incoming).boxed()))
        })
    }
}

async fn accept(listener: TcpListener, limits: TcpNetwork, accepted: mpsc::Sender<io::Result<Connection>>) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = accepted.closed() => return,
        };
        match stream {
            Ok((stream, _)) => {
                let accepted = accepted.clone();
                tokio::spawn(async move {
                    if let Ok(Ok(())) = timeout(limits.preface_timeout, preface(&stream)).await {
                        let _ = stream.set_nodelay(true);
                        let _ = accepted.send(Ok(Connection::new(stream, permit))).await;
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue: neither ends the server.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits until the whole preface can be read, without reading it.
async fn preface(stream: &TcpStream) -> io::Result<()> {
    let mut seen = [0; PREFACE.len()];
    loop {
        stream.readable().await?;
        let len = stream.peek(&mut seen).await?;
        if len == 0 || seen[..len] != PREFACE[..len] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if len == PREFACE.len() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // Peeking doesn't consume, so readiness stays set.
    }
}
