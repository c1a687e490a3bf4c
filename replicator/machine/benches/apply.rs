//! What applying an entry costs: the guest's call with the decoding of its output, the session table and the digest, and
//! all of it together; what a swap of the module costs, beside what its two parts cost alone.
//!
//! Reads the modules that `make modules` builds, or those in the folder that REPLICATOR_MODULES names.
//! Targets: the echo module's call within 100 ns, chat's `send` with a push within 1 µs; a swap within 1.2 times snapshot and restore and 20 ms, and
//! within 250 ms for 64 MiB of values of 1 KB.
#![allow(missing_docs)] // criterion's macros

use std::{
    collections::HashMap,
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use ed25519_dalek::{Signer, SigningKey};
use prost::Message;
use replicator_machine::{
    Applied, Command, Entry, Genesis, Limits, Machine, ModuleSource, Outcome, RequestResult, bench, engine_fingerprint,
    is_checkpoint, trial,
};
use replicator_proto::chat::v1::{
    ChatRequest, ChatResponse, DeleteAccount, Login, Register, Send, chat_request::Action,
    chat_response::Result as Answer,
};
use replicator_types::{ClusterId, Lineage, LogIndex, ModuleHash, Position, Seed, Sequence, SessionId};
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

fn hash_of(bytes: &[u8]) -> ModuleHash {
    ModuleHash(sha2::Sha256::digest(bytes).into())
}

/// The same module under another hash: with an empty custom section.
fn other(module: &[u8]) -> Bytes {
    [module, &[0, 2, 1, b'x']].concat().into()
}

struct Node {
    machine: Machine,
    index: u64,
    /// Whether it makes the checkpoints that a node makes.
    checkpoints: bool,
}

impl Node {
    fn new(name: &str) -> Self {
        let bytes = module(name);
        let hash = hash_of(&bytes);
        let other = other(&bytes);
        let modules = Arc::new(Modules([(hash, bytes), (hash_of(&other), other)].into()));
        let mut node = Self { machine: Machine::new(modules), index: 0, checkpoints: false };
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
        let applied = self.machine.apply(Position::new(1, self.index), &entry).expect("the machine goes on");
        if self.checkpoints && is_checkpoint(LogIndex(self.index), Some(&entry)) {
            black_box(self.machine.checkpoint().expect("the machine goes on"));
        }
        applied
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

    /// Activates the module that isn't active.
    fn swap(&mut self, modules: [ModuleHash; 2]) -> Duration {
        let expected = self.machine.active_module().expect("it has begun");
        let module = modules[usize::from(modules[0] == expected)];
        let start = Instant::now();
        let outcome = self.apply(Command::Activate { module, expected }).outcome;
        let spent = start.elapsed();
        assert!(matches!(outcome, Outcome::Activated { .. }), "{outcome:?}");
        spent
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
    for (counted, checkpoints, what) in
        [(true, false, ""), (true, true, ", with checkpoints"), (false, false, ", its depth not counted")]
    {
        group.bench_function(format!("chat send with a push, 64 B{what}"), |bencher| {
            let make = || Node::new("chat_module.wasm");
            let mut node = if counted { make() } else { trial::without_counting(make) };
            node.checkpoints = checkpoints;
            chat_sends(bencher, &mut node);
        });
    }
    let mut node = Node::new("echo_module.wasm");
    node.checkpoints = true;
    let mut client = node.open();
    group.bench_function("echo of 64 B, with checkpoints", |bencher| {
        bencher.iter(|| node.send(&mut client, black_box(&request)));
    });
    group.finish();
}

/// A chat with so many messages of 1 KB, in mailboxes of [`MAILBOX`].
fn chat_of(messages: u64) -> Node {
    let mut node = Node::new("chat_module.wasm");
    let mut alice = node.open();
    join(&mut node, &mut alice, "alice");
    for number in 0..messages.div_ceil(MAILBOX) {
        let (mut client, name) = (node.open(), format!("bob{number}"));
        join(&mut node, &mut client, &name);
        let send = chat(Action::Send(Send { to: name, text: "x".repeat(1_000) }));
        for _ in 0..MAILBOX.min(messages - number * MAILBOX) {
            let sent = node.send(&mut alice, &send);
            assert!(matches!(answer(&sent), Answer::Sent(_)), "{sent:?}");
        }
    }
    node
}

/// A state of so many blocks of 4 KiB.
fn blocks_of(blocks: u64) -> Node {
    let mut node = Node::new("blocks_module.wasm");
    let mut client = node.open();
    for _ in 0..blocks / 1_024 {
        node.send(&mut client, &Bytes::from_static(b"fill 1024"));
    }
    node
}

fn swaps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("swap");
    group.sample_size(10);
    type Case = (&'static str, &'static str, fn() -> Node);
    let states: [Case; 3] = [
        ("chat of 64 MiB in messages of 1 KB", "chat_module.wasm", || chat_of(1 << 16)),
        ("64 MiB in blocks of 4 KiB", "blocks_module.wasm", || blocks_of(1 << 14)),
        ("512 MiB in blocks of 4 KiB", "blocks_module.wasm", || blocks_of(1 << 17)),
    ];
    for (name, file, make) in states {
        let (first, second) = (module(file), other(&module(file)));
        let modules = [hash_of(&first), hash_of(&second)];
        let mut node = None;
        group.bench_function(format!("{name}: the whole entry"), |bencher| {
            let node = node.get_or_insert_with(make);
            bencher.iter_custom(|iterations| (0..iterations).map(|_| node.swap(modules)).sum());
        });
        let parts = |node: &mut Option<Node>| bench::swap_parts(&mut node.get_or_insert_with(make).machine, &second);
        group.bench_function(format!("{name}: the snapshot alone"), |bencher| {
            bencher.iter_custom(|iterations| (0..iterations).map(|_| parts(&mut node).snapshot).sum());
        });
        group.bench_function(format!("{name}: the restore alone"), |bencher| {
            bencher.iter_custom(|iterations| (0..iterations).map(|_| parts(&mut node).restore).sum());
        });
        if node.is_some() {
            println!("{name}: {:?}", parts(&mut node));
        }
    }
    group.finish();
}

/// `send` into a mailbox that is emptied now and then, outside of the measurement.
fn chat_sends(bencher: &mut Bencher<'_>, node: &mut Node) {
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

criterion_group!(benches, guest_calls, bookkeeping, whole_entries, swaps);
criterion_main!(benches);
