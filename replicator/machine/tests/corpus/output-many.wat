;; Very many records: 74,565 empty pushes of 24 bytes each.
;; expect: apply "" replies ""
;; expect: query "" replies ""
(module {{abi}}
  (memory (export "memory") 2)
  (func $many (param i32 i32) (result i64)
    (local $page i32) (local $at i32) (local $left i32)
    (if (i32.load offset=4 (local.get 0)) (then (return (i64.const 0)))) ;; Only requests.
    (local.set $page (memory.grow (i32.const 29)))
    (if (i32.eq (local.get $page) (i32.const -1)) (then (local.set $page (i32.sub (memory.size) (i32.const 29)))))
    (local.set $at (i32.mul (local.get $page) (i32.const 65536)))
    (local.set $left (i32.const 74565))
    (loop $next
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 24)))
      (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (i64.or (i64.shl (i64.extend_i32_u (i32.mul (local.get $page) (i32.const 65536))) (i64.const 32)) (i64.const 1789560)))
  (func (export "rsm_apply") (param i32 i32) (result i64) (call $many (local.get 0) (local.get 1)))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $many (local.get 0) (local.get 1))))
