;; expect: refused "rsm_describe: out of fuel"
(module {{abi}}
  (func (export "rsm_describe") (result i64) (loop $ever (br $ever)) unreachable))
