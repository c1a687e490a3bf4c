;; A guest that does what a request's first byte says, for good or ill.
;;
;; Memory: 16 the description, 256 the panic buffer, 512 the state (i64 calls, i64 lifecycle trap), 8192 the output list,
;; 65536 the input (the second page).
(module
  (type $region (func (param i32 i32) (result i64)))
  (memory (export "memory") 2)
  (table 2 2 funcref)
  (elem (i32.const 0) $number)
  (global $calls (mut i64) (i64.const 0))
  (global $mean (mut f64) (f64.const 1))
  (global $hidden (mut f32) (f32.const 0.5))
  (data (i32.const 16) "app=hostile version=1 schema=1 accepts_from=1 ticks=1")

  (func (export "rsm_abi_1"))
  (func (export "rsm_describe") (result i64) (i64.const 0x0000001000000035))
  (func (export "rsm_input") (param i32) (result i32)
    ;; A second call would show.
    (i64.store (i32.const 528) (i64.add (i64.load (i32.const 528)) (i64.const 1)))
    (i32.const 65536))
  (func (export "rsm_init") (param $ptr i32) (param $len i32) (result i32)
    (if (i32.eqz (local.get $len)) (then (return (i32.const 0))))
    (if (i32.eq (i32.load8_u (local.get $ptr)) (i32.const 0x75)) (then unreachable)) ;; u
    (call $panic_text)
    (i32.const 1))
  (func (export "rsm_panic_buf") (result i32) (i32.const 256))
  (func (export "rsm_snapshot") (param i32) (result i64) (i64.const 0))
  (func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) (i32.const 0))

  (func $panic_text
    (i32.store (i32.const 256) (i32.const 4))
    (i32.store (i32.const 260) (i32.const 0x73706f6f))) ;; oops

  (func $number (result i32) (i32.const 7))

  (func $recurse (param i32) (result i32)
    (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (local.get 0)))

  ;; A record of tag $tag with $len bytes from $src, at $at. Returns where the next one goes.
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

  (func $apply (export "rsm_apply") (param $ptr i32) (param $len i32) (result i64)
    (local $op i32) (local $kind i32) (local $body i32) (local $rest i32)
    ;; Every call leaves its trace in memory and in every kind of global, before it does anything else.
    (i64.store (i32.const 512) (i64.add (i64.load (i32.const 512)) (i64.const 1)))
    (global.set $calls (i64.add (global.get $calls) (i64.const 3)))
    (global.set $mean (f64.div (f64.add (global.get $mean) (f64.const 1)) (f64.const 1.5)))
    (global.set $hidden (f32.add (global.get $hidden) (f32.const 1)))
    (local.set $kind (i32.load offset=4 (local.get $ptr)))
    (if (local.get $kind) (then
      (if (i64.ne (i64.load (i32.const 520)) (i64.const 0)) (then (call $panic_text) unreachable))
      ;; Push the kind to the client.
      (return (call $region (call $record (i32.const 8192) (i32.const 1) (i32.add (local.get $ptr) (i32.const 16))
        (i32.add (local.get $ptr) (i32.const 4)) (i32.const 1))))))
    (local.set $body (i32.add (local.get $ptr) (i32.const 65)))
    (local.set $rest (i32.sub (local.get $len) (i32.const 65)))
    (local.set $op (i32.load8_u offset=64 (local.get $ptr)))
    (if (i32.eq (local.get $op) (i32.const 0x65)) ;; e: echo
      (then (return (call $reply (local.get $body) (local.get $rest)))))
    (if (i32.eq (local.get $op) (i32.const 0x63)) ;; c: count
      (then (return (call $reply (i32.const 512) (i32.const 8)))))
    (if (i32.eq (local.get $op) (i32.const 0x68)) ;; h: header
      (then (return (call $reply (local.get $ptr) (i32.const 64)))))
    (if (i32.eq (local.get $op) (i32.const 0x78)) ;; x: the body is the output list
      (then (return (i64.or (i64.shl (i64.extend_i32_u (local.get $body)) (i64.const 32)) (i64.extend_i32_u (local.get $rest))))))
    (if (i32.eq (local.get $op) (i32.const 0x52)) ;; R: the body is the region itself
      (then (return (i64.load (local.get $body)))))
    (if (i32.eq (local.get $op) (i32.const 0x50)) ;; P: the body is pushed to the client, then a reply of nothing
      (then (return (call $region (call $record (call $record (i32.const 8192) (i32.const 1)
        (i32.add (local.get $ptr) (i32.const 16)) (local.get $body) (local.get $rest))
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))))
    (if (i32.eq (local.get $op) (i32.const 0x4c)) ;; L: the body is logged
      (then (return (call $region (call $record (i32.const 8192) (i32.const 2) (i32.const 0) (local.get $body) (local.get $rest))))))
    (if (i32.eq (local.get $op) (i32.const 0x74)) ;; t: from now on, trap when a session opens or closes, and in ticks
      (then (i64.store (i32.const 520) (i64.const 1)) (return (i64.const 0))))
    (if (i32.eq (local.get $op) (i32.const 0x75)) (then unreachable)) ;; u
    (if (i32.eq (local.get $op) (i32.const 0x70)) (then (call $panic_text) unreachable)) ;; p: panic with a message
    (if (i32.eq (local.get $op) (i32.const 0x71)) ;; q: panic with a buffer that says it is longer than the memory
      (then (i32.store (i32.const 256) (i32.const -1)) unreachable))
    (if (i32.eq (local.get $op) (i32.const 0x6c)) (then (loop $ever (br $ever)))) ;; l: loop
    (if (i32.eq (local.get $op) (i32.const 0x72)) (then (drop (call $recurse (i32.const 0))))) ;; r: recurse
    (if (i32.eq (local.get $op) (i32.const 0x6d)) (then ;; m: take all memory, and write to it
      (loop $more
        (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 42))
      (i32.store (i32.const 600) (memory.size))
      (return (call $reply (i32.const 600) (i32.const 4)))))
    (if (i32.eq (local.get $op) (i32.const 0x67)) (then ;; g: grow, write there, and trap
      (drop (memory.grow (i32.const 1)))
      (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 42))
      unreachable))
    (if (i32.eq (local.get $op) (i32.const 0x62)) ;; b: out of bounds
      (then (return (i64.load (i32.const -8)))))
    (if (i32.eq (local.get $op) (i32.const 0x64)) ;; d: divide by zero
      (then (return (i64.div_u (i64.const 1) (i64.load (i32.const 1000))))))
    (if (i32.eq (local.get $op) (i32.const 0x6f)) ;; o: overflow
      (then (return (i64.div_s (i64.const 0x8000000000000000) (i64.sub (i64.load (i32.const 1000)) (i64.const 1))))))
    (if (i32.eq (local.get $op) (i32.const 0x66)) ;; f: convert NaN
      (then (return (i64.trunc_f64_s (f64.const nan)))))
    (if (i32.eq (local.get $op) (i32.const 0x69)) ;; i: call nothing
      (then (return (i64.extend_i32_u (call_indirect (type $region_less) (i32.const 1))))))
    (if (i32.eq (local.get $op) (i32.const 0x6e)) (then ;; n: the bits of NaNs with payloads, after arithmetic
      (f64.store (i32.const 600) (f64.add (f64.reinterpret_i64 (i64.const 0x7ff4000000000123)) (f64.const 1)))
      (f64.store (i32.const 608) (f64.div (f64.const 0) (f64.convert_i64_u (i64.load (i32.const 1000)))))
      (f32.store (i32.const 616) (f32.mul (f32.reinterpret_i32 (i32.const 0x7fa00001)) (f32.const 2)))
      (f32.store (i32.const 620) (f32.sqrt (f32.const -1)))
      (return (call $reply (i32.const 600) (i32.const 24)))))
    (i64.const 0))
  (type $region_less (func (result i32)))

  (func (export "rsm_query") (param $ptr i32) (param $len i32) (result i64)
    (local $op i32)
    (local.set $op (i32.load8_u offset=64 (local.get $ptr)))
    (if (i32.eq (local.get $op) (i32.const 0x63)) ;; c: calls by memory
      (then (return (call $reply (i32.const 512) (i32.const 8)))))
    (if (i32.eq (local.get $op) (i32.const 0x6b)) (then ;; k: calls by global
      (i64.store (i32.const 600) (global.get $calls))
      (return (call $reply (i32.const 600) (i32.const 8)))))
    (if (i32.eq (local.get $op) (i32.const 0x69)) ;; i: how often the input was asked for
      (then (return (call $reply (i32.const 528) (i32.const 8)))))
    (if (i32.eq (local.get $op) (i32.const 0x73)) (then ;; s: pages
      (i32.store (i32.const 600) (memory.size))
      (return (call $reply (i32.const 600) (i32.const 4)))))
    (if (i32.eq (local.get $op) (i32.const 0x68)) ;; h: header
      (then (return (call $reply (local.get $ptr) (i32.const 64)))))
    (if (i32.eq (local.get $op) (i32.const 0x50)) ;; P: an ephemeral push
      (then (return (call $region (call $record (i32.const 8192) (i32.const 1) (i32.add (local.get $ptr) (i32.const 16))
        (local.get $ptr) (i32.const 1))))))
    ;; All others write all over the state first.
    (memory.fill (i32.const 512) (i32.const 0xff) (i32.const 16))
    (global.set $calls (i64.const 999))
    (global.set $mean (f64.const nan))
    (if (i32.eq (local.get $op) (i32.const 0x57)) (then ;; W: all of it
      (memory.fill (i32.const 512) (i32.const 0xff) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 512)))))
    (if (i32.eq (local.get $op) (i32.const 0x75)) (then unreachable)) ;; u
    (if (i32.eq (local.get $op) (i32.const 0x70)) (then (call $panic_text) unreachable)) ;; p
    (if (i32.eq (local.get $op) (i32.const 0x6c)) (then (loop $ever (br $ever)))) ;; l
    (if (i32.eq (local.get $op) (i32.const 0x67)) (then ;; g: grow and write there
      (drop (memory.grow (i32.const 3)))
      (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 42))))
    (call $reply (i32.const 512) (i32.const 8)))
)
