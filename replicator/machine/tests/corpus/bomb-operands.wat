;; 20,000 values on the operand stack across a call took 12 s to compile.
;; expect: refused "values on the operand stack, at most 2048 are taken"
(module {{abi}}
  (func $f (param i32) (result f64)
    {{20000 (f64.load (local.get 0)) }} (call $f (local.get 0)) {{20000 f64.add }}))
