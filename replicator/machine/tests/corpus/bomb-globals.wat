;; expect: refused "globals, at most 1000 are taken"
(module {{abi}} {{2000 (global (mut i64) (i64.const 0)) }})
