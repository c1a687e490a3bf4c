;; expect: genesis refused "rsm_input"
(module {{abi}}
  (func (export "rsm_input") (param i32) (result i32) (loop $ever (br $ever)) unreachable))
