;; By the table, and by its own exports.
;; expect: apply "i" traps "call stack exhausted"
;; expect: apply "a" traps "call stack exhausted"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (type $f (func (param i32) (result i32)))
  (table 3 3 funcref)
  (elem (i32.const 1) $down)
  (func $down (param i32) (result i32)
    (i32.add (local.get 0) (call_indirect (type $f) (i32.add (local.get 0) (i32.const 1)) (i32.const 1))))
  (func $apply (export "rsm_apply") (param i32 i32) (result i64)
    (if (i32.eq (i32.load8_u offset=64 (local.get 0)) (i32.const 0x61))
      (then (return (i64.add (call $apply (local.get 0) (local.get 1)) (i64.const 1)))))
    (i64.extend_i32_u (call $down (i32.const 0)))))
