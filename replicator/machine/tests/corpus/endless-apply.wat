;; Loops for ever in apply; a query works.
;; expect: apply "l" traps "out of fuel"
;; expect: apply "l" traps "out of fuel"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func (export "rsm_apply") (param i32 i32) (result i64) (loop $ever (br $ever)) unreachable))
