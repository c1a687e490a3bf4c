;; Loops for ever in query, by calls without a loop; apply works.
;; expect: query "" traps "out of fuel"
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
;; expect: query "" traps "out of fuel"
(module {{abi}}
  (func $twice (param i32)
    (if (i32.eqz (local.get 0)) (then (return)))
    (call $twice (i32.sub (local.get 0) (i32.const 1)))
    (call $twice (i32.sub (local.get 0) (i32.const 1))))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $twice (i32.const 60)) (i64.const 0)))
