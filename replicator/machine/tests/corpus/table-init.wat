;; What it changes is in no image.
;; expect: refused "`table.init`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (table.init 0 $e (i32.const 0) (i32.const 0) (i32.const 1))))
