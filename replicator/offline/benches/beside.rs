//! How fast a new module is compared with the one that runs: chat beside a rebuild of it, over a chat log that is made here. One core.
//!
//! Reads the modules that `make modules` builds, or those in the folder that REPLICATOR_MODULES names. Target: 200,000 requests per second.

use std::{path::PathBuf, sync::Arc, thread, time::Instant};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use prost::Message;
use replicator_machine::{
    APPLY_STACK_BYTES_MIN, Command, Entry, Genesis, Limits, Machine, Outcome, engine_fingerprint,
};
use replicator_offline::{Collected, History as _, Logged, Modules, Replay, beside::beside};
use replicator_proto::chat::v1::{ChatRequest, Login, ReadNext, Register, Send, chat_request::Action};
use replicator_types::{ClusterId, Lineage, Position, Seed, Sequence, SessionId, codec};

/// The program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ACCOUNTS: usize = 64;
const REQUESTS: u64 = 1_000_000;
const TEXT_BYTES: usize = 64;
const ROUNDS: usize = 3;

fn main() {
    // The machine's stack is that of a thread of its own.
    let bench = thread::Builder::new().stack_size(2 * APPLY_STACK_BYTES_MIN).spawn(bench).expect("a thread");
    bench.join().expect("it ends well");
}

fn bench() {
    let wasm = module("chat.wasm");
    let log = Log::of_chat(&wasm);
    let last = log.last().expect("it has entries").index;
    // The same module, rebuilt: a custom section more.
    let rebuilt: Bytes = [&wasm[..], &[0, 5, 4], b"test"].concat().into();
    println!("{} chat requests, three of four of them a message of {TEXT_BYTES} bytes", REQUESTS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let mut replay = Replay::begin(&log, last, log.modules()).expect("it begins");
        replay.run_to(last, &mut |_| {}).expect("it is applied");
        let alone = REQUESTS as f64 / began.elapsed().as_secs_f64();
        let (mut took_over, mut ended) = (Instant::now(), Instant::now());
        let compared =
            beside(&log, rebuilt.clone(), last, &mut |_| ended = Instant::now(), &mut || took_over = Instant::now());
        let compared = compared.expect("it is compared");
        assert_eq!(compared.differences.total(), 0, "the same module answers alike");
        let both = compared.tally.requests() as f64 / (ended - took_over).as_secs_f64();
        println!("replayed {alone:>9.0} requests/s    compared {both:>9.0} requests/s");
    }
}

fn module(name: &str) -> Bytes {
    let folder = std::env::var_os("REPLICATOR_MODULES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/modules")), PathBuf::from);
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}; run `make modules` first, or set REPLICATOR_MODULES", path.display()),
    }
}

struct Log {
    entries: Vec<Logged>,
    machine: Machine,
}

impl Log {
    fn of_chat(wasm: &Bytes) -> Collected {
        let mut modules = Modules::default();
        let module = modules.add(wasm.clone());
        let mut log = Self { entries: Vec::new(), machine: Machine::new(Arc::new(modules)) };
        log.apply(Command::Genesis(Box::new(Genesis {
            cluster: ClusterId([1; 16]),
            lineage: Lineage(7),
            module,
            app_config: Bytes::new(),
            limits: Limits::default(),
            engine: engine_fingerprint(),
        })));
        let mut clients: Vec<(SessionId, u64)> = (0..ACCOUNTS).map(|account| log.join(account)).collect();
        for step in 0..REQUESTS {
            let (from, to) = (step as usize % ACCOUNTS, (step as usize * 7 + 3) % ACCOUNTS);
            let action = match step % 4 {
                3 => Action::ReadNext(ReadNext { limit: 4 }),
                _ => Action::Send(Send { to: name(to), text: "x".repeat(TEXT_BYTES) }),
            };
            // A mailbox that is full refuses, which costs less: before that, it is emptied.
            let action = if step % (ACCOUNTS as u64 * 8_000) < ACCOUNTS as u64 && step > 1_000 {
                log.again(&mut clients[from], from);
                continue;
            } else {
                action
            };
            log.send(&mut clients[from], action);
        }
        Collected::from_genesis(log.entries, vec![wasm.clone()]).expect("none is missing")
    }

    fn again(&mut self, client: &mut (SessionId, u64), account: usize) {
        self.send(client, Action::DeleteAccount(replicator_proto::chat::v1::DeleteAccount {}));
        self.register(client, account);
    }

    fn join(&mut self, account: usize) -> (SessionId, u64) {
        let Outcome::SessionOpened { session, .. } = self.apply(Command::OpenSession { ttl_us: 0 }) else {
            panic!("no session")
        };
        let mut client = (session, 0);
        self.register(&mut client, account);
        client
    }

    fn register(&mut self, client: &mut (SessionId, u64), account: usize) {
        let key = SigningKey::from_bytes(&[42; 32]);
        let public_key = key.verifying_key().to_bytes().to_vec();
        self.send(client, Action::Register(Register { account: name(account), public_key }));
        let message = [b"chat.v1 login\0", &client.0.0[..], name(account).as_bytes()].concat();
        let signature = key.sign(&message).to_vec();
        self.send(client, Action::Login(Login { account: name(account), signature }));
    }

    fn send(&mut self, client: &mut (SessionId, u64), action: Action) {
        client.1 += 1;
        let request = ChatRequest { action: Some(action) }.encode_to_vec().into();
        let sequence = Sequence(client.1);
        self.apply(Command::Request { session: client.0, sequence, acked_below: sequence, request });
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let position = Position::new(1, self.entries.len() as u64);
        let mut seed = [5; 16];
        seed[..8].copy_from_slice(&position.index.0.to_le_bytes());
        let entry = Entry { time_us: position.index.0 as i64, seed: Seed(seed), command };
        let applied = self.machine.apply(position, &entry).expect("the machine goes on");
        self.entries.push(Logged { position, entry: Some(codec::encode(&entry).into()) });
        applied.outcome
    }
}

fn name(account: usize) -> String {
    format!("account{account}")
}
