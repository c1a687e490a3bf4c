;; Frames as large as they can be: 5,000 locals, 2,000 values on the operand stack, 128 parameters and results.
;; expect: apply "l" traps "call stack exhausted"
;; expect: apply "o" traps "call stack exhausted"
;; expect: apply "p" traps "call stack exhausted"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func $locals (param f64) (result f64) (local {{5000 f64 }})
    (call $set) (drop (call $locals (f64.add (local.get 0) (f64.const 1))))
    (f64.add (local.get 1) (local.get 5000)))
  (func $set)
  (func $operands (param i64) (result i64)
    {{2000 (i64.load (i32.wrap_i64 (local.get 0))) }} (call $operands (i64.const 8)) {{2000 i64.add }})
  (func $wide (param {{128 i64 }}) (result {{128 i64 }})
    (call $wide {{128 (i64.load (i32.wrap_i64 (local.get 0))) }}))
  (func (export "rsm_apply") (param i32 i32) (result i64)
    (local $op i32)
    (local.set $op (i32.load8_u offset=64 (local.get 0)))
    (if (i32.eq (local.get $op) (i32.const 0x6c)) (then (drop (call $locals (f64.const 0)))))
    (if (i32.eq (local.get $op) (i32.const 0x6f)) (then (drop (call $operands (i64.const 0)))))
    (call $wide {{128 (i64.const 8) }}) {{127 drop }}))
