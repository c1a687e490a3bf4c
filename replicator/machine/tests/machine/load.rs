//! Load checks: each refusal is typed, and says what to do.

use replicator_machine::{LoadError, load};

use crate::harness::hostile;

const EXPORTS: [&str; 8] = [
    r#"(func (export "rsm_abi_1"))"#,
    r#"(func (export "rsm_describe") (result i64) (i64.const 0))"#,
    r#"(func (export "rsm_input") (param i32) (result i32) (i32.const 1024))"#,
    r#"(func (export "rsm_init") (param i32 i32) (result i32) (i32.const 0))"#,
    r#"(func (export "rsm_apply") (param i32 i32) (result i64) (i64.const 0))"#,
    r#"(func (export "rsm_query") (param i32 i32) (result i64) (i64.const 0))"#,
    r#"(func (export "rsm_snapshot") (param i32) (result i64) (i64.const 0))"#,
    r#"(func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) (i32.const 0))"#,
];

const MEMORY: &str = r#"(memory (export "memory") 1)"#;

fn refusal(fields: &str) -> LoadError {
    let module = wat::parse_str(format!("(module {fields})")).expect("wat can write it");
    load::check(&module).expect_err("it is refused")
}

/// The refusal of a module that is whole but for `more`.
fn refused_with(more: &str) -> LoadError {
    refusal(&format!("{more} {MEMORY} {}", EXPORTS.concat()))
}

fn instruction(more: &str) -> &'static str {
    match refused_with(more) {
        LoadError::Instruction { instruction, .. } => instruction,
        other => panic!("{other}"),
    }
}

#[test]
fn a_whole_module_is_taken_and_describes_itself() {
    let info = load::describe(&hostile()).unwrap();
    assert_eq!(info.description, "app=hostile version=1 schema=1 accepts_from=1 ticks=1");
    assert_eq!((info.word("schema"), info.word("ticks"), info.word("none")), (Some("1"), Some("1"), None));
    assert_eq!((info.mutable_globals, info.memory_pages_min), (3, 2));
    assert_eq!(load::check(&hostile()).unwrap().description, "");
}

#[test]
fn what_is_no_module_is_refused() {
    for bytes in [&b""[..], b"\0as", b"not wasm at all"] {
        assert!(matches!(load::check(bytes), Err(LoadError::NotWasm)), "{bytes:?}");
    }
    for bytes in [&b"\0asm"[..], b"\0asm\x0d\0\x01\0"] {
        assert!(matches!(load::check(bytes), Err(LoadError::Invalid { .. } | LoadError::Memories { .. })), "{bytes:?}");
    }
    let whole = hostile();
    // wat writes one section after the code and the data, with names; without it the module is whole, too.
    let taken = (0..whole.len()).filter(|&cut| load::check(&whole[..cut]).is_ok()).count();
    assert!(taken <= 2, "{taken}");
    assert!(matches!(load::check(&vec![0; load::MODULE_BYTES_MAX + 1]), Err(LoadError::TooLong { .. })));
}

#[test]
fn a_module_with_any_one_bit_flipped_is_taken_or_refused() {
    let whole = hostile();
    for bit in (0..whole.len() * 8).step_by(7) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = load::check(&flipped);
    }
}

