//! What images and rollbacks cost: how long the apply thread stands still, and how fast the rest is.
//!
//! `cargo bench -p replicator-machine --bench image`. Not by criterion: what counts here are single pauses under load, and
//! the longest of them. Each line gives wall time and, as other work on the machine shows in that, the CPU time of the thread.
//!
//! Targets: `image()` within 5 ms at 512 MiB, writing at least 1 GB/s, restoring 512 MiB within 1 s.
#![allow(missing_docs)]

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use replicator_machine::{
    Command, Entry, Genesis, Limits, Machine, ModuleSource, Outcome, RequestResult, bench, engine_fingerprint,
};
use replicator_types::{ClusterId, Lineage, ModuleHash, Position, Seed, Sequence, SessionId};
use rustix::time::{ClockId, clock_gettime};
use sha2::Digest as _;

/// A module with as many pages of state as its configuration says. A request writes to one of them, and traps if it says so.
fn module() -> Bytes {
    let description = "app=pages version=1 schema=1 accepts_from=1";
    let text = format!(
        r#"(module
  (memory (export "memory") 2)
  (data (i32.const 16) "{description}")
  (func (export "rsm_abi_1"))
  (func (export "rsm_describe") (result i64) (i64.const {describe}))
  (func (export "rsm_input") (param i32) (result i32) (i32.const 65536))
  (func (export "rsm_init") (param $ptr i32) (param i32) (result i32) (local $at i32)
    (drop (memory.grow (i32.load (local.get $ptr))))
    (local.set $at (i32.const 131072))
    (loop $more
      (i32.store (local.get $at) (local.get $at))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $more (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
    (i32.const 0))
  (func (export "rsm_apply") (param $ptr i32) (param i32) (result i64) (local $at i32)
    (local.set $at (i32.load offset=65 (local.get $ptr)))
    (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (i64.load offset=8 (local.get $ptr))))
    (if (i32.eq (i32.load8_u offset=64 (local.get $ptr)) (i32.const 117)) (then unreachable)) ;; u
    (if (i32.eq (i32.load8_u offset=64 (local.get $ptr)) (i32.const 103)) ;; g
      (then (drop (memory.grow (i32.const 1))) unreachable))
    (i64.const 0))
  (func (export "rsm_query") (param i32 i32) (result i64) (i64.const 0))
  (func (export "rsm_snapshot") (param i32) (result i64) (i64.const 0))
  (func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) (i32.const 0)))"#,
        describe = (16u64 << 32) | description.len() as u64,
    );
    wat::parse_str(text).expect("it is valid").into()
}

struct Modules(Bytes);

impl ModuleSource for Modules {
    fn module(&self, _: &ModuleHash) -> Option<Bytes> {
        Some(self.0.clone())
    }
}

struct Node {
    machine: Machine,
    index: u64,
    sessions: Vec<(SessionId, u64)>,
    memory: u64,
    random: u64,
}

impl Node {
    /// With about `mebibytes` of state, no page of which is zeros.
    fn new(mebibytes: u32, sessions: usize) -> Self {
        let bytes = module();
        let hash = ModuleHash(sha2::Sha256::digest(&bytes).into());
        let machine = Machine::new(Arc::new(Modules(bytes)));
        let mut node = Self { machine, index: 0, sessions: Vec::new(), memory: u64::from(mebibytes) << 20, random: 1 };
        let limits = Limits { request_bytes: 1_000, sessions: 1 << 20, ..Limits::default() };
        node.apply(Command::Genesis(Box::new(Genesis {
            cluster: ClusterId([1; 16]),
            lineage: Lineage(7),
            module: hash,
            app_config: Bytes::copy_from_slice(&(mebibytes * 16).to_le_bytes()),
            limits,
            engine: engine_fingerprint(),
        })));
        for _ in 0..sessions {
            match node.apply(Command::OpenSession { ttl_us: 0 }) {
                Outcome::SessionOpened { session, .. } => node.sessions.push((session, 0)),
                other => panic!("no session: {other:?}"),
            }
        }
        node
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let mut seed = [5; 16];
        seed[..8].copy_from_slice(&self.index.to_le_bytes());
        let entry = Entry { time_us: self.index as i64, seed: Seed(seed), command };
        self.machine.apply(Position::new(1, self.index), &entry).expect("the machine goes on").outcome
    }

    /// A request to any page, in any session.
    fn send(&mut self, op: u8) -> Outcome {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (131_072 + (self.random >> 20) % self.memory) as u32 & !7;
        let count = self.sessions.len();
        let (session, sequence) = &mut self.sessions[(self.random >> 33) as usize % count];
        *sequence += 1;
        let (session, sequence) = (*session, Sequence(*sequence));
        let request = Bytes::copy_from_slice(&[&[op][..], &at.to_le_bytes(), &[0; 59]].concat());
        self.apply(Command::Request { session, sequence, acked_below: Sequence(sequence.0.saturating_sub(1)), request })
    }

    fn good(&mut self) {
        let outcome = self.send(b'w');
        assert!(matches!(outcome, Outcome::Executed { result: RequestResult::Reply(_), .. }), "{outcome:?}");
    }

