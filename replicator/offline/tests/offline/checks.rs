//! An author's checks: good modules pass, and each planted fault is found and named.

use bytes::Bytes;
use replicator_offline::check::{Line, Report, Trial, Verdict, check};

use crate::{
    memory::{Memory, limits},
    notes::{Notes, PANIC, V1},
};

const MADE_UP: Trial<'_> = Trial::MadeUp { requests: 400, config: Bytes::new() };

fn hazards(key: &str, snapshot: &str, restore: &str) -> Bytes {
    let text = include_str!("hazards.wat");
    let text = text.replace("{key}", key).replace("{snapshot}", snapshot).replace("{restore}", restore);
    wat::parse_str(text).unwrap().into()
}

fn checked(module: &Bytes) -> Report {
    check(module, &MADE_UP, &mut |_| {}).unwrap()
}

fn line<'r>(report: &'r Report, what: &str) -> &'r Line {
    report.lines.iter().find(|line| line.what == what).unwrap_or_else(|| panic!("no line {what} in {report:#?}"))
}

/// The lines that aren't right.
fn wrong(report: &Report) -> Vec<(&'static str, Verdict)> {
    let wrong = report.lines.iter().filter(|line| line.verdict != Verdict::Ok);
    wrong.map(|line| (line.what, line.verdict)).collect()
}

#[test]
fn a_good_module_passes_every_check() {
    let report = checked(&hazards("(i32.const 0)", "", ""));
    assert_eq!(wrong(&report), [], "{report:#?}");
    let what: Vec<_> = report.lines.iter().map(|line| line.what).collect();
    assert_eq!(
        what,
        [
            "imports",
            "exports",
            "form",
            "limits",
            "compile",
            "description",
            "floats",
            "run",
            "twice",
            "image",
            "snapshot",
            "restore",
            "layout"
        ]
    );
    assert!(report.compile_time.is_some() && report.info.is_some());
}

#[test]
fn order_that_follows_addresses_is_found_by_another_layout() {
    // As a HashMap's keys do.
    let report = checked(&hazards("(i32.shr_u (global.get $end) (i32.const 4))", "", ""));
    assert_eq!(wrong(&report), [("layout", Verdict::Nondeterministic)], "{report:#?}");
    let told = &line(&report, "layout").told;
    assert!(told.contains("HashMap") && told.contains("BTreeMap") && told.contains("request"), "{told}");
}

#[test]
fn what_a_snapshot_leaves_out_or_adds_is_found() {
    // The state is whole, and an order isn't in it.
    let forgets = hazards("(global.get $end)", "", "(global.set $end (i32.add (global.get $end) (i32.const 1)))");
    assert_eq!(wrong(&checked(&forgets)), [("restore", Verdict::Nondeterministic)]);
    // A byte is lost on the way.
    let loses =
        hazards("(i32.const 0)", "", "(i32.store (i32.const 32) (i32.sub (i32.load (i32.const 32)) (i32.const 1)))");
    let report = checked(&loses);
    assert_eq!(wrong(&report), [("snapshot", Verdict::Nondeterministic), ("restore", Verdict::Nondeterministic)]);
    assert!(line(&report, "snapshot").told.contains("from byte 0"), "{report:#?}");
    // A snapshot that counts how often it was taken comes out equal: it is taken in a fork. One that is restored tells.
    let counts = hazards("(i32.const 0)", "(i32.store8 (i32.const 300) (i32.const 1))", "");
    assert_eq!(wrong(&checked(&counts)), []);
}

#[test]
fn a_module_that_cannot_take_its_own_state_is_refused() {
    let mut log = Memory::new(&[&V1.wasm()], limits());
    let mut client = log.open();
    for _ in 0..9 {
        log.send(&mut client, b"atext");
    }
    let report = |module: Notes| {
        let module = module.wasm();
        check(&module.into(), &Trial::Log(&log), &mut |_| {}).unwrap()
    };
    let good = report(V1);
    assert_eq!(wrong(&good), [], "{good:#?}");
    assert!(line(&good, "run").told.starts_with("9 requests of the log"), "{good:#?}");
    for (module, what) in
        [(Notes { restore: PANIC, ..V1 }, "rsm_restore"), (Notes { snapshot: PANIC, ..V1 }, "rsm_snapshot")]
    {
        let report = report(module);
        assert!(report.has(Verdict::Refused) && !report.has(Verdict::Nondeterministic), "{report:#?}");
        assert!(line(&report, "snapshot").told.contains(what), "{report:#?}");
    }
    let other_schema = report(Notes { description: "app=notes version=1 schema=3 accepts_from=1,2", ..V1 });
    assert_eq!(line(&other_schema, "compile").verdict, Verdict::Refused);
    assert!(line(&other_schema, "compile").told.contains("own schema 3"), "{other_schema:#?}");
}

#[test]
fn everything_that_is_missing_or_imported_is_named_at_once() {
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (import "env" "now" (func (result i64)))
            (memory (export "memory") 1)
            (func (export "rsm_apply") (param i32 i32) (result i64) (i64.const 0)))"#,
    );
    let report = checked(&module.unwrap().into());
    assert!(report.has(Verdict::Refused) && report.info.is_none());
    let imports = &line(&report, "imports").told;
    assert!(imports.contains("wasi_snapshot_preview1.fd_write") && imports.contains("env.now"), "{imports}");
    let exports = &line(&report, "exports").told;
    assert!(exports.contains("rsm_describe") && exports.contains("rsm_restore"), "{exports}");

    for (garbage, word) in [(&b"GIF89a"[..], "wasm"), (b"\0asm\x01\0\0\0", "memories"), (b"", "wasm")] {
        let report = checked(&Bytes::from_static(garbage));
        assert!(report.has(Verdict::Refused), "{report:#?}");
        assert!(line(&report, "form").told.contains(word), "{report:#?}");
    }
}

#[test]
fn functions_with_floats_are_named() {
    let text = include_str!("hazards.wat").replace("{key}", "(i32.trunc_sat_f32_s (f32.sqrt (f32.const 4)))");
    let module = wat::parse_str(text.replace("{snapshot}", "").replace("{restore}", "")).unwrap();
    let report = checked(&module.into());
    assert_eq!(wrong(&report), [("floats", Verdict::Warn)], "{report:#?}");
    assert_eq!(report.floats[0].name.as_deref(), Some("key"));
    assert!(line(&report, "floats").told.contains("key (1 at byte 0x"), "{report:#?}");
}

#[test]
fn a_module_that_refuses_its_configuration_says_so() {
    let module = Notes { init: "(call $panic_text) (return (i32.const 1))", ..V1 }.wasm();
    let report = check(&module.into(), &MADE_UP, &mut |_| {}).unwrap();
    assert_eq!(wrong(&report), [("begin", Verdict::Refused)], "{report:#?}");
}
