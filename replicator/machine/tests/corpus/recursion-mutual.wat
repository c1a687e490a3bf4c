;; Three functions in a circle, with frames of different sizes, one in a loop.
;; expect: apply "" traps "call stack exhausted"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func $a (param i64 i32) (result i64) (call $b (local.get 1) (f64.convert_i64_s (local.get 0))))
  (func $b (param i32 f64) (result i64) (local f64 f64 f64 i64)
    (local.set 2 (f64.add (local.get 1) (f64.const 1)))
    (local.set 5 (call $c (local.get 2) (local.get 0)))
    (i64.add (local.get 5) (i64.trunc_sat_f64_s (local.get 2))))
  (func $c (param f64 i32) (result i64) (local i64)
    (loop $again
      (local.set 2 (i64.add (local.get 2) (call $a (i64.trunc_sat_f64_s (local.get 0)) (local.get 1))))
      (br_if $again (local.get 1)))
    (local.get 2))
  (func (export "rsm_apply") (param i32 i32) (result i64) (call $a (i64.const 1) (i32.const 0))))
