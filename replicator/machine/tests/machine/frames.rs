//! The stack: what frames are counted as covers what the compiler takes, and recursion ends at the same call always.

use std::fmt::Write as _;

use replicator_machine::{TrapKind, trial::Trial, with_apply_stack};

use crate::corpus::files;

fn module(fields: &str) -> Vec<u8> {
    wat::parse_str(files::expand(&format!("(module (memory (export \"memory\") 8) {{{{abi}}}} {fields})")))
        .expect("the test's own text")
}

fn lines(count: usize, mut line: impl FnMut(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, i| {
        writeln!(text, "{}", line(i)).expect("a string takes all");
        text
    })
}

/// Functions that try to make the compiler take more stack than they are counted for.
fn adversaries() -> Vec<(&'static str, String, String)> {
    let load = |i: usize| format!("(f64.load offset={} (local.get $p))", 8 * i);
    vec![
        (
            "trivial",
            "(func $f (param i32) (result i32) (i32.add (call $f (local.get 0)) (i32.const 1)))".to_owned(),
            "(drop (call $f (i32.const 0)))".to_owned(),
        ),
        ("nothing", "(func $f (call $f))".to_owned(), "(call $f)".to_owned()),
        (
            "locals that live across a call",
            format!(
                "(func $f (param $p i32) (result f64) (local {}) {} (drop (call $f (local.get $p))) (f64.const 0) {})",
                "f64 ".repeat(5_000),
                lines(5_000, |i| format!("(local.set {} {})", i + 1, load(i))),
                lines(5_000, |i| format!("(f64.add (local.get {}))", i + 1)),
            ),
            "(drop (call $f (i32.const 0)))".to_owned(),
        ),
        (
            "values on the operand stack",
            format!(
                "(func $f (param $p i32) (result f64) {} (call $f (local.get $p)) {})",
                lines(2_000, load),
                "f64.add ".repeat(2_000)
            ),
            "(drop (call $f (i32.const 0)))".to_owned(),
        ),
        (
            "values that are equal before and after a call",
            format!(
                "(func $f (param $p i32) (result i64) (local $x f64) (local.set $x {}) {} (drop (call $f (local.get $p))) {} (i64.const 0))",
                load(0),
                lines(6_000, |i| format!("(f64.store (i32.const 8) (f64.mul (local.get $x) (f64.const {}.5)))", i + 1)),
                lines(6_000, |i| format!(
                    "(f64.store (i32.const 16) (f64.mul (local.get $x) (f64.const {}.5)))",
                    i + 1
                )),
            ),
            "(drop (call $f (i32.const 0)))".to_owned(),
        ),
        (
            "values that don't change in a loop with a call",
            format!(
                "(func $f (param $p i32) (param $x i64) (loop $l {} (call $f (local.get $p) (local.get $x)) (br_if $l (local.get $p))))",
                lines(8_000, |i| format!(
                    "(i64.store (i32.const 8) (i64.mul (local.get $x) (i64.const {})))",
                    3 * i + 7
                )),
            ),
            "(call $f (i32.const 0) (i64.const 3))".to_owned(),
        ),
        (
            "addresses that don't change in a loop with a call",
            format!(
                "(func $f (param $p i32) (param $x i32) (loop $l {} (call $f (local.get $p) (local.get $x)) (br_if $l (local.get $p))))",
                lines(8_000, |i| format!(
                    "(i32.store (i32.mul (local.get $x) (i32.const {})) (i32.load (i32.mul (local.get $p) (i32.const {}))))",
                    2 * i + 3,
                    2 * i + 5
                )),
            ),
            "(call $f (i32.const 0) (i32.const 0))".to_owned(),
        ),
        (
            "wide calls",
            format!(
                "(func $f (param {0}) (result {0}) (call $f {1}) (call $f) (call $f))",
                "f64 ".repeat(128),
                lines(128, |i| format!("(f64.load offset={} (i32.const 0))", 8 * i))
            ),
            format!("{} (call $f) {}", "(f64.const 0) ".repeat(128), "drop ".repeat(128)),
        ),
        (
            "wide results that all live",
            format!(
                "(func $f (result {}) {} {})",
                "f64 ".repeat(128),
                "(call $f) ".repeat(15),
                "f64.add ".repeat(14 * 128)
            ),
            format!("(call $f) {}", "drop ".repeat(128)),
        ),
        (
            "locals that nested loops change",
            format!(
                "(func $f (param $p i32) (result f64) (local {}) {} {} (drop (call $f (local.get $p))) {} {})",
                "f64 ".repeat(300),
                "(loop ".repeat(30),
                lines(300, |i| format!("(local.set {0} (f64.add (local.get {0}) {1}))", i + 1, load(i))),
                "(br_if 0 (local.get $p)))".repeat(30),
                "(local.get 1) ".to_owned(),
            ),
            "(drop (call $f (i32.const 0)))".to_owned(),
        ),
        (
            "ifs with results",
            format!(
                "(func $f (param $p i32) (result f64) (f64.const 0) {} )",
                lines(1_500, |i| format!(
                    "(if (result f64) (local.get $p) (then (call $f (local.get $p))) (else {})) f64.add",
                    load(i)
                )),
            ),
            "(drop (call $f (i32.const 1)))".to_owned(),
        ),
        (
            "indirect calls",
            format!(
                "(type $t (func (param i32) (result i64))) (table 1 funcref) (elem (i32.const 0) $f) \
                 (func $f (param $p i32) (result i64) (i64.const 0) {} {})",
                "(call_indirect (type $t) (local.get $p) (i32.const 0)) ".repeat(2_000),
                "i64.add ".repeat(2_000),
            ),
            "(drop (call $f (i32.const 1)))".to_owned(),
        ),
        (
            "divisions and conversions",
            format!(
                "(func $f (param $p i32) (param $x f64) (result i64) (i64.const 0) {} (drop (call $f (local.get $p) (local.get $x))) {})",
                lines(2_000, |i| format!(
                    "(i64.rem_s (i64.trunc_sat_f64_s (f64.min (local.get $x) (f64.const {i}.25))) (i64.const {}))",
                    i + 2
                )),
                "i64.xor ".repeat(2_000),
            ),
            "(drop (call $f (i32.const 1) (f64.const 2)))".to_owned(),
        ),
    ]
}

