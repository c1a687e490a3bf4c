;; What it changes is in no image.
;; expect: refused "`table.grow`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (drop (table.grow 0 (ref.null func) (i32.const 1)))))
