//! The counter in C, `statemachine/examples/counter-c`, is the one in Rust: the same answers, the same events, the same snapshots.

use std::{io::Write as _, path::Path, process::Command, sync::OnceLock};

use counter_module::Counters;
use replicator_machine::{Limits, RequestResult};
use statemachine::testing::{Harness, snapshot};
use wasmtime::{Engine, Instance, Memory, Module, Store, WasmParams, WasmResults};

use crate::harness::{Node, limits, reply_of};

/// The module; none, said so, where nothing builds it.
fn counter_in_c() -> Option<&'static [u8]> {
    static BUILT: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let build = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../statemachine/examples/counter-c/build.sh");
        let wasm = Path::new(env!("CARGO_TARGET_TMPDIR")).join("counter-c.wasm");
        let built = Command::new("sh").arg(script).arg(&wasm).output().expect("there is a shell");
        let told = String::from_utf8_lossy(&built.stderr);
        if built.status.code() == Some(77) {
            // Past the test harness, which shows nothing of a test that passes.
            let _ = write!(std::io::stderr(), "skipped: the counter in C is not tested, because {told}");
            return None;
        }
        assert!(built.status.success(), "{told}");
        Some(std::fs::read(wasm).expect("it is built"))
    };
    BUILT.get_or_init(build).as_deref()
}

fn node(module: &[u8]) -> Node {
    Node::with(
        module,
        Limits {
            apply_fuel: 100_000_000,
            query_fuel: 100_000_000,
            memory_pages: 256,
            retained_push_bytes: 1 << 20,
            ..limits()
        },
    )
}

/// A module outside of a machine: chunks of any size, and refusals, without a log.
struct Raw {
    store: Store<()>,
    instance: Instance,
    memory: Memory,
    input: usize,
}

impl Raw {
    fn new(module: &[u8], config: &[u8]) -> Result<Self, String> {
        let engine = Engine::default();
        let mut store = Store::new(&engine, ());
        let module = Module::new(&engine, module).expect("it is a module");
        let instance = Instance::new(&mut store, &module, &[]).expect("it imports nothing");
        let memory = instance.get_memory(&mut store, "memory").expect("it has a memory");
        let mut raw = Self { store, instance, memory, input: 0 };
        let input: i32 = raw.call("rsm_input", 1 << 20);
        raw.input = input as u32 as usize;
        raw.put(config);
        match raw.call("rsm_init", (input, config.len() as i32)) {
            0 => Ok(raw),
            _ => Err(raw.reason()),
        }
    }

    fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, params: P) -> R {
        let function = self.instance.get_typed_func(&mut self.store, name).expect("it exports the function");
        function.call(&mut self.store, params).expect("it doesn't trap")
    }

    fn put(&mut self, bytes: &[u8]) {
        self.memory.write(&mut self.store, self.input, bytes).expect("the input has room");
    }

    fn reason(&mut self) -> String {
        let at: i32 = self.call("rsm_panic_buf", ());
        let buffer = &self.memory.data(&self.store)[at as u32 as usize..];
        let len = u32::from_le_bytes(buffer[..4].try_into().expect("four bytes")) as usize;
        String::from_utf8_lossy(&buffer[4..4 + len]).into_owned()
    }

    fn snapshot(&mut self, max: i32) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        loop {
            let region: i64 = self.call("rsm_snapshot", max);
            let (at, len) = ((region >> 32) as u32 as usize, region as u32 as usize);
            if len == 0 {
                return chunks;
            }
            assert!(len <= max as usize, "a chunk has {len} bytes");
            chunks.push(self.memory.data(&self.store)[at..at + len].to_vec());
        }
    }

    fn restore(&mut self, schema: i32, chunks: &[Vec<u8>]) -> Result<(), String> {
        for (i, chunk) in chunks.iter().enumerate() {
            self.put(chunk);
            let last = i32::from(i + 1 == chunks.len());
            let verdict: i32 = self.call("rsm_restore", (self.input as i32, chunk.len() as i32, schema, last));
            if verdict != 0 {
                return Err(self.reason());
            }
        }
        Ok(())
    }
}

/// Requests of every kind, good ones and bad ones, in no order.
fn requests() -> impl Iterator<Item = Vec<u8>> {
    let long = "x".repeat(64);
    let too_long = "y".repeat(65);
    let names = ["apples", "b", "c", "a", "ü", "", long.as_str(), too_long.as_str()].map(str::to_owned);
    let numbers = [
        "1",
        "-5",
        "+3",
        "0007",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "x",
        "",
        "-",
        "5 6",
    ];
    let odd: [&[u8]; 9] = [
        b"",
        b"count",
        b"get",
        b"\xff",
        b"get \xff\x80\x80\x80\x80\x80\x80\x80\x80\x80",
        b"get \xed\xa0\x80",
        b"get \xc0\x80\xf4\x90\x80\x80",
        b"list all",
        b"  get\tapples\n",
    ];
    let mut random = 1u64;
    (0..3_000).map(move |_| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let pick = |bits: u32, of: usize| ((random >> bits) % of as u64) as usize;
        let name = &names[pick(33, names.len())];
        match pick(40, 10) {
            0..5 => format!("add {name} {}", numbers[pick(44, numbers.len())]).into_bytes(),
            5 | 6 => format!("remove {name}").into_bytes(),
            7 => format!("get {name}").into_bytes(),
            8 => b"list".to_vec(),
            _ => odd[pick(44, odd.len())].to_vec(),
        }
    })
}

