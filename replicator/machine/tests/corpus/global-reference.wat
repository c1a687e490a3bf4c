;; expect: refused "global 0 is mutable and no number"
(module {{abi}} (global (mut funcref) (ref.null func)))
