;; What it changes is in no image.
;; expect: refused "`data.drop`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (data.drop $d)))
