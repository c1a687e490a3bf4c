;; expect: refused "doesn't export \22memory\22"
(module (memory 1)
  (func (export "rsm_abi_1")))
