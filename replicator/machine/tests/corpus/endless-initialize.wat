;; `_initialize` runs before the module is asked what it is.
;; expect: refused "out of fuel"
(module {{abi}}
  (func (export "_initialize") (loop $ever (br $ever))))
