;; expect: refused "the export \22memory\22 must be the module's memory"
(module {{abi}} (memory 1) (func (export "memory")))
