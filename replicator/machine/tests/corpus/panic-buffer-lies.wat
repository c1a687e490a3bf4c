;; A panic buffer at the end of memory, one that says it is longer than the memory, one that isn't UTF-8.
;; expect: apply "e" traps "the module panicked"
;; expect: apply "l" traps "the module panicked"
;; expect: apply "u" traps "��ok"
(module {{abi}}
  (global $at (mut i32) (i32.const -1))
  (data (i32.const 256) "\ff\ff\ff\ff") (data (i32.const 512) "\04\00\00\00\ff\feok")
  (func (export "rsm_panic_buf") (result i32) (global.get $at))
  (func (export "rsm_apply") (param i32 i32) (result i64)
    (local $op i32)
    (local.set $op (i32.load8_u offset=64 (local.get 0)))
    (if (i32.eq (local.get $op) (i32.const 0x6c)) (then (global.set $at (i32.const 256))))
    (if (i32.eq (local.get $op) (i32.const 0x75)) (then (global.set $at (i32.const 512))))
    unreachable))
