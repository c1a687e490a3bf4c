//! What applying an entry costs: the guest's call with the decoding of its output, the session table and the digest, and
//! all of it together.
//!
//! Reads the modules that `make modules` builds, or those in the folder that REPLICATOR_MODULES names.
//! Targets: the echo module's call within 100 ns, chat's `send` with a push within 1 µs.
#![allow(missing_docs)] // criterion's macros

use std::{
    collections::HashMap,
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use ed25519_dalek::{Signer, SigningKey};
use prost::Message;
use replicator_machine::{
    Applied, Command, Entry, Genesis, Limits, Machine, ModuleSource, Outcome, RequestResult, bench, engine_fingerprint,
    trial,
};
use replicator_proto::chat::v1::{
    ChatRequest, ChatResponse, DeleteAccount, Login, Register, Send, chat_request::Action,
    chat_response::Result as Answer,
};
use replicator_types::{ClusterId, Lineage, ModuleHash, Position, Seed, Sequence, SessionId};
use sha2::Digest as _;

/// Sends into one mailbox before it is emptied, outside of the measurement.
const MAILBOX: u64 = 5_000;

struct Modules(HashMap<ModuleHash, Bytes>);

impl ModuleSource for Modules {
    fn module(&self, hash: &ModuleHash) -> Option<Bytes> {
        self.0.get(hash).cloned()
    }
}

fn module(name: &str) -> Bytes {
    let folder = std::env::var_os("REPLICATOR_MODULES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/wasm32-unknown-unknown/wasm")),
        PathBuf::from,
    );
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}; run `make modules` first, or set REPLICATOR_MODULES", path.display()),
    }
}

struct Node {
    machine: Machine,
    index: u64,
}

impl Node {
    fn new(name: &str) -> Self {
        let bytes = module(name);
        let hash = ModuleHash(sha2::Sha256::digest(&bytes).into());
        let modules = Arc::new(Modules([(hash, bytes)].into()));
        let mut node = Self { machine: Machine::new(modules), index: 0 };
        node.apply(Command::Genesis(Box::new(Genesis {
            cluster: ClusterId([1; 16]),
            lineage: Lineage(7),
            module: hash,
            app_config: Bytes::new(),
            limits: Limits::default(),
            engine: engine_fingerprint(),
        })));
        node
    }

    fn apply(&mut self, command: Command) -> Applied {
        self.index += 1;
        let mut seed = [5; 16];
        seed[..8].copy_from_slice(&self.index.to_le_bytes());
        let entry = Entry { time_us: self.index as i64, seed: Seed(seed), command };
        self.machine.apply(Position::new(1, self.index), &entry).expect("the machine goes on")
    }

    fn open(&mut self) -> Client {
        match self.apply(Command::OpenSession { ttl_us: 0 }).outcome {
            Outcome::SessionOpened { session, .. } => Client { session, sequence: 0 },
            other => panic!("no session: {other:?}"),
        }
    }

    fn send(&mut self, client: &mut Client, request: &Bytes) -> Applied {
        client.sequence += 1;
        self.apply(Command::Request {
            session: client.session,
            sequence: Sequence(client.sequence),
            acked_below: Sequence(client.sequence),
            request: request.clone(),
        })
    }

    fn chat(&mut self, client: &mut Client, action: Action) -> Answer {
        let applied = self.send(client, &chat(action));
        answer(&applied)
    }
}

fn chat(action: Action) -> Bytes {
    ChatRequest { action: Some(action) }.encode_to_vec().into()
}

fn answer(applied: &Applied) -> Answer {
    let Outcome::Executed { result: RequestResult::Reply(reply), .. } = &applied.outcome else { panic!("{applied:?}") };
    ChatResponse::decode(&reply[..]).expect("chat answers in its protocol").result.expect("an answer says something")
}

