;; NaNs with payloads, signs and signalling bits, through arithmetic of both widths, into globals and memory: all come out as the one NaN. The
;; answer is the or of what differs from it.
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (global $wide (mut f64) (f64.const nan:0x4000000000123)) (global $narrow (mut f32) (f32.const -nan:0x200001))
  (func $differs64 (param f64) (result i64)
    (i64.xor (i64.reinterpret_f64 (local.get 0)) (i64.const 0x7ff8000000000000)))
  (func $differs32 (param f32) (result i64)
    (i64.extend_i32_u (i32.xor (i32.reinterpret_f32 (local.get 0)) (i32.const 0x7fc00000))))
  (func $all (param $a f64) (param $b f32) (result i64)
    (global.set $wide (f64.mul (global.get $wide) (local.get $a)))
    (global.set $narrow (f32.sub (local.get $b) (global.get $narrow)))
    (call $differs64 (f64.add (local.get $a) (f64.const 1)))
    (i64.or (call $differs64 (f64.sqrt (local.get $a))))
    (i64.or (call $differs64 (f64.min (local.get $a) (f64.const 0))))
    (i64.or (call $differs64 (f64.max (f64.const 0) (local.get $a))))
    (i64.or (call $differs64 (f64.ceil (local.get $a))))
    (i64.or (call $differs64 (f64.floor (local.get $a))))
    (i64.or (call $differs64 (f64.trunc (local.get $a))))
    (i64.or (call $differs64 (f64.nearest (local.get $a))))
    (i64.or (call $differs64 (f64.div (f64.const 0) (f64.const 0))))
    (i64.or (call $differs64 (f64.sub (f64.const inf) (f64.const inf))))
    (i64.or (call $differs64 (f64.promote_f32 (local.get $b))))
    (i64.or (call $differs32 (f32.demote_f64 (local.get $a))))
    (i64.or (call $differs32 (f32.div (local.get $b) (f32.const -0))))
    (i64.or (call $differs32 (f32.sqrt (f32.const -1))))
    (i64.or (call $differs64 (global.get $wide)))
    (i64.or (call $differs32 (global.get $narrow))))
  (func $odd (result i64)
    (call $all (f64.reinterpret_i64 (i64.const 0xfff4000000000123)) (f32.reinterpret_i32 (i32.const 0xffa00001))))
  (func (export "rsm_apply") (param i32 i32) (result i64) (call $reply (call $odd)))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $reply (call $odd))))
