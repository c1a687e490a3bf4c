;; expect: snapshot traps "out of fuel"
;; expect: restore traps "out of fuel"
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func (export "rsm_snapshot") (param i32) (result i64) (loop $ever (br $ever)) unreachable)
  (func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) (loop $ever (br $ever)) unreachable))
