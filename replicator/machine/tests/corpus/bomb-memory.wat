;; expect: refused "memory begins with 65536 pages"
(module {{abi}} (memory (export "memory") 65536))
