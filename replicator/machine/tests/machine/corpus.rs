//! The hostile modules of `tests/corpus`: each comes to what its file says, twice alike, after a replay and from an image too.

use std::{path::Path, sync::Arc};

use replicator_machine::{
    Command, Limits, LoadError, Machine, RequestResult, bench::BenchGuest, load, with_apply_stack,
};
use replicator_types::Position;

use crate::harness::{Modules, Node, genesis};
use replicator_machine::Outcome;

#[path = "../corpus/mod.rs"]
pub(crate) mod files;

use files::{Called, Expected, Hostile};

/// As in the tests with real nodes.
fn corpus_limits() -> Limits {
    let fuel = 5_000_000;
    Limits { apply_fuel: fuel, query_fuel: fuel, memory_pages: 64, request_bytes: 50_000, ..Limits::default() }
}

fn corpus() -> Vec<Hostile> {
    files::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"))
}

#[test]
fn every_hostile_module_comes_to_what_its_file_says() {
    for hostile in corpus() {
        let name = hostile.name.clone();
        let failed = with_apply_stack(move || try_one(&hostile)).unwrap();
        assert_eq!(failed, Ok(()), "{name}");
    }
}

fn try_one(hostile: &Hostile) -> Result<(), String> {
    match &hostile.expected[..] {
        [Expected::Refused(words)] => {
            let told = refusal(&hostile.wasm).ok_or("it was taken")?;
            says(&told, words)?;
            equal("refusals", &Some(told), &refusal(&hostile.wasm))
        }
        [Expected::GenesisRefused(words)] => {
            load::describe(&hostile.wasm).map_err(|error| error.to_string())?;
            let told = refusal_at_genesis(&hostile.wasm).ok_or("it began")?;
            says(&told, words)?;
            equal("refusals", &Some(told), &refusal_at_genesis(&hostile.wasm))
        }
        _ => play(hostile),
    }
}

fn refusal(wasm: &[u8]) -> Option<String> {
    load::describe(wasm).err().map(|error: LoadError| error.to_string())
}

fn refusal_at_genesis(wasm: &[u8]) -> Option<String> {
    let (modules, hash) = Modules::with(wasm);
    let (_, entry) = Node::new().entry(Command::Genesis(Box::new(genesis(hash, corpus_limits()))));
    Machine::new(modules).apply(Position::new(1, 1), &entry).err().map(|halt| halt.to_string())
}

/// Two machines get the same calls; then a third one the first one's log, and a fourth an image of it.
fn play(hostile: &Hostile) -> Result<(), String> {
    let mut nodes = [0, 1].map(|_| Node::with(&hostile.wasm, corpus_limits()));
    let mut clients = nodes.each_mut().map(Node::open);
    for expected in &hostile.expected {
        let Expected::Call { call, request, result } = expected else {
            return Err(format!("{expected:?} among calls"));
        };
        for (node, client) in nodes.iter_mut().zip(&mut clients) {
            let told = match call.as_str() {
                "apply" => match node.send(client, request).outcome {
                    Outcome::Executed { result, .. } => result,
                    other => return Err(format!("{other:?}")),
                },
                "query" => node.query(request),
                call => beside(&hostile.wasm, call),
            };
            let told = match told {
                RequestResult::Trap(trap) => Called::Traps(trap.message),
                RequestResult::Reply(reply) => Called::Replies(reply.to_vec()),
            };
            match (result, &told) {
                (Called::Traps(words), Called::Traps(message)) => says(message, words)?,
                (expected, told) if expected == told => {}
                (expected, told) => return Err(format!("{call} {request:?} {told:?}, expected {expected:?}")),
            }
        }
        let [first, second] = nodes.each_mut().map(|node| (node.machine.digest(), node.machine.state_parts()));
        equal("machines", &first, &second)?;
    }
    let [mut node, _] = nodes;
    let mut replayed = node.replayed(&hostile.wasm);
    equal("a replay", &replayed.machine.state_hash(), &node.machine.state_hash())?;

    let mut bytes = Vec::new();
    node.machine.image().map_err(|error| error.to_string())?.write_to(&mut bytes).map_err(|error| error.to_string())?;
    let modules: Arc<Modules> = Modules::with(&hostile.wasm).0;
    let mut imaged = Machine::from_image(&mut &bytes[..], modules).map_err(|error| error.to_string())?;
    equal("an image", &imaged.state_hash(), &node.machine.state_hash())
}

/// A call that is made of another instance than the live one.
fn beside(wasm: &[u8], call: &str) -> RequestResult {
    let mut guest = BenchGuest::new(wasm, &corpus_limits(), b"");
    let called = match call {
        "snapshot" => guest.snapshot().map(drop),
        _ => guest.restore().map(drop),
    };
    match called {
        Ok(()) => RequestResult::Reply(bytes::Bytes::new()),
        Err(trap) => RequestResult::Trap(trap),
    }
}

fn says(told: &str, words: &str) -> Result<(), String> {
    if told.contains(words) { Ok(()) } else { Err(format!("{told:?} doesn't say {words:?}")) }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, one: &T, other: &T) -> Result<(), String> {
    if one == other { Ok(()) } else { Err(format!("{what}: {one:?} and {other:?}")) }
}
