;; expect: refused "elements in a table, at most 100000 are taken"
(module {{abi}} (table 10000000 funcref))
