;; Calls of nothing, of another type, past the end; and one that works.
;; expect: apply "\00" replies "\07\00\00\00\00\00\00\00"
;; expect: apply "\01" traps "indirect call of a wrong function"
;; expect: apply "\02" traps "indirect call of a wrong function"
;; expect: apply "\03" traps "indirect call of a wrong function"
;; expect: apply "\ff" traps "indirect call of a wrong function"
;; expect: query "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  (type $f (func (result i64)))
  (table 3 3 funcref)
  (elem (i32.const 0) $seven $other)
  (func $seven (result i64) (i64.const 7))
  (func $other (param i32) (result i64) (i64.const 8))
  (func (export "rsm_apply") (param i32 i32) (result i64)
    (call $reply (call_indirect (type $f) (i32.load8_u offset=64 (local.get 0))))))
