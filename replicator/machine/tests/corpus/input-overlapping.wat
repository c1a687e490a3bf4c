;; Its input lies over its description and its reply: its own affair, and the same everywhere. It answers with the header's first 8
;; bytes, to which it has added the request's length.
;; expect: apply "abc" replies "\83\00\00\00\00\00\00\00"
;; expect: apply "" replies "\80\00\00\00\00\00\00\00"
(module {{abi}}
  (func (export "rsm_input") (param i32) (result i32) (i32.const 8))
  (func (export "rsm_apply") (param i32 i32) (result i64)
    (i64.store (local.get 0) (i64.add (i64.load (local.get 0)) (i64.extend_i32_u (local.get 1))))
    (call $reply (i64.load (local.get 0)))))
