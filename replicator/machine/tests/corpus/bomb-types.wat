;; expect: refused "types, at most 10000 are taken"
(module {{20000 (type (func)) }} {{abi}})
