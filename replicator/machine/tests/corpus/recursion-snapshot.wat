;; expect: snapshot traps "call stack exhausted"
;; expect: restore traps "call stack exhausted"
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func $snapshot (export "rsm_snapshot") (param i32) (result i64)
    (i64.add (call $snapshot (local.get 0)) (i64.const 1)))
  (func $restore (export "rsm_restore") (param i32 i32 i32 i32) (result i32)
    (i32.add (call $restore (local.get 0) (local.get 1) (local.get 2) (local.get 3)) (i32.const 1))))
