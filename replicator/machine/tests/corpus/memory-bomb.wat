;; Takes all memory it can get, writes to its last bytes and answers with its pages: the limit. With `u` it traps then, and all is given back.
;; expect: apply "u" traps "panicked"
;; expect: query "" replies "\02\00\00\00\00\00\00\00"
;; expect: apply "" replies "\40\00\00\00\00\00\00\00"
;; expect: apply "u" traps "panicked"
;; expect: query "" replies "\40\00\00\00\00\00\00\00"
(module {{abi}}
  (func (export "rsm_apply") (param $ptr i32) (param $len i32) (result i64)
    (if (i32.load offset=4 (local.get $ptr)) (then (return (i64.const 0)))) ;; Only requests.
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 42))
    (if (i32.gt_u (local.get $len) (i32.const 64)) (then unreachable))
    (call $reply (i64.extend_i32_u (memory.size))))
  (func (export "rsm_query") (param i32 i32) (result i64) (call $reply (i64.extend_i32_u (memory.size)))))
