;; Sets every global that it has, and stops: that is a panic, and no exhausted stack. So is a panic after one that was.
;; expect: apply "u" traps "the module panicked"
;; expect: apply "r" traps "call stack exhausted"
;; expect: apply "u" traps "the module panicked"
;; expect: query "" traps "the module panicked"
(module {{abi}}
  (global $a (mut i32) (i32.const 0)) (global $b (mut i32) (i32.const 0)) (global $c (mut i32) (i32.const 0))
  (func $down (result i32) (i32.add (call $down) (i32.const 1)))
  (func $forge (global.set $a (i32.const 1)) (global.set $b (i32.const 1)) (global.set $c (i32.const 1)))
  (func (export "rsm_apply") (param i32 i32) (result i64)
    (if (i32.eq (i32.load8_u offset=64 (local.get 0)) (i32.const 0x72)) (then (drop (call $down))))
    (call $forge) unreachable)
  (func (export "rsm_query") (param i32 i32) (result i64) (call $forge) unreachable))
