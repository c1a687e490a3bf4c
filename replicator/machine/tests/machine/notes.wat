;; A guest with a logical state: a number of calls, a number of sessions opened and closed, and a text. What stands in braces differs from
;; module to module: its description, what a call adds, and what it does first in some exports.
;;
;; Memory: 16 the description, 256 the panic buffer, 8192 the output list, 65536 the input, 131056 the state: i64 calls, i64 opened and
;; closed, the text.
(module
  (memory (export "memory") 3)
  (data (i32.const 16) "{description}")
  (global $length (mut i32) (i32.const 0))
  ;; How far a snapshot or a restore got.
  (global $at (mut i32) (i32.const 0))

  (func (export "rsm_abi_1"))
  (func (export "rsm_describe") (result i64) (i64.const {describe}))
  (func (export "rsm_panic_buf") (result i32) (i32.const 256))
  (func (export "rsm_input") (param i32) (result i32) (i32.const 65536))
  (func (export "rsm_init") (param $ptr i32) (param $len i32) (result i32)
    {init}
    (i32.const 0))

  (func $panic_text
    (i32.store (i32.const 256) (i32.const 4))
    (i32.store (i32.const 260) (i32.const 0x73706f6f))) ;; oops

  ;; Makes room for a state of so many bytes.
  (func $room (param $bytes i32)
    (local.set $bytes (i32.add (local.get $bytes) (i32.const 131056)))
    (loop $more
      (if (i32.gt_u (local.get $bytes) (i32.mul (memory.size) (i32.const 65536))) (then
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (br $more)))))

  (func $record (param $at i32) (param $tag i32) (param $to i32) (param $src i32) (param $len i32) (result i32)
    (i32.store (local.get $at) (local.get $tag))
    (i32.store offset=4 (local.get $at) (local.get $len))
    (memory.copy (i32.add (local.get $at) (i32.const 8)) (local.get $to) (i32.const 16))
    (memory.copy (i32.add (local.get $at) (i32.const 24)) (local.get $src) (local.get $len))
    (i32.and (i32.add (i32.add (local.get $at) (local.get $len)) (i32.const 31)) (i32.const -8)))
  (func $region (param $end i32) (result i64)
    (i64.or (i64.const 0x0000200000000000) (i64.extend_i32_u (i32.sub (local.get $end) (i32.const 8192)))))
  (func $reply (param $src i32) (param $len i32) (result i64)
    (call $region (call $record (i32.const 8192) (i32.const 0) (i32.const 0) (local.get $src) (local.get $len))))

  (func (export "rsm_apply") (param $ptr i32) (param $len i32) (result i64) (local $op i32) (local $body i32) (local $rest i32)
    (if (i32.load offset=4 (local.get $ptr)) (then
      (i64.store (i32.const 131064) (i64.add (i64.load (i32.const 131064)) (i64.const 1)))
      (return (i64.const 0))))
    (i64.store (i32.const 131056) (i64.add (i64.load (i32.const 131056)) (i64.const {step})))
    (local.set $op (i32.load8_u offset=64 (local.get $ptr)))
    (local.set $body (i32.add (local.get $ptr) (i32.const 65)))
    (local.set $rest (i32.sub (local.get $len) (i32.const 65)))
    (if (i32.eq (local.get $op) (i32.const 0x61)) (then ;; a: append the body to the text
      (call $room (i32.add (i32.add (global.get $length) (local.get $rest)) (i32.const 16)))
      (memory.copy (i32.add (global.get $length) (i32.const 131072)) (local.get $body) (local.get $rest))
      (global.set $length (i32.add (global.get $length) (local.get $rest)))))
    (if (i32.eq (local.get $op) (i32.const 0x50)) (then ;; P: push the body to the client
      (return (call $region (call $record (i32.const 8192) (i32.const 1)
        (i32.add (local.get $ptr) (i32.const 16)) (local.get $body) (local.get $rest))))))
    (if (i32.eq (local.get $op) (i32.const 0x75)) (then unreachable)) ;; u
    (if (i32.eq (local.get $op) (i32.const 0x67)) (then (drop (memory.grow (i32.const 1))) unreachable)) ;; g: grow, and trap
    (call $reply (i32.const 131056) (i32.const 8))) ;; The calls.

  (func (export "rsm_query") (param $ptr i32) (param $len i32) (result i64) (local $op i32)
    (local.set $op (i32.load8_u offset=64 (local.get $ptr)))
    (if (i32.eq (local.get $op) (i32.const 0x6c)) ;; l: the length of the text
      (then (i32.store (i32.const 600) (global.get $length)) (return (call $reply (i32.const 600) (i32.const 4)))))
    (if (i32.eq (local.get $op) (i32.const 0x74)) ;; t: the last 100 bytes of the text
      (then (return (call $reply (i32.add (global.get $length) (i32.const 130972)) (i32.const 100)))))
    (if (i32.eq (local.get $op) (i32.const 0x6f)) ;; o: opened and closed
      (then (return (call $reply (i32.const 131064) (i32.const 8)))))
    (call $reply (i32.const 131056) (i32.const 8)))

  (func (export "rsm_snapshot") (param $max i32) (result i64) (local $left i32) (local $from i32)
    {snapshot}
    (local.set $from (i32.add (global.get $at) (i32.const 131056)))
    (local.set $left (i32.sub (i32.add (global.get $length) (i32.const 16)) (global.get $at)))
    (if (i32.eqz (local.get $left)) (then (global.set $at (i32.const 0)) (return (i64.const 0))))
    (if (i32.gt_u (local.get $left) (local.get $max)) (then (local.set $left (local.get $max))))
    (global.set $at (i32.add (global.get $at) (local.get $left)))
    (i64.or (i64.shl (i64.extend_i32_u (local.get $from)) (i64.const 32)) (i64.extend_i32_u (local.get $left))))

  (func (export "rsm_restore") (param $ptr i32) (param $len i32) (param $schema i32) (param $last i32) (result i32)
    {restore}
    (call $room (i32.add (global.get $at) (local.get $len)))
    (memory.copy (i32.add (global.get $at) (i32.const 131056)) (local.get $ptr) (local.get $len))
    (global.set $at (i32.add (global.get $at) (local.get $len)))
    (if (local.get $last) (then
      (global.set $length (i32.sub (global.get $at) (i32.const 16)))
      (global.set $at (i32.const 0))))
    (i32.const 0)))
