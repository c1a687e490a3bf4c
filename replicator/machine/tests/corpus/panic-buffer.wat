;; A panic buffer that recurses for ever while the host looks for the message; the trap before it keeps its kind.
;; expect: apply "" traps "the module panicked"
;; expect: apply "" traps "the module panicked"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (func $buffer (export "rsm_panic_buf") (result i32) (i32.add (call $buffer) (i32.const 1)))
  (func (export "rsm_apply") (param i32 i32) (result i64) unreachable))
