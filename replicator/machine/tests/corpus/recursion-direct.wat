;; Recursion for ever, and one of 10,000 calls, which has room.
;; expect: apply "for ever" traps "call stack exhausted"
;; expect: query "for ever" traps "call stack exhausted"
;; expect: apply "" replies "\10\27\00\00\00\00\00\00"
;; expect: apply "for ever" traps "call stack exhausted"
(module {{abi}}
  (func $down (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (call $down (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))
      (else (i32.const 0))))
  (func $deep (param $ptr i32) (param $len i32) (result i64)
    (call $reply (i64.extend_i32_u (call $down
      (select (i32.const -1) (i32.const 10000) (i32.gt_u (local.get $len) (i32.const 64)))))))
  (func (export "rsm_apply") (param i32 i32) (result i64) (call $deep (local.get 0) (local.get 1)))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $deep (local.get 0) (local.get 1))))