#[test]
fn imports_are_refused_by_name() {
    let error = refused_with(r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#);
    assert_eq!(error, LoadError::Import { module: "wasi_snapshot_preview1".into(), name: "fd_write".into() });
    assert!(error.to_string().contains("wasm32-unknown-unknown"));
    assert!(matches!(refusal(r#"(import "env" "memory" (memory 1))"#), LoadError::Import { .. }));
}

#[test]
fn a_start_function_is_refused() {
    assert_eq!(refused_with("(func $start) (start $start)"), LoadError::Start);
}

#[test]
fn exactly_one_memory_is_taken() {
    assert_eq!(refusal(&EXPORTS.concat()), LoadError::Memories { count: 0 });
    assert!(matches!(refused_with("(memory 1)"), LoadError::Invalid { .. } | LoadError::Memories { count: 2 }));
    assert_eq!(refusal(&format!("(memory 1) {}", EXPORTS.concat())), LoadError::MissingExport { name: "memory" });
}

#[test]
fn each_export_must_be_there_with_its_type() {
    for (missing, _) in EXPORTS.iter().enumerate() {
        let others: Vec<&str> =
            EXPORTS.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, text)| *text).collect();
        let error = refusal(&format!("{MEMORY} {}", others.concat()));
        let LoadError::MissingExport { name } = error else { panic!("{error}") };
        assert!(EXPORTS[missing].contains(name));
        let wrong = refusal(&format!(r#"{MEMORY} {} (func (export "{name}") (param f32))"#, others.concat()));
        assert!(matches!(wrong, LoadError::WrongExport { name: found, .. } if found == name), "{wrong}");
        let global = refusal(&format!(r#"{MEMORY} {} (global (export "{name}") i32 (i32.const 1))"#, others.concat()));
        assert!(matches!(global, LoadError::WrongExport { .. }), "{global}");
    }
    assert!(matches!(refused_with(r#"(func (export "rsm_panic_buf"))"#), LoadError::WrongExport { .. }));
    assert!(matches!(refused_with(r#"(func (export "_initialize") (param i32))"#), LoadError::WrongExport { .. }));
    assert!(matches!(refused_with(r#"(func (export "__wizer_global_0"))"#), LoadError::ReservedExport { .. }));
}

#[test]
fn instructions_that_images_cannot_hold_are_refused() {
    let table = "(table 2 funcref) (elem $e func 0) (data $d \"x\")";
    for (text, name) in [
        ("(table.set 0 (i32.const 0) (ref.null func))", "table.set"),
        ("(drop (table.grow 0 (ref.null func) (i32.const 1)))", "table.grow"),
        ("(table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))", "table.fill"),
        ("(table.copy 0 0 (i32.const 0) (i32.const 1) (i32.const 1))", "table.copy"),
        ("(table.init 0 $e (i32.const 0) (i32.const 0) (i32.const 1))", "table.init"),
        ("(elem.drop $e)", "elem.drop"),
        ("(data.drop $d)", "data.drop"),
    ] {
        assert_eq!(instruction(&format!("{table} (func {text})")), name);
    }
    assert_eq!(
        refused_with("(global i32 (i32.const 0)) (global (mut funcref) (ref.null func))"),
        LoadError::MutableReference { index: 1 }
    );
}

#[test]
fn copying_and_filling_memory_is_taken() {
    let fields = "(data $d \"x\") (func (memory.copy (i32.const 0) (i32.const 8) (i32.const 8)) \
                  (memory.fill (i32.const 0) (i32.const 1) (i32.const 8)) \
                  (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))";
    let module = wat::parse_str(format!("(module {MEMORY} {fields} {})", EXPORTS.concat())).unwrap();
    assert!(load::check(&module).is_ok());
}

#[test]
fn features_that_are_off_are_refused() {
    for text in [
        "(func (drop (v128.const i64x2 0 0)))",
        "(func (return_call 0))",
        "(func (drop (i32.atomic.load (i32.const 0))))",
        "(tag)",
        "(func (param externref))",
        "(type (struct))",
        "(table i64 1 funcref)",
        "(func (drop (i64.add128 (i64.const 0) (i64.const 0) (i64.const 0) (i64.const 0))) (drop))",
    ] {
        let error = refused_with(text);
        assert!(matches!(error, LoadError::Invalid { .. }), "{text}: {error}");
    }
    let memory64 = refusal(&format!(r#"(memory (export "memory") i64 1) {}"#, EXPORTS.concat()));
    assert!(matches!(memory64, LoadError::Invalid { .. }), "{memory64}");
    let shared = refusal(&format!(r#"(memory (export "memory") 1 2 shared) {}"#, EXPORTS.concat()));
    assert!(matches!(shared, LoadError::Invalid { .. }), "{shared}");
}

#[test]
fn sizes_past_their_limits_are_refused() {
    let nested = |n: usize| format!("(func {} {})", "(block ".repeat(n), ")".repeat(n));
    let targets = "0 ".repeat(load::BR_TABLE_TARGETS_MAX as usize + 2);
    for (text, expected) in [
        ("(func)".repeat(load::FUNCTIONS_MAX), "functions"),
        (format!("(func {})", "(drop (i64.const 0x7fffffffffffffff))".repeat(30_000)), "bytes in a function"),
        (format!("(func (local {}))", "i32 ".repeat(load::LOCALS_MAX as usize + 1)), "locals in a function"),
        (nested(load::NESTING_MAX + 1), "blocks within blocks"),
        (format!("(func (block (br_table {targets} (i32.const 0))))"), "targets of a br_table"),
        (format!("(func {} {})", "i32.const 1 ".repeat(2_049), "drop ".repeat(2_049)), "values on the operand stack"),
        (format!("(func {} {})", "loop ".repeat(101), "end ".repeat(101)), "loops within loops"),
        (
            format!("(func {})", "(loop (drop (local.get 0)))".repeat(20_001)).replace("(func ", "(func (param i32) "),
            "locals in loops of a function",
        ),
        (
            "(type $w (func (result i64 i64 i64 i64))) (func $w (type $w) unreachable) ".to_owned()
                + &format!("(func {})", "(call $w) drop drop drop drop ".repeat(40_000)),
            "values in a function",
        ),
        ("(global i32 (i32.const 0))".repeat(load::GLOBALS_MAX + 1), "globals"),
        ("(table 1 funcref)".repeat(load::TABLES_MAX + 1), "tables"),
        (format!("(table {} funcref)", load::TABLE_ELEMENTS_MAX + 1), "elements in a table"),
        (format!("(func (param {}))", "i32 ".repeat(load::ARITY_MAX + 1)), "parameters of a type"),
        ("(data \"\")".repeat(load::SEGMENTS_MAX + 1), "data segments"),
    ] {
        match refused_with(&text) {
            LoadError::TooMany { what, found, max } => {
                assert_eq!(what, expected);
                assert!(found > max);
            }
            other => panic!("{expected}: {other}"),
        }
    }
    let module =
        wat::parse_str(format!("(module {MEMORY} {} {})", nested(load::NESTING_MAX), EXPORTS.concat())).unwrap();
    load::check(&module).unwrap();
}

#[test]
fn a_description_must_be_short_printable_and_end() {
    for body in [
        "(i64.const 0x100000000fffffff)",
        "(loop (br 0)) (i64.const 0)",
        "unreachable",
        "(i64.const 0x0000001000000001)",
    ] {
        let mut exports = EXPORTS.map(str::to_owned);
        exports[1] = format!(r#"(data (i32.const 16) "\01") (func (export "rsm_describe") (result i64) {body})"#);
        let module = wat::parse_str(format!("(module {MEMORY} {})", exports.concat())).unwrap();
        let error = load::describe(&module).unwrap_err();
        assert!(matches!(error, LoadError::Call { call: "rsm_describe", .. }), "{error}");
    }
}

#[test]
fn a_segment_outside_of_memory_is_refused() {
    let fields = format!("{MEMORY} (data (i32.const 65536) \"x\") {}", EXPORTS.concat());
    let error = load::describe(&wat::parse_str(format!("(module {fields})")).unwrap()).unwrap_err();
    assert!(matches!(error, LoadError::Call { .. }), "{error}");
}
