;; 20,000 tiny functions took 1.7 s to compile.
;; expect: refused "functions, at most 10000 are taken"
(module {{abi}} {{20000 (func) }})
