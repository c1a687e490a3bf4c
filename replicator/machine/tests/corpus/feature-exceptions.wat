;; expect: refused "not a module that can be run"
(module {{abi}} (tag $t) (func (throw $t)))
