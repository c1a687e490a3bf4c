;; What it changes is in no image.
;; expect: refused "`table.fill`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))))
