;; expect: refused "bytes in a function, at most 262144 are taken"
(module {{abi}} (func {{30000 (drop (i64.const 0x7fffffffffffffff)) }}))
