;; What it changes is in no image.
;; expect: refused "`table.copy`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (table.copy 0 0 (i32.const 0) (i32.const 1) (i32.const 1))))
