;; A query takes all memory and writes all over it: neither state nor other queries see that.
;; expect: query "" replies "\40\00\00\00\00\00\00\00"
;; expect: apply "" replies "\02\00\00\00\00\00\00\00"
;; expect: query "" replies "\40\00\00\00\00\00\00\00"
(module {{abi}}
  (func (export "rsm_query") (param $ptr i32) (param $len i32) (result i64)
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (memory.fill (i32.const 0) (i32.const 0xff) (i32.mul (memory.size) (i32.const 65536)))
    (call $reply (i64.extend_i32_u (memory.size))))
  (func (export "rsm_apply") (param i32 i32) (result i64) (call $reply (i64.extend_i32_u (memory.size)))))
