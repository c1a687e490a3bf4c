;; expect: refused "not a module that can be run"
(module (memory (export "memory") i64 1)
  (func (export "rsm_abi_1")))