    fn trap(&mut self, op: u8) {
        let outcome = self.send(op);
        assert!(matches!(outcome, Outcome::Executed { result: RequestResult::Trap(_), .. }), "{outcome:?}");
    }
}

/// Wall time, and the CPU time of this thread.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Spent {
    cpu: Duration,
    wall: Duration,
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Spent) {
    let cpu = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let (start, cpu_start) = (Instant::now(), cpu());
    let done = run();
    (done, Spent { cpu: cpu() - cpu_start, wall: start.elapsed() })
}

fn report(what: &str, mut all: Vec<Spent>) {
    all.sort_unstable_by_key(|spent| spent.wall);
    let (wall, slowest) = (all[all.len() / 2].wall, all[all.len() - 1].wall);
    all.sort_unstable_by_key(|spent| spent.cpu);
    let (cpu, most) = (all[all.len() / 2].cpu, all[all.len() - 1].cpu);
    let count = all.len();
    println!("  {what:<58} median {wall:>9.2?}, longest {slowest:>9.2?}; CPU {cpu:>9.2?}, {most:>9.2?}  ({count})");
}

fn rate(what: &str, bytes: u64, spent: Spent) {
    let per = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    println!(
        "  {what:<58} {:.2?} for {} MiB: {:.2} GB/s; CPU {:.2?}: {:.2} GB/s",
        spent.wall,
        bytes >> 20,
        per(spent.wall),
        spent.cpu,
        per(spent.cpu)
    );
}

/// Takes everything, and keeps nothing.
struct Null;

impl Write for Null {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(std::hint::black_box(bytes).len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Updates between two images: what comes in a fifth of a second at 100,000 updates a second.
const UPDATES: usize = 20_000;

fn images(mebibytes: u32, sessions: usize) {
    println!("{mebibytes} MiB of state, {sessions} sessions, every update to a page at random");
    let mut node = Node::new(mebibytes, sessions);
    (0..3 * UPDATES).for_each(|_| node.good());
    let ((), spent) = timed(|| (0..10 * UPDATES).for_each(|_| node.good()));
    println!("  one update: {:.2?}; CPU {:.2?}", spent.wall / (10 * UPDATES as u32), spent.cpu / (10 * UPDATES as u32));

    let mut pauses = Vec::new();
    for _ in 0..30 {
        (0..UPDATES).for_each(|_| node.good());
        let (image, spent) = timed(|| node.machine.image().expect("there is no other"));
        pauses.push(spent);
        drop(image);
    }
    report("image()", pauses);

    let image = node.machine.image().expect("there is no other");
    let (summary, spent) = timed(|| image.write_to(&mut Null).expect("it takes everything"));
    rate("write to nothing, alone", summary.bytes, spent);

    let (mut entries, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        (0..UPDATES).for_each(|_| node.good());
        let image = node.machine.image().expect("there is no other");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let written = timed(|| image.write_to(&mut Null).expect("it takes everything"));
                done.store(true, Ordering::Relaxed);
                written
            });
            while !done.load(Ordering::Relaxed) {
                entries.push(timed(|| node.good()).1);
            }
            writes.push(writer.join().expect("it ends"));
        });
    }
    let (summary, spent) = writes.pop().expect("some were written");
    rate("write to nothing, beside updates", summary.bytes, spent);
    report("one update, beside writing", entries);

    let mut bytes = Vec::new();
    node.machine.image().expect("there is no other").write_to(&mut bytes).expect("a vector takes it");
    for _ in 0..2 {
        let modules = Arc::new(Modules(module()));
        let (machine, spent) = timed(|| Machine::from_image(&mut &bytes[..], modules).expect("a good image"));
        rate("from_image", bytes.len() as u64, spent);
        drop(machine);
    }
}

fn rollbacks(mebibytes: u32, traps: usize) {
    println!("{mebibytes} MiB of state, {traps} trapping requests, a good one before each");
    let mut node = Node::new(mebibytes, 1);
    (0..UPDATES).for_each(|_| node.good());
    let (mut good, mut bad, mut first) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    for _ in 0..traps {
        good.push(timed(|| node.good()).1);
        bad.push(timed(|| node.trap(b'u')).1);
    }
    println!("  all of it: {:.2?}", start.elapsed());
    report("a trap", bad);
    report("a good one", good);
    for _ in 0..20 {
        (0..UPDATES).for_each(|_| node.good());
        first.push(timed(|| node.trap(b'u')).1);
    }
    report("the first trap after many good ones", first);
    let grown = (0..traps.min(200)).map(|_| timed(|| node.trap(b'g')).1).collect();
    report("a trap after memory.grow", grown);
}

fn main() {
    // What cargo passes on: flags, and words that choose benches.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    for mebibytes in [64, 512] {
        if wanted("image") {
            images(mebibytes, 1);
        }
        if wanted("image: rollback") {
            rollbacks(mebibytes, 10_000);
        }
    }
    if wanted("image: sessions") {
        images(64, 100_000);
    }
    if wanted("image: copies") {
        println!("where written pages can't be told:");
        bench::without_write_tracking(|| {
            rollbacks(64, 100);
            images(64, 1);
        });
    }
}
