;; expect: refused "start function"
(module {{abi}} (func $start) (start $start))
