;; References that come from a table and are asked whether they are null; the table is exported, which nobody uses.
;; expect: apply "" replies "\01\00\00\00\00\00\00\00"
(module {{abi}}
  (table (export "table") 2 2 funcref)
  (elem (i32.const 1) func $reply)
  (global funcref (ref.func $reply))
  (func (export "rsm_apply") (param i32 i32) (result i64) (local funcref)
    (local.set 2 (table.get 0 (i32.const 0)))
    (call $reply (i64.extend_i32_u (i32.and (ref.is_null (local.get 2))
      (i32.eqz (ref.is_null (table.get 0 (i32.const 1)))))))))
