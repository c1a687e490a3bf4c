;; expect: refused "rsm_describe"
(module {{abi}}
  (data (i32.const 8192) "\1b[2J app=x \00\ff")
  (func (export "rsm_describe") (result i64) (i64.const 0x0000200000000020)))
