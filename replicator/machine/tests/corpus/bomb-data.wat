;; expect: refused "data segments, at most 10000 are taken"
(module {{abi}} {{20000 (data "") }})
