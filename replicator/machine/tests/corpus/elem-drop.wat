;; What it changes is in no image.
;; expect: refused "`elem.drop`"
(module {{abi}} (table 2 funcref) (elem $e func 0) (data $d "x")
  (func (elem.drop $e)))
