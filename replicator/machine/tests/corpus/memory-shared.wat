;; expect: refused "not a module that can be run"
(module {{abi}} (memory (export "memory") 1 2 shared))
