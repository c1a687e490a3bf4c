;; expect: refused "instantiation: "
(module {{abi}} (table 1 funcref) (elem (i32.const 1) $reply))
