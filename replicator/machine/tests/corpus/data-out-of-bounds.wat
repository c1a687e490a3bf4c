;; expect: refused "instantiation: memory access out of bounds"
(module {{abi}} (data (i32.const 131071) "xx"))