#[test]
fn no_frame_takes_more_stack_than_it_is_counted_for() {
    let mut worst = 0.0f64;
    for (name, text, _) in adversaries() {
        let trial = Trial::load(&module(&text)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let frames = trial.frames();
        assert!(cfg!(not(target_arch = "x86_64")) || !frames.is_empty());
        for (counted, most, native) in frames {
            assert!(native <= most, "{name}: a frame of {native} bytes counts as {counted}, which covers {most}");
            worst = worst.max(native as f64 / most as f64);
        }
        if let Some(&(counted, _, native)) = trial.frames().iter().max_by_key(|frame| frame.2) {
            println!(
                "{name}: {native} bytes of stack, counted as {counted}: {:.2} each",
                native as f64 / counted as f64
            );
        }
    }
    println!("at most {:.0} % of what is covered", worst * 100.0);
}

#[test]
fn the_deepest_recursion_of_any_frame_ends_within_the_native_stack() {
    for (name, text, call) in adversaries() {
        let text = format!("{text} (func (export \"rsm_panic_buf\") (result i32) {call} (i32.const 0))");
        let trial = Trial::load(&module(&text)).unwrap();
        let deep = || trial.run(true, &[("rsm_panic_buf", vec![])], 64, 1 << 40);
        let steps = with_apply_stack(deep).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(steps[0].result, Err(TrapKind::StackOverflow), "{name}");
    }
}

#[test]
fn recursion_ends_at_the_call_that_the_bytes_say() {
    // 128 for the frame, 16 for the parameter and 32 for what the call passes, 2 for each of 8 values.
    let text = "(global $depth (mut i32) (i32.const 0)) (func $f (param i32) (result i32) \
                (global.set $depth (i32.add (global.get $depth) (i32.const 1))) \
                (i32.add (call $f (local.get 0)) (i32.const 1))) \
                (func (export \"rsm_panic_buf\") (result i32) (call $f (i32.const 1)))";
    let trial = Trial::load(&module(text)).unwrap();
    let run = || trial.run(true, &[("rsm_panic_buf", vec![]), ("rsm_panic_buf", vec![])], 64, 1 << 40);
    let steps = with_apply_stack(run).unwrap().unwrap();
    assert_eq!(steps[0].result, Err(TrapKind::StackOverflow));
    println!("{} calls, then {}", steps[0].globals[0], steps[1].globals[0]);
    assert_eq!(steps[0].globals[0] * 2, steps[1].globals[0], "each call from the host has all of the budget");
    assert_eq!(with_apply_stack(run).unwrap().unwrap(), steps);
}
