;; expect: refused "it must have one, exported as `memory`"
(module
  (func (export "rsm_abi_1")))
