;; expect: genesis refused "out of fuel"
(module {{abi}}
  (func (export "rsm_init") (param i32 i32) (result i32) (loop $ever (br $ever)) unreachable))