struct Client {
    session: SessionId,
    sequence: u64,
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

fn login(session: SessionId, account: &str) -> Action {
    let message = [b"chat.v1 login\0", &session.0[..], account.as_bytes()].concat();
    Action::Login(Login { account: account.to_owned(), signature: key().sign(&message).to_vec() })
}

fn join(node: &mut Node, client: &mut Client, account: &str) {
    let public_key = key().verifying_key().to_bytes().to_vec();
    let registered = node.chat(client, Action::Register(Register { account: account.to_owned(), public_key }));
    assert!(matches!(registered, Answer::Registered(_)), "{registered:?}");
    let login = login(client.session, account);
    let logged_in = node.chat(client, login);
    assert!(matches!(logged_in, Answer::LoggedIn(_)), "{logged_in:?}");
}

/// Calls of the module alone: no sessions, no digest, no journal.
fn guest_calls(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("guest");
    for bytes in [64, 1_024] {
        let mut guest = bench::BenchGuest::new(&module("echo_module.wasm"), &Limits::default(), b"");
        let request = vec![7; bytes];
        group.bench_function(format!("echo of {bytes} B: call and decode"), |bencher| {
            bencher.iter(|| guest.call(black_box(&request)));
        });
    }
    group.finish();
}

/// The session table, the digest and the journal, without a guest.
fn bookkeeping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bookkeeping");
    for sessions in [1, 10_000] {
        let mut table = bench::BenchTable::new(sessions);
        group.bench_function(format!("session table of {sessions} and digest, 64 B"), |bencher| {
            let request = [7; 64];
            bencher.iter(|| table.step(black_box(&request)));
        });
    }
    group.finish();
}

fn whole_entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for bytes in [64, 1_024] {
        let mut node = Node::new("echo_module.wasm");
        let mut client = node.open();
        let request = Bytes::from(vec![7; bytes]);
        group.bench_function(format!("echo of {bytes} B"), |bencher| {
            bencher.iter(|| node.send(&mut client, black_box(&request)));
        });
        group.bench_function(format!("query of echo, {bytes} B"), |bencher| {
            bencher.iter(|| node.machine.query(None, black_box(&request)));
        });
    }
    let mut node = Node::new("echo_module.wasm");
    let mut client = node.open();
    let request = Bytes::from(vec![7; 64]);
    group.bench_function("echo, then a query that finds the view stale, 64 B", |bencher| {
        bencher.iter(|| {
            node.send(&mut client, black_box(&request));
            node.machine.query(None, black_box(&request))
        });
    });
    for counted in [true, false] {
        let what = if counted { "" } else { ", its depth not counted" };
        group.bench_function(format!("chat send with a push, 64 B{what}"), |bencher| {
            let make = || Node::new("chat_module.wasm");
            let mut node = if counted { make() } else { trial::without_counting(make) };
            chat_sends(bencher, &mut node);
        });
    }
    group.finish();
}

/// `send` into a mailbox that is emptied now and then, outside of the measurement.
fn chat_sends(bencher: &mut criterion::Bencher<'_>, node: &mut Node) {
    let (mut alice, mut bob) = (node.open(), node.open());
    join(node, &mut alice, "alice");
    join(node, &mut bob, "bob");
    let send = chat(Action::Send(Send { to: "bob".to_owned(), text: "x".repeat(64) }));
    bencher.iter_custom(|iterations| {
        let (mut left, mut spent) = (iterations, Duration::ZERO);
        while left > 0 {
            let now = left.min(MAILBOX);
            let start = Instant::now();
            for _ in 0..now {
                black_box(node.send(&mut alice, &send));
            }
            spent += start.elapsed();
            left -= now;
            let last = node.send(&mut alice, &send);
            assert!(matches!(answer(&last), Answer::Sent(_)) && last.pushes.len() == 1, "{last:?}");
            node.chat(&mut bob, Action::DeleteAccount(DeleteAccount {}));
            join(node, &mut bob, "bob");
        }
        spent
    });
}

criterion_group!(benches, guest_calls, bookkeeping, whole_entries);
criterion_main!(benches);
