;; expect: refused "rsm_describe: the module panicked"
(module {{abi}}
  (data (i32.const 8192) "\1b[2J app=x \00\ff")
  (func (export "rsm_describe") (result i64) unreachable))
