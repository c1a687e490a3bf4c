;; expect: refused "rsm_describe: call stack exhausted"
(module {{abi}}
  (func $describe (export "rsm_describe") (result i64) (i64.add (call $describe) (i64.const 1))))
