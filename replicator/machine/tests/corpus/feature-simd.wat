;; expect: refused "not a module that can be run"
(module {{abi}} (func (drop (v128.const i64x2 0 0))))