#[test]
fn counter_in_c_answers_and_pushes_as_the_one_in_rust() {
    let Some(module) = counter_in_c() else { return };
    let (mut c, mut rust) = (node(module), Harness::<Counters>::new(b"").expect("no configuration is a good one"));
    let (mut client, session) = (c.open(), rust.connect().session);
    let (mut taken, mut refused) = (0, 0);
    for request in requests() {
        let shown = String::from_utf8_lossy(&request).into_owned();
        let (applied, expected) = (c.send(&mut client, &request), rust.request(session, &request));
        let pushes = applied.pushes.iter().map(|push| (push.to, push.payload.to_vec()));
        let expected_pushes = expected.pushes.iter().map(|push| (push.to, push.payload.clone()));
        assert_eq!(pushes.collect::<Vec<_>>(), expected_pushes.collect::<Vec<_>>(), "{shown}");
        let reply = reply_of(applied.outcome);
        assert_eq!(String::from_utf8_lossy(&reply), String::from_utf8_lossy(expected.reply()), "{shown}");
        *(if reply.starts_with(b"error") { &mut refused } else { &mut taken }) += 1;
        assert_eq!(c.query_reply(&request), rust.query(session, &request).reply(), "{shown}, as a query");
    }
    assert!(taken > 500 && refused > 500, "{taken} were taken, and {refused} refused");
    assert_eq!(c.machine.state_hash(), c.replayed(module).machine.state_hash());
    let long = format!("remove {}", "z".repeat(40_000));
    assert_eq!(c.reply(&mut client, long.as_bytes()), &b"error: a word has at most 256 bytes"[..]);
    assert!(matches!(c.query(&[b'q'; 40_000]), RequestResult::Reply(_)));
}

#[test]
fn snapshots_of_either_language_are_restored_by_the_other() {
    let Some(module) = counter_in_c() else { return };
    let mut rust = Harness::<Counters>::new(b"").expect("no configuration is a good one");
    let client = rust.connect().session;
    for i in 0..5_000 {
        let _ = rust.request(client, format!("add counter{i} {}", i - 100).as_bytes());
    }
    let stream = rust.snapshot().concat();
    for max in [7, 1_000, 65_536] {
        let mut c = Raw::new(module, b"").expect("no configuration is a good one");
        c.restore(1, &rust.snapshot_in_chunks(max)).expect("it is a good snapshot");
        for _ in 0..2 {
            let chunks = c.snapshot(65_536);
            assert!(chunks.len() > 1 && chunks.concat() == stream, "another snapshot, in {} chunks", chunks.len());
        }
        let mut back = Harness::<Counters>::restored(b"", 1, &c.snapshot(65_536)).expect("it is a good snapshot");
        assert_eq!(back.query(client, b"list").reply(), rust.query(client, b"list").reply());
    }
}

#[test]
fn what_is_no_snapshot_and_no_configuration_is_refused_by_the_one_in_c() {
    let Some(module) = counter_in_c() else { return };
    for (config, why) in [
        (&b"max_counters=many"[..], "must be a number"),
        (b"max_counter=1", "is empty or"),
        (b"max_counters=-1", "must be a number"),
        (b"max_counters=10001", "at most 10000"),
    ] {
        assert!(Raw::new(module, config).err().is_some_and(|error| error.contains(why)), "{config:?}");
    }
    let good = snapshot([&b"\x01\0\0\0\0\0\0\0a"[..], b"\x02\0\0\0\0\0\0\0b"]);
    let refused = |schema, stream: Vec<u8>| {
        let mut c = Raw::new(module, b"max_counters=3").expect("it is a good configuration");
        c.restore(schema, &[stream]).expect_err("it was taken")
    };
    let mut c = Raw::new(module, b"").expect("no configuration is a good one");
    c.restore(1, &good).expect("it is a good snapshot");
    let stream = good.concat();
    for len in 1..stream.len() {
        assert_eq!(refused(1, stream[..len].to_vec()), "the snapshot breaks off", "cut at {len}");
    }
    for (schema, stream, why) in [
        (2, stream.clone(), "schema 1"),
        (1, [&stream[..], b"x"].concat(), "after its end"),
        (1, stream[13..].to_vec(), "lost a record"),
        (1, snapshot([b"short"]).concat(), "at least 8 bytes"),
        (1, snapshot([[0; 73]]).concat(), "at most 64 bytes"),
        (1, snapshot([b"\0\0\0\0\0\0\0\0\xff"]).concat(), "UTF-8"),
        (1, snapshot([b"\0\0\0\0\0\0\0\0a"; 2]).concat(), "twice"),
        (1, vec![0xfe; 8], "longer than any"),
    ] {
        let told = refused(schema, stream);
        assert!(told.contains(why), "{told}");
    }
}
