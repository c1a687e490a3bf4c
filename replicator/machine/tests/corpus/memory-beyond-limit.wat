;; More pages than the cluster's limit: it loads, and can't begin.
;; expect: genesis refused "the limit is 64"
(module {{abi}} (memory (export "memory") 65))
