//! Swaps: a module takes another one's place and state, or nothing has happened.

use std::sync::Arc;

use proptest::prelude::*;
use replicator_machine::{
    ActivationRefusal as No, Command, Entry, Halt, ImageError, ImageUnavailable, Limits, Machine, ModuleSpan, Outcome,
    PushCursor, RequestResult, StateParts, TrapKind, bench, is_checkpoint, load,
};
use replicator_types::{Digest, ModuleHash, Position, Seed, Sequence};

use crate::{harness::*, notes::*};

impl Node {
    /// Orders `module` in place of the active one.
    fn activate(&mut self, module: &[u8]) -> Outcome {
        let module = self.modules.add(module);
        let expected = self.machine.active_module().expect("the history has begun");
        self.apply(Command::Activate { module, expected }).outcome
    }

    fn swap(&mut self, to: Notes) {
        let outcome = self.activate(&to.wasm());
        assert!(matches!(outcome, Outcome::Activated { .. }), "{outcome:?}");
    }

    fn refused(&mut self, module: &[u8]) -> No {
        match self.activate(module) {
            Outcome::ActivationRefused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// A text of several chunks: what a node has that ran for a while.
    fn with_text(client: &mut Client, module: Notes, limits: Limits) -> Self {
        let mut node = Self::with(&module.wasm(), limits);
        *client = node.open();
        for byte in 0..4 {
            node.reply(client, &[&b"a"[..], &[byte; 40_000]].concat());
        }
        node
    }
}

const NOBODY: Client = Client { session: replicator_types::SessionId([0; 16]), sequence: 0 };

fn begun() -> (Node, Client) {
    let mut client = NOBODY;
    let node = Node::with_text(&mut client, V1, limits());
    (node, client)
}

/// All but what every entry changes.
fn lasting(machine: &mut Machine) -> StateParts {
    // Its history remembers orders that were refused.
    StateParts { digest: 0, history: 0, ..machine.state_parts() }
}

fn image(machine: &mut Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.image().expect("there is no other one").write_to(&mut bytes).expect("a vector takes it");
    bytes
}

fn checkpoint(machine: &mut Machine) -> Option<Digest> {
    machine.checkpoint().expect("it goes on")
}

/// That a machine of the log, and one of an image, are this one.
fn assert_all_equal(node: &mut Node) {
    let mut replayed = node.replayed_with(node.modules.clone());
    assert_eq!(replayed.machine.state_parts(), node.machine.state_parts());
    let mut restored = Machine::from_image(&mut &image(&mut node.machine)[..], node.modules.clone()).expect("good");
    assert_eq!(restored.state_parts(), node.machine.state_parts());
    for machine in [&mut replayed.machine, &mut restored] {
        assert_eq!(machine.state_hash(), node.machine.state_hash());
        assert_eq!(checkpoint(machine), checkpoint(&mut node.machine));
        assert_eq!(machine.modules(), node.machine.modules());
        assert_eq!(machine.stats().module_description, node.machine.stats().module_description);
    }
}

#[test]
fn the_new_module_goes_on_with_the_state() {
    let (mut node, mut client) = begun();
    node.query(b"c"); // so that there is a view of the old memory
    let (v1, v2) = (hash(&V1.wasm()), hash(&V2.wasm()));
    let outcome = node.activate(&V2.wasm());
    assert_eq!(outcome, Outcome::Activated { module: v2, previous: v1, state_bytes: 160_016 });
    let at = node.machine.applied().unwrap();
    assert_eq!(number(&node.query_reply(b"c")), 4);
    assert_eq!(number(&node.query_reply(b"l")), 160_000);
    assert_eq!(node.query_reply(b"t"), [3; 100][..]);
    assert_eq!(number(&node.reply(&mut client, b"c")), 14, "its requests count ten");
    let spans = [ModuleSpan { from: Position::default(), module: v1 }, ModuleSpan { from: at, module: v2 }];
    assert_eq!(node.machine.modules(), spans);
    assert_eq!(node.machine.active_module(), Some(v2));
    assert!(node.machine.stats().module_description.contains("version=2"));
    assert_all_equal(&mut node);
}

#[test]
fn sessions_and_answers_go_on_and_nobody_is_told() {
    let (mut node, mut client) = begun();
    let first = node.send(&mut client, b"c").outcome;
    let opened = number(&node.query_reply(b"o"));
    node.swap(V2);
    assert_eq!(number(&node.query_reply(b"o")), opened, "no connect, no disconnect");
    let again = node.send_as(&client, client.sequence, client.sequence, b"c");
    assert_eq!(again.outcome, first, "the answer of the old module, once and for all");
    assert_eq!(number(&node.query_reply(b"c")), 5, "it was executed once");
    assert_eq!(number(&node.reply(&mut client, b"c")), 15);
    node.swap(V1);
    let again = node.send_as(&client, client.sequence, client.sequence, b"c");
    assert_eq!(number(&reply_of(again.outcome)), 15);
    assert_all_equal(&mut node);
}

#[test]
fn pushes_that_are_kept_stay_and_cursors_go_on() {
    let (mut node, mut client) = begun();
    node.send(&mut client, b"Pbefore");
    let before = node.machine.pushes_after(PushCursor::default(), 9).unwrap();
    node.swap(V2);
    assert_eq!(node.machine.pushes_after(PushCursor::default(), 9).unwrap(), before);
    node.send(&mut client, b"Pafter");
    let after = node.machine.pushes_after(before[0].cursor, 9).unwrap();
    assert_eq!((after.len(), &after[0].push.payload[..]), (1, &b"after"[..]));
    assert_all_equal(&mut node);
}

#[test]
fn a_trap_after_a_swap_leads_back_to_right_after_it() {
    for untracked in [false, true] {
        let run = || {
            let (mut node, mut client) = begun();
            node.swap(V2);
            let before = lasting(&mut node.machine);
            for poison in [b"u", b"g", b"u"] {
                node.trap(&mut client, poison);
                let now = lasting(&mut node.machine);
                assert_eq!((now.memory, now.globals), (before.memory, before.globals));
            }
            assert_eq!(number(&node.reply(&mut client, b"c")), 14);
            node.trap(&mut client, b"g");
            assert_eq!(number(&node.reply(&mut client, b"c")), 24);
            assert_all_equal(&mut node);
        };
        if untracked { bench::without_write_tracking(run) } else { run() }
    }
}

type Expected = fn(&No) -> bool;

/// Refuses `module` in every way that a state can be looked at.
fn refusal_leaves_all_as_it_was(active: Notes, module: &[u8], expected: impl Fn(&No) -> bool) {
    let mut client = NOBODY;
    let mut node = Node::with_text(&mut client, active, limits());
    node.send(&mut client, b"Pkept");
    let before = lasting(&mut node.machine);
    let digest = node.machine.digest();
    let refusal = node.refused(module);
    assert!(expected(&refusal), "{refusal:?}");
    assert_eq!(lasting(&mut node.machine), before, "{refusal}");
    assert!(node.machine.digest() != digest, "it is an outcome");
    assert_eq!(node.machine.active_module(), Some(hash(&active.wasm())));
    node.trap(&mut client, b"g");
    assert_eq!(number(&node.reply(&mut client, b"c")), 6, "{refusal}");
    assert_eq!(number(&node.query_reply(b"l")), 160_000);
    assert_all_equal(&mut node);
}

#[test]
fn a_module_that_cannot_take_the_state_is_refused() {
    let cases: [(Notes, Expected); 14] = [
        (
            Notes { restore: PANIC, ..V2 },
            |no| matches!(no, No::RestoreTrapped { bytes: 0, trap } if trap.kind == TrapKind::Unreachable && trap.message == "oops"),
        ),
        // A chunk is cut where the input ends.
        (Notes { restore: LATE, ..V2 }, |no| matches!(no, No::RestoreTrapped { bytes: 50_064, .. })),
        (
            Notes { restore: OUT_OF_BOUNDS, ..V2 },
            |no| matches!(no, No::RestoreTrapped { trap, .. } if trap.kind == TrapKind::MemoryOutOfBounds),
        ),
        (Notes { restore: LOOP, ..V2 }, |no| matches!(no, No::RestoreOutOfFuel { bytes: 0, fuel: 8_000_000 })),
        (Notes { restore: BOMB, ..V2 }, |no| matches!(no, No::OutOfMemory { bytes: 0, pages: 8 })),
        (
            Notes { restore: REFUSE, ..V2 },
            |no| matches!(no, No::RestoreRefused { bytes: 0, code: 7, reason } if reason == "oops"),
        ),
        (
            Notes { restore: "(return (i32.const 9))", ..V2 },
            |no| matches!(no, No::RestoreRefused { code: 9, reason, .. } if reason == "it gives no reason"),
        ),
        (
            Notes { init: PANIC, ..V2 },
            |no| matches!(no, No::Begin { call, reason } if call == "rsm_init" && reason == "oops"),
        ),
        (Notes { init: REFUSE, ..V2 }, |no| matches!(no, No::Begin { reason, .. } if reason == "oops")),
        (Notes { init: LOOP, ..V2 }, |no| matches!(no, No::Begin { reason, .. } if reason == "out of fuel")),
        (Notes { init: BOMB, ..V2 }, |no| matches!(no, No::OutOfMemory { bytes: 0, pages: 8 })),
        (
            Notes { description: "app=other version=2 schema=1 accepts_from=1", ..V2 },
            |no| matches!(no, No::OtherApp { active, given } if active == "notes" && given == "other"),
        ),
        (
            Notes { description: "app=notes version=3 schema=3 accepts_from=2,3", ..V2 },
            |no| matches!(no, No::Schema { schema, accepts_from } if schema == "1" && accepts_from == "2,3"),
        ),
        (
            Notes { description: "app=notes version=3 schema=3", ..V2 },
            |no| matches!(no, No::Load { reason } if reason.contains("rsm_describe")),
        ),
    ];
    for (module, expected) in cases {
        refusal_leaves_all_as_it_was(V1, &module.wasm(), expected);
    }
}

#[test]
fn bytes_that_are_no_module_are_refused() {
    let load = |no: &No| matches!(no, No::Load { .. });
    refusal_leaves_all_as_it_was(V1, b"\0asm\x01\0\0\0", load);
    refusal_leaves_all_as_it_was(V1, b"no wasm", load);
    refusal_leaves_all_as_it_was(V1, &V2.wasm()[..1_000], load);
    let imports = wat::parse_str(r#"(module (import "wasi" "clock" (func)))"#).unwrap();
    refusal_leaves_all_as_it_was(V1, &imports, |no| matches!(no, No::Load { reason } if reason.contains("wasi")));
    let text = include_str!("notes.wat").replace(r#"(export "memory") 3"#, r#"(export "memory") 9"#);
    let text = text.replace("{description}", V2.description).replace("{step}", "1");
    let text = text.replace("{describe}", &((16u64 << 32) | V2.description.len() as u64).to_string());
    let large = ["{init}", "{snapshot}", "{restore}"].iter().fold(text, |text, hook| text.replace(hook, ""));
    let large = wat::parse_str(large).unwrap();
    refusal_leaves_all_as_it_was(V1, &large, |no| matches!(no, No::Load { reason } if reason.contains("memory_pages")));
}

#[test]
fn a_snapshot_that_fails_is_refused_and_changes_nothing() {
    let endless = "(return (i64.or (i64.shl (i64.const 131056) (i64.const 32)) (i64.extend_i32_u (local.get $max))))";
    let cases: [(String, Expected); 7] = [
        (
            format!("{WRITE} {PANIC}"),
            |no| matches!(no, No::SnapshotTrapped { bytes: 0, trap } if trap.message == "oops"),
        ),
        (format!("{WRITE} {LOOP}"), |no| matches!(no, No::SnapshotOutOfFuel { bytes: 0, fuel: 5_000_000 })),
        (format!("{WRITE} {BOMB}"), |no| matches!(no, No::SnapshotTrapped { bytes: 0, .. })),
        (endless.to_owned(), |no| matches!(no, No::SnapshotTooLong { max: 524_288 })),
        ("(return (i64.const 0x0002000000000001))".to_owned(), |no| {
            matches!(no, No::SnapshotOutOfFuel { bytes: 3_000..6_000, .. })
        }),
        (
            "(return (i64.const 0x000200000001_0001))".to_owned(),
            |no| matches!(no, No::SnapshotTrapped { trap, .. } if trap.message.contains("65537 bytes, and at most 65536")),
        ),
        (
            "(return (i64.const 0xfffffff000000011))".to_owned(),
            |no| matches!(no, No::SnapshotTrapped { trap, .. } if trap.kind == TrapKind::MalformedOutput),
        ),
    ];
    for (snapshot, expected) in cases {
        let active = Notes { snapshot: snapshot.leak(), ..V1 };
        // It takes anything and keeps nothing, so that it isn't the one to give up.
        let taker = Notes { restore: "(return (i32.const 0))", ..V2 };
        refusal_leaves_all_as_it_was(active, &taker.wasm(), expected);
    }
}

#[test]
fn what_a_snapshot_writes_is_in_no_state() {
    // A module that counts its snapshots, in memory and in a global, and grows.
    let counting = "(if (i32.eqz (global.get $at)) (then
        (i64.store (i32.const 131056) (i64.add (i64.load (i32.const 131056)) (i64.const 1000)))
        (drop (memory.grow (i32.const 1)))))";
    let counting = Notes { snapshot: counting, ..V1 };
    let mut client = NOBODY;
    let mut node = Node::with_text(&mut client, counting, limits());
    node.refused(&Notes { restore: PANIC, ..V2 }.wasm());
    assert_eq!(number(&node.reply(&mut client, b"c")), 5);
    node.swap(V2);
    assert_eq!(number(&node.query_reply(b"c")), 1_005, "the new module has what the snapshot says");
    assert_all_equal(&mut node);
}

#[test]
fn an_order_that_expects_another_module_does_nothing() {
    let (mut node, _) = begun();
    let (v1, v2) = (hash(&V1.wasm()), node.modules.add(&V2.wasm()));
    let before = lasting(&mut node.machine);
    let wrong = node.apply(Command::Activate { module: v2, expected: v2 }).outcome;
    let active = Outcome::ActivationRefused(No::AlreadyActive { module: v1 });
    assert_eq!(wrong, Outcome::ActivationRefused(No::Unexpected { active: v1, expected: v2 }));
    assert_eq!(node.apply(Command::Activate { module: v1, expected: v1 }).outcome, active);
    assert_eq!(node.apply(Command::Activate { module: v1, expected: v2 }).outcome, active);
    // Nobody needs the bytes for that.
    let unknown = ModuleHash([9; 32]);
    let wrong = node.apply(Command::Activate { module: unknown, expected: unknown }).outcome;
    assert_eq!(wrong, Outcome::ActivationRefused(No::Unexpected { active: v1, expected: unknown }));
    assert_eq!(lasting(&mut node.machine), before);
    node.swap(V2);
    let late = node.apply(Command::Activate { module: v2, expected: v1 }).outcome;
    assert_eq!(late, Outcome::ActivationRefused(No::AlreadyActive { module: v2 }), "the same order, come twice");
    assert_all_equal(&mut node);
}

#[test]
fn a_copy_of_an_order_does_nothing_whatever_came_of_the_order() {
    let (mut node, _) = begun();
    let (v1, v2) = (hash(&V1.wasm()), node.modules.add(&V2.wasm()));
    let order = |node: &mut Node, seed, module, expected| {
        let (at, entry) = node.entry(Command::Activate { module, expected });
        let entry = Entry { seed: Seed([seed; 16]), ..entry };
        let outcome = node.machine.apply(at, &entry).expect("the node goes on").outcome;
        node.log.push((at, entry));
        outcome
    };
    let copied = Outcome::ActivationRefused(No::Repeated);
    // Refused at first: a copy doesn't come to another verdict.
    let refused = order(&mut node, 1, v1, v2);
    assert!(matches!(refused, Outcome::ActivationRefused(No::AlreadyActive { .. })), "{refused:?}");
    assert!(matches!(order(&mut node, 2, v2, v1), Outcome::Activated { .. }));
    assert_eq!(order(&mut node, 1, v1, v2), copied);
    assert_eq!(node.machine.active_module(), Some(v2));
    // Carried out at first, and taken back by somebody since.
    assert!(matches!(order(&mut node, 3, v1, v2), Outcome::Activated { .. }));
    assert_eq!(order(&mut node, 2, v2, v1), copied);
    assert_eq!(node.machine.active_module(), Some(v1));
    assert_all_equal(&mut node);
    for other in 4..70 {
        order(&mut node, other, v1, v1);
    }
    assert!(matches!(order(&mut node, 69, v2, v1), Outcome::ActivationRefused(No::Repeated)), "the last 64 are known");
    assert_all_equal(&mut node);
}

#[test]
fn before_genesis_there_is_nothing_to_replace() {
    let (modules, module) = Modules::with(&V1.wasm());
    let machine = Machine::new(modules.clone());
    assert!(machine.modules().is_empty() && machine.active_module().is_none() && machine.engine().is_none());
    let mut node = Node { machine, modules, log: Vec::new(), time_us: 1 };
    let outcome = node.apply(Command::Activate { module, expected: module }).outcome;
    assert_eq!(refusal_of(outcome), replicator_machine::Refusal::NoGenesis);
}

#[test]
fn a_missing_module_stalls_the_entry_and_no_more() {
    let (mut node, mut client) = begun();
    let (v1, v2) = (hash(&V1.wasm()), hash(&V2.wasm()));
    node.time_us += 1_000;
    let order = Command::Activate { module: v2, expected: v1 };
    let before = node.machine.state_hash();
    for _ in 0..3 {
        assert!(matches!(node.try_apply(order.clone()), Err(Halt::ModuleMissing(missing)) if missing == v2));
        assert_eq!(node.machine.state_hash(), before);
        assert_eq!(number(&node.query_reply(b"c")), 4);
    }
    node.modules.add(&V2.wasm());
    let outcome = node.apply(order).outcome;
    assert!(matches!(outcome, Outcome::Activated { module, .. } if module == v2), "{outcome:?}");
    assert_eq!(number(&node.reply(&mut client, b"c")), 14);
    assert_all_equal(&mut node);
}

#[test]
fn bytes_that_are_not_those_of_the_hash_stall_it_too() {
    struct Liar(Arc<Modules>);
    impl replicator_machine::ModuleSource for Liar {
        fn module(&self, hash: &ModuleHash) -> Option<bytes::Bytes> {
            let wasm = replicator_machine::ModuleSource::module(&*self.0, hash)?;
            Some(if *hash == crate::harness::hash(&V2.wasm()) { wasm.slice(1..) } else { wasm })
        }
    }
    let (node, _) = begun();
    node.modules.add(&V2.wasm());
    let mut machine = Machine::new(Arc::new(Liar(node.modules.clone())));
    node.log.iter().for_each(|(at, entry)| drop(machine.apply(*at, entry).expect("as the first time")));
    let before = machine.state_hash();
    let (at, entry) = node.entry(Command::Activate { module: hash(&V2.wasm()), expected: hash(&V1.wasm()) });
    assert!(matches!(machine.apply(at, &entry), Err(Halt::ModuleDamaged { .. })));
    assert_eq!(machine.state_hash(), before);
}

#[test]
fn back_and_forth() {
    let (mut node, mut client) = begun();
    let mut expected = 4;
    for round in 0..12 {
        let (to, step) = if round % 2 == 0 { (V2, 10) } else { (V1, 1) };
        node.swap(to);
        node.refused(&Notes { restore: LATE, ..to }.wasm());
        node.trap(&mut client, b"g");
        expected += step;
        assert_eq!(number(&node.reply(&mut client, b"c")), expected);
    }
    assert_eq!(node.machine.modules().len(), 13);
    assert_eq!(number(&node.query_reply(b"l")), 160_000);
    assert_all_equal(&mut node);
}

/// Nothing of what was before a swap is in the sums over the memory: a machine that made a checkpoint after each entry, one that made none, and
/// those of images from before and after each entry have equal ones.
#[test]
fn checkpoints_begin_anew_with_each_module() {
    let (mut node, mut client) = begun();
    if checkpoint(&mut node.machine).is_none() {
        println!("skipped: this system can't tell which pages were written (it takes Linux 6.7)");
        return;
    }
    let (refused, before) = (Notes { restore: LATE, ..V2 }.wasm(), image(&mut node.machine));
    let (mut seen, first) = (Vec::new(), node.log.len());
    for round in 0..9 {
        match round {
            0 | 3 => drop(node.refused(&refused)),
            1 | 6 => node.swap(V2),
            5 => node.swap(V1),
            2 | 7 => drop(node.trap(&mut client, b"g")),
            _ => drop(node.reply(&mut client, b"c")),
        }
        let here = checkpoint(&mut node.machine);
        assert!(here.is_some() && !seen.contains(&here), "round {round}");
        seen.push(here);
        assert_all_equal(&mut node);
    }
    let mut restored = Machine::from_image(&mut &before[..], node.modules.clone()).expect("good");
    for ((at, entry), expected) in node.log[first..].iter().zip(seen) {
        restored.apply(*at, entry).expect("as the first time");
        let (tells, it) = (is_checkpoint(at.index, Some(entry)), matches!(entry.command, Command::Activate { .. }));
        assert_eq!(tells, it, "there is one after each activation");
        assert_eq!(checkpoint(&mut restored), expected, "{at}");
    }
}

#[test]
fn a_module_without_state_is_asked_once_and_last() {
    let once = "(if (i32.or (local.get $len) (i32.ne (local.get $last) (i32.const 1))) (then unreachable))
        (if (i32.ne (local.get $schema) (i32.const 1)) (then unreachable))
        (global.set $at (i32.const 16)) (local.set $len (i32.const 0))";
    let mut node = Node::with(&Notes { snapshot: "(return (i64.const 0))", ..V1 }.wasm(), limits());
    let outcome = node.activate(&Notes { restore: once, ..V2 }.wasm());
    assert!(matches!(outcome, Outcome::Activated { state_bytes: 0, .. }), "{outcome:?}");
}

#[test]
fn an_image_that_is_being_written_stays_what_it_was() {
    let (mut node, mut client) = begun();
    let expected = image(&mut node.machine);
    let writing = node.machine.image().unwrap();
    node.reply(&mut client, b"c");
    node.swap(V2);
    node.reply(&mut client, b"c");
    // One at a time, whatever module it is of.
    assert!(matches!(node.machine.image(), Err(ImageUnavailable::AnotherLives)));
    node.swap(V1);
    assert!(matches!(node.machine.image(), Err(ImageUnavailable::AnotherLives)));
    let mut bytes = Vec::new();
    writing.write_to(&mut bytes).unwrap();
    assert!(bytes == expected, "the image changed while it was written");

    let mut restored = Machine::from_image(&mut &bytes[..], node.modules.clone()).unwrap();
    let rest: Vec<_> = node.log.iter().filter(|(at, _)| Some(*at) > restored.applied()).cloned().collect();
    rest.iter().for_each(|(at, entry)| drop(restored.apply(*at, entry).expect("it goes on")));
    assert_eq!(restored.state_parts(), node.machine.state_parts());
    assert_all_equal(&mut node);
}

#[test]
fn an_image_after_a_swap_names_the_module_to_fetch() {
    let (mut node, _) = begun();
    node.swap(V2);
    let taken = node.machine.image().unwrap();
    assert_eq!((taken.module(), taken.previous_module()), (hash(&V2.wasm()), Some(hash(&V1.wasm()))));
    assert_eq!(taken.engine(), replicator_machine::engine_fingerprint());
    drop(taken);
    let bytes = image(&mut node.machine);
    let (old, _) = Modules::with(&V1.wasm());
    let missing = Machine::from_image(&mut &bytes[..], old).err().expect("the new one is missing");
    assert!(
        matches!(missing, ImageError::Refused(Halt::ModuleMissing(hash)) if hash == crate::harness::hash(&V2.wasm()))
    );
    let (new, _) = Modules::with(&V2.wasm());
    assert!(Machine::from_image(&mut &bytes[..], new).is_ok(), "and the old one is not needed");
}

#[test]
fn a_module_compiled_ahead_is_found() {
    let ahead = replicator_machine::precompile(&V2.wasm()).unwrap();
    assert_eq!(ahead.hash(), hash(&V2.wasm()));
    let active = load::describe(&V1.wasm()).unwrap();
    assert_eq!(ahead.info().can_replace(&active), Ok(()));
    assert_eq!(ahead.info().word("version"), Some("2"));
    assert!(matches!(replicator_machine::precompile(b"no wasm"), Err(Halt::ModuleRefused(_))));
}

#[derive(Debug, Clone)]
enum Step {
    Send(u8, Vec<u8>),
    Repeat,
    Open,
    Tick,
    Query,
    Image,
    Swap(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let body = prop::collection::vec(any::<u8>(), 0..3_000);
    prop_oneof![
        6 => (prop::sample::select(&b"aaacPug"[..]), body).prop_map(|(op, body)| Step::Send(op, body)),
        1 => Just(Step::Repeat),
        1 => Just(Step::Open),
        1 => Just(Step::Tick),
        1 => Just(Step::Query),
        1 => Just(Step::Image),
        4 => (0..6usize).prop_map(Step::Swap),
    ]
}

fn any_story(steps: &[Step]) {
    let modules =
        [V1, V2, V1, V2, Notes { restore: LATE, ..V2 }, Notes { restore: WRITE, init: REFUSE, ..V1 }].map(|n| n.wasm());
    let (mut node, mut client) = begun();
    let mut images = Vec::new();
    for step in steps {
        match step {
            Step::Send(op, body) => drop(node.send(&mut client, &[&[*op][..], body].concat())),
            Step::Repeat => drop(node.send_as(&client, client.sequence, client.sequence, b"c")),
            Step::Open => drop(node.open()),
            Step::Tick => {
                node.time_us += 10;
                node.tick();
            }
            Step::Query => drop(node.query(b"c")),
            Step::Image => images.push(image(&mut node.machine)),
            Step::Swap(which) => drop(node.activate(&modules[*which])),
        }
    }
    assert_all_equal(&mut node);
    for bytes in images {
        let mut machine = Machine::from_image(&mut &bytes[..], node.modules.clone()).expect("a good image");
        let from = machine.applied();
        for (at, entry) in node.log.iter().filter(|(at, _)| Some(*at) > from) {
            machine.apply(*at, entry).expect("it goes on");
        }
        assert_eq!(machine.state_parts(), node.machine.state_parts());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn live_replayed_and_imaged_are_equal_whatever_is_swapped(steps in prop::collection::vec(step(), 0..40)) {
        any_story(&steps);
    }

    #[test]
    fn and_where_written_pages_are_not_told(steps in prop::collection::vec(step(), 0..25)) {
        bench::without_write_tracking(|| any_story(&steps));
    }
}

/// A repeat of what was executed before is no new request, whichever module is active: sequences are the host's.
#[test]
fn a_request_of_before_with_other_bytes_is_refused_after_a_swap_too() {
    let (mut node, client) = begun();
    node.swap(V2);
    let reused = node.send_as(&client, client.sequence, client.sequence, b"other").outcome;
    assert!(matches!(refusal_of(reused), replicator_machine::Refusal::Reused { last: Sequence(4) }));
    let result = node.send_as(&client, 5, 5, b"u").outcome;
    assert!(matches!(result, Outcome::Executed { result: RequestResult::Trap(_), .. }));
}
