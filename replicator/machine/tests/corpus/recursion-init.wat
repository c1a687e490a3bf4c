;; expect: genesis refused "rsm_init: call stack exhausted"
(module {{abi}}
  (func $init (export "rsm_init") (param i32 i32) (result i32)
    (i32.add (call $init (local.get 1) (local.get 0)) (i32.const 1))))
