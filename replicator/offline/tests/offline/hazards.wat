;; Keeps the bytes of requests and lists them, as a hash table with two buckets might: in an order that a key decides. What stands in braces
;; differs: the key, and what a snapshot and a restore do beside their work.
;;
;; Memory: 32 how many bytes are kept, 64 the bytes, 512 the description, 1024 the output list, 4096 the input.
(module
  (memory (export "memory") 40)
  (data (i32.const 512) "app=heap version=1 schema=1 accepts_from=1")
  (global $end (mut i32) (i32.const 0))
  (global $given (mut i32) (i32.const 0))

  (func (export "rsm_abi_1"))
  (func (export "rsm_describe") (result i64) (i64.const 0x000002000000002a))
  (func (export "rsm_input") (param $len i32) (result i32)
    (global.set $end (i32.add (i32.const 4096) (local.get $len))) ;; The next thing would be allocated here.
    (i32.const 4096))
  (func (export "rsm_init") (param i32 i32) (result i32) (i32.const 0))

  (func $key (result i32) {key})

  (func $list (result i64) (local $count i32) (local $i i32)
    (local.set $count (i32.load (i32.const 32)))
    (i64.store (i32.const 1024) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 32)))
    (block $done (loop $next
      (br_if $done (i32.eq (local.get $i) (local.get $count)))
      (i32.store8 (i32.add (i32.const 1048) (local.get $i))
        (i32.load8_u (i32.add (i32.const 64)
          (select (i32.sub (i32.sub (local.get $count) (local.get $i)) (i32.const 1)) (local.get $i) (i32.and (call $key) (i32.const 1))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i64.or (i64.const 0x0000040000000000)
      (i64.extend_i32_u (i32.and (i32.add (local.get $count) (i32.const 31)) (i32.const -8)))))

  (func (export "rsm_apply") (param $ptr i32) (param $len i32) (result i64) (local $count i32)
    (if (i32.and (i32.gt_u (local.get $len) (i32.const 64)) (i32.lt_u (i32.load (i32.const 32)) (i32.const 200))) (then
      (local.set $count (i32.load (i32.const 32)))
      (i32.store8 (i32.add (i32.const 64) (local.get $count)) (i32.load8_u offset=64 (local.get $ptr)))
      (i32.store (i32.const 32) (i32.add (local.get $count) (i32.const 1)))))
    (call $list))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $list))

  (func (export "rsm_snapshot") (param i32) (result i64)
    (if (global.get $given) (then (global.set $given (i32.const 0)) (return (i64.const 0))))
    (global.set $given (i32.const 1))
    {snapshot}
    (i64.or (i64.const 0x0000002000000000) (i64.extend_i32_u (i32.add (i32.load (i32.const 32)) (i32.const 32)))))
  (func (export "rsm_restore") (param $ptr i32) (param $len i32) (param i32 i32) (result i32)
    (memory.copy (i32.const 32) (local.get $ptr) (local.get $len))
    {restore}
    (i32.const 0)))
