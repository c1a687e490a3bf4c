;; The request's first 8 bytes are the region: lists that are too long, or not within the memory.
;; expect: apply "\01\00\80\00\00\00\00\00" traps "output list of 8388609 bytes"
;; expect: apply "\ff\ff\ff\ff\00\00\00\00" traps "output list of 4294967295 bytes"
;; expect: apply "\ff\ff\ff\ff\ff\ff\ff\ff" traps "output list of 4294967295 bytes"
;; expect: apply "\00\00\80\00\00\00\00\00" traps "isn't within the memory"
;; expect: apply "\18\00\00\00\f0\ff\01\00" traps "isn't within the memory"
;; expect: apply "\18\00\00\00\ff\ff\ff\ff" traps "isn't within the memory"
;; expect: apply "\00\00\00\00\01\00\02\00" traps "isn't within the memory"
;; expect: apply "\00\00\00\00\00\00\02\00" replies ""
;; expect: query "\01\00\80\00\00\00\00\00" traps "output list of 8388609 bytes"
(module {{abi}}
  (func (export "rsm_apply") (param i32 i32) (result i64) (i64.load offset=64 (local.get 0)))
  (func (export "rsm_query") (param i32 i32) (result i64) (i64.load offset=64 (local.get 0))))
